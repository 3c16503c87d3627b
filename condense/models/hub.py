"""Checkpoints by hub id: which files, how large, is there room, and what went wrong. Nothing unasked.

Only the top-level files a measurement needs are fetched: config, tokenizer, generation config and the
safetensors weights (never a second copy in another format).
"""

from __future__ import annotations

import contextlib
import fnmatch
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from condense.errors import CondenseError, RunError, UnavailableError
from condense.models.folder import PICKLE_HINT

_SMALL = (
    "config.json", "generation_config.json", "tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json",
    "added_tokens.json", "*.model", "chat_template*", "tekken.json", "modules.json",
    "adapter_config.json", "sentence_bert_config.json",
)  # fmt: skip
_MARGIN = 1.2


@dataclass(frozen=True)
class Fetched:
    """A snapshot on disk and the commit it is of."""

    path: Path
    revision: str | None


@dataclass(frozen=True)
class Listing:
    """The files of a repository that would be fetched, with their sizes in bytes."""

    files: tuple[tuple[str, int], ...]
    revision: str | None

    @property
    def size(self) -> int:
        """Bytes of all of them."""
        return sum(size for _, size in self.files)


Announce = Callable[[str], None]


def to_stderr(line: str) -> None:
    """Say a line where progress goes."""
    sys.stderr.write(f"{line}\n")


def fetch(
    repo: str,
    revision: str | None,
    token: str | None,
    offline: bool,
    *,
    allow_pickle: bool = False,
    code: bool = False,
    weights: bool = True,
    tokenizer_only: bool = False,
    announce: Announce = to_stderr,
) -> Fetched:
    """Fetch what is needed of a repository into the hub's own cache and return the folder.

    Prints size and free disk first. UnavailableError tells missing, gated, private and offline apart;
    RunError if the disk is too small.
    """
    from huggingface_hub import constants, snapshot_download

    if offline or constants.HF_HUB_OFFLINE:
        with _explained(repo):
            folder = Path(snapshot_download(repo, revision=revision, local_files_only=True))
        return Fetched(folder, folder.name)
    listing = list_files(repo, revision, token, allow_pickle, code, weights and not tokenizer_only)
    names = [name for name, _ in listing.files]
    if weights and not tokenizer_only and not any(name.endswith((".safetensors", ".bin")) for name in names):
        raise UnavailableError(f"{repo} has no safetensors weights", PICKLE_HINT)
    _check_room(repo, listing, Path(constants.HF_HUB_CACHE), announce)
    with _explained(repo):
        folder = Path(snapshot_download(repo, revision=listing.revision, token=token, allow_patterns=names))
    return Fetched(folder, listing.revision)


def list_files(
    repo: str, revision: str | None, token: str | None, allow_pickle: bool, code: bool, weights: bool = True
) -> Listing:
    """What `fetch` would download: names and sizes."""
    from huggingface_hub import HfApi

    with _explained(repo):
        info = HfApi(token=token).model_info(repo, revision=revision, files_metadata=True)
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or [] if "/" not in file.rfilename}
    chosen = needed(tuple(sizes), allow_pickle, code, weights)
    return Listing(tuple((name, sizes[name]) for name in chosen), info.sha)


def missing(repo: str, listing: Listing) -> tuple[tuple[str, int], ...]:
    """Of a listing, the files that are not in the hub's cache yet."""
    from huggingface_hub import try_to_load_from_cache

    return tuple(
        (name, size) for name, size in listing.files
        if not isinstance(try_to_load_from_cache(repo, name, revision=listing.revision), str)
    )  # fmt: skip


def remote_config(repo: str, revision: str | None, token: str | None) -> dict[str, Any]:
    """config.json of a repository, read without keeping it; {} where it has none or it is not an object."""
    from huggingface_hub import HfFileSystem

    with _explained(repo):
        try:
            text = HfFileSystem(token=token).cat_file(f"{repo}@{revision or 'main'}/config.json")
        except FileNotFoundError:
            return {}
    try:
        config = json.loads(text)
    except ValueError:
        return {}
    return config if isinstance(config, dict) else {}


def needed(names: Sequence[str], allow_pickle: bool = False, code: bool = False, weights: bool = True) -> list[str]:
    """Of the top-level files of a repository, those that a measurement reads."""
    patterns = [*_SMALL, *(("*.py",) if code else ())]
    chosen = {name for name in names for pattern in patterns if fnmatch.fnmatch(name, pattern)}
    if weights:
        whole = [name for name in names if name in ("model.safetensors", "adapter_model.safetensors")]
        shards = [name for name in names if fnmatch.fnmatch(name, "model-*-of-*.safetensors")]
        index = [name for name in names if name == "model.safetensors.index.json"]
        pickles = [name for name in names if fnmatch.fnmatch(name, "pytorch_model*.bin*")]
        chosen |= set(whole or [*shards, *index] or (pickles if allow_pickle else []))
    return sorted(chosen)


def _check_room(repo: str, listing: Listing, cache: Path, announce: Announce) -> None:
    place = cache
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    announce(f"{repo}: {len(listing.files)} files, {_bytes(listing.size)}; free disk {_bytes(free)} in {place}")
    if free < _MARGIN * listing.size:
        raise RunError(
            f"not enough disk for {repo}: {_bytes(listing.size)} needed, {_bytes(free)} free in {place}",
            "free some space or set HF_HOME to another disk",
        )


def _bytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def push(folder: Path, repo: str, token: str | None) -> None:
    """Upload a folder to a repository of the hub, which is made if need be (private)."""
    from huggingface_hub import HfApi

    with _explained(repo):
        client = HfApi(token=token)
        client.create_repo(repo, private=True, exist_ok=True)
        client.upload_folder(repo_id=repo, folder_path=str(folder))


@contextlib.contextmanager
def _explained(repo: str) -> Iterator[None]:
    """Turn the hub client's failures into one line each that says what to do."""
    try:
        yield
    except CondenseError:
        raise
    except Exception as error:  # the client raises kinds of four libraries; explain() tells them apart
        raise explain(error, repo) from error


def explain(error: Exception, repo: str) -> CondenseError:
    """The line a user reads for a failure of the hub client."""
    from huggingface_hub import errors

    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and len(chain) < 8:
        chain.append(cause)

    def any_of(*kinds: type[BaseException]) -> bool:
        return any(isinstance(link, kinds) for link in chain)

    if any_of(errors.GatedRepoError):
        return UnavailableError(
            f"{repo} is gated", f"accept its terms on huggingface.co/{repo}, then set HF_TOKEN or run: hf auth login"
        )
    if any_of(errors.DisabledRepoError):
        return UnavailableError(f"{repo} is disabled on the hub", f"see huggingface.co/{repo}")
    if any_of(errors.RevisionNotFoundError):
        return UnavailableError(f"{repo} has no such revision", "look at its branches and tags")
    if any_of(errors.RepositoryNotFoundError):
        return UnavailableError(
            f"{repo} is not on the hub, or it is private", "check the spelling; for a private one set HF_TOKEN"
        )
    if any_of(errors.HFValidationError):
        return UnavailableError(f"{repo!r} is neither a file, a folder nor a hub id")
    if any_of(errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError):
        return UnavailableError(
            f"{repo} is not in the local cache and the hub is not used or not reachable (offline)",
            "check the spelling, give a folder, or go online without --offline and HF_HUB_OFFLINE",
        )
    answers = [link.response.status_code for link in chain if isinstance(link, errors.HfHubHTTPError)]
    if set(answers) & {401, 403}:
        return UnavailableError(f"the hub refuses access to {repo} ({answers[0]})", "check HF_TOKEN: hf auth login")
    line = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    return UnavailableError(
        f"cannot reach the hub for {repo}: {line}", "try again, or use --offline with a cached model"
    )
