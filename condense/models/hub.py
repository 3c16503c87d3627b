"""Checkpoints by hub id: the files needed, their size, free disk, and errors. Only what the user named is requested.

Only the top-level files a measurement needs are fetched: config, tokenizer, generation config and the
safetensors weights (never a second copy in another format). What a user should know goes to the logger
`condense`: downloads as information, a hub that is not reachable and damaged files as warnings.
"""

from __future__ import annotations

import contextlib
import glob
import json
import logging
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from condense.errors import CondenseError, RunError, UnavailableError, system_failure
from condense.files import sha256_of_files, size_in_words
from condense.models.hub_files import (
    COMMIT,
    GO_ONLINE,
    INDEX,
    WEIGHTS,
    Fetched,
    Selection,
    cached,
    damage,
    keep_ref,
    needed,
    repository_of,
    shards_of,
)
from condense.records.options import ModelOptions

_MARGIN = 1.2
_SECONDS = 10.0  # until a hub that does not answer counts as not reachable
_REPORTED = 10  # percent of a download between two lines
_LOGGER = logging.getLogger("condense")


class HubOutageError(UnavailableError):
    """The hub does not answer, answers with an error of its own (5xx), or refuses because of too many requests."""


@dataclass(frozen=True)
class Listing:
    """The files of a repository that a measurement needs, with their bytes, and of them those not on this disk."""

    files: tuple[tuple[str, int], ...]
    missing: tuple[tuple[str, int], ...]
    revision: str

    @property
    def size(self) -> int:
        """Bytes to download."""
        return sum(size for _, size in self.missing)


def fetch(repo: str, options: ModelOptions, selection: Selection | None = None) -> Fetched:
    """Fetch what is needed of a repository (by default: a model) into the hub's own cache and return the folder.

    Size and free disk are logged first. Offline, or where the hub is not reachable, the copy in the cache is used
    if it is whole. UnavailableError names the case: missing, gated, private, offline or not reachable; RunError if the
    disk is too small.
    """
    from huggingface_hub.utils import validate_repo_id

    with _explained(repo):
        validate_repo_id(repo)
    chosen, revision = selection or Selection.of(options), options.revision
    if is_offline(options.offline):
        return _repaired(cached(repo, revision, chosen), options)
    if revision and COMMIT.fullmatch(revision):  # a commit never changes: a complete copy needs no request
        with contextlib.suppress(UnavailableError):
            return _repaired(cached(repo, revision, chosen, listed=True), options)
    commit = revision
    try:
        listing = list_files(repo, options, chosen)
        commit = listing.revision  # from here on only this commit is used
        fetched = _download(repo, options, listing)
    except HubOutageError as outage:
        with contextlib.suppress(UnavailableError):
            kept = cached(repo, commit, chosen)
            _LOGGER.warning("%s; going on with the copy in %s", outage, kept.path)
            return kept
        raise
    return _repaired(fetched, options)


def is_offline(offline: bool = False) -> bool:
    """True if the hub must not be contacted: by the option, or by HF_HUB_OFFLINE when the client was imported."""
    from huggingface_hub import constants

    return offline or bool(_before_closing[0] if _before_closing else constants.HF_HUB_OFFLINE)


_before_closing: list[bool] = []


@contextlib.contextmanager
def closed(offline: bool = False) -> Iterator[None]:
    """Keep every library in this process from contacting the hub, except inside `opened`.

    So nothing that a checkpoint's files name is fetched. offline: `opened` allows no requests either.
    """
    from huggingface_hub import constants

    before = bool(constants.HF_HUB_OFFLINE)
    _before_closing.append(_before_closing[0] if _before_closing else before or offline)
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        _before_closing.pop()
        constants.HF_HUB_OFFLINE = before


@contextlib.contextmanager
def opened() -> Iterator[None]:
    """Allow requests to the hub for what the user named, unless the environment or --offline forbids them."""
    from huggingface_hub import constants

    before: bool = constants.HF_HUB_OFFLINE
    datasets: Any = sys.modules.get("datasets.config")
    state = _before_closing[0] if _before_closing else bool(before)
    constants.HF_HUB_OFFLINE = state
    if datasets is not None and not os.environ.get("HF_DATASETS_OFFLINE"):
        datasets.HF_HUB_OFFLINE = datasets.HF_DATASETS_OFFLINE = state  # the client read it when it was imported
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def list_files(repo: str, options: ModelOptions, selection: Selection) -> Listing:
    """What `fetch` would need and what it would download; nothing is kept. HubOutageError if it is not reachable."""
    from huggingface_hub import HfApi, snapshot_download

    token = options.token
    with _explained(repo):
        info = HfApi(token=token).model_info(repo, revision=options.revision, timeout=_SECONDS)
        commit, present = str(info.sha), [file.rfilename for file in info.siblings or [] if "/" not in file.rfilename]
        indexed = selection.weights and INDEX in present and "model.safetensors" not in present
        names = needed(repo, present, selection, shards_of(_read_remote(repo, commit, INDEX, token)) if indexed else ())
        # the client's own check of the cache, which includes blobs of other commits
        files = snapshot_download(
            repo,
            revision=commit,
            token=token,
            allow_patterns=_literal(names),
            dry_run=True,
            tqdm_class=_progress(repo, 0),
        )
    sizes = {file.filename: file.file_size or 0 for file in files}
    missing = sorted(file.filename for file in files if file.will_download)
    return Listing(tuple(sorted(sizes.items())), tuple((name, sizes[name]) for name in missing), commit)


def remote_config(repo: str, revision: str | None, token: str | None) -> dict[str, Any]:
    """config.json of a repository, read without keeping it; {} where it has none or it is not an object."""
    with _explained(repo):
        try:
            config = json.loads(_read_remote(repo, revision or "main", "config.json", token))
        except (FileNotFoundError, ValueError, RecursionError):
            return {}
    return config if isinstance(config, dict) else {}


def _read_remote(repo: str, revision: str, name: str, token: str | None) -> bytes:
    from huggingface_hub import HfFileSystem

    data: bytes = HfFileSystem(token=token, skip_instance_cache=True).cat_file(f"{repo}@{revision}/{name}")
    return data


def _literal(names: Iterable[str]) -> list[str]:
    """Patterns that match these names and nothing else."""
    return [glob.escape(name) for name in names]


# --- downloading ------------------------------------------------------------------------------------


def _download(repo: str, options: ModelOptions, listing: Listing) -> Fetched:
    """Fetch all listed files; then record the commit of the branch or tag, for use offline."""
    from huggingface_hub import constants, snapshot_download

    if listing.missing:
        _check_disk(repo, listing, Path(constants.HF_HUB_CACHE))
    with _explained(repo):
        folder = Path(
            snapshot_download(
                repo,
                revision=listing.revision,
                token=options.token,
                allow_patterns=_literal(name for name, _ in listing.files),
                tqdm_class=_progress(repo, listing.size),
            )
        )
    keep_ref(repo, options.revision or "main", listing.revision)
    return Fetched(folder, listing.revision)


def _check_disk(repo: str, listing: Listing, cache: Path) -> None:
    folder = next(parent for parent in (cache, *cache.absolute().parents) if parent.exists())
    free, count = shutil.disk_usage(folder).free, len(listing.missing)
    _LOGGER.info(
        "%s: %d of %d files to download, %s; free disk %s in %s",
        *(repo, count, len(listing.files), size_in_words(listing.size), size_in_words(free), folder),
    )
    if free < _MARGIN * listing.size:
        raise RunError(
            f"not enough disk for {repo}: {size_in_words(listing.size)} to download, {size_in_words(free)} free "
            f"in {folder}",
            "free some space or set HF_HOME to another disk",
        )


def _progress(repo: str, total: int) -> Any:
    """A class in place of the client's progress bars: a line to the log at every tenth of the download."""
    from tqdm.auto import tqdm

    class Lines(tqdm):  # type: ignore[misc]
        """Count the bytes that were written, and draw nothing."""

        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **{**options, "disable": True})
            # of the client's bars the one that counts what is on the disk; "total" is known before it is
            self.counts = str(options.get("desc", "")).startswith("Reconstructing")
            self.done, self.told = 0.0, 0

        def update(self, n: float | None = 1) -> None:
            if not self.counts or total <= 0:
                return
            self.done += n or 0
            percent = int(100 * self.done / total) // _REPORTED * _REPORTED
            if percent > self.told:
                self.told = percent
                _LOGGER.info("%s: %d %% of %s", repo, min(percent, 100), size_in_words(total))

    return Lines


# --- damaged files ----------------------------------------------------------------------------------


def _repaired(fetched: Fetched, options: ModelOptions) -> Fetched:
    """Check the files beside the weights, whose hash is taken later in any case."""
    for file in sorted(fetched.path.iterdir()):
        if not file.name.endswith(WEIGHTS):
            _is_intact(file, options)
    return fetched


def checked_sha256(files: Iterable[Path], options: ModelOptions) -> dict[Path, str]:
    """The sha256 of those files that are in the hub's cache; one that is damaged is fetched again.

    UnavailableError with its path where that is not possible.
    """
    digests = {}
    for file in files:
        if repository_of(file) is not None and file.is_file():
            digests[file] = sha256_of_files((file,))
            if not _is_intact(file, options, digests[file]):
                digests[file] = sha256_of_files((file,))
    return digests


def _is_intact(file: Path, options: ModelOptions, digest: str | None = None) -> bool:
    """True if a file of the hub's cache is what it should be; else it is fetched again, and False."""
    repo, wrong = repository_of(file), damage(file, digest)
    if repo is None or not wrong:
        return True
    if is_offline(options.offline):
        raise UnavailableError(wrong, GO_ONLINE)
    from huggingface_hub import hf_hub_download

    _LOGGER.warning("%s; fetching it again", wrong)
    with _explained(repo):
        hf_hub_download(repo, file.name, revision=file.parent.name, token=options.token, force_download=True)
    return False


def push(folder: Path, repo: str, token: str | None) -> None:
    """Upload a folder to a repository of the hub, which is made if need be (private)."""
    from huggingface_hub import HfApi

    with _explained(repo):
        client = HfApi(token=token)
        client.create_repo(repo, private=True, exist_ok=True)
        client.upload_folder(repo_id=repo, folder_path=str(folder))


# --- failures ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def _explained(repo: str) -> Iterator[None]:
    """Turn the hub client's failures into one line each that says what to do; its lines on retries are not shown."""
    from huggingface_hub.utils import get_session
    from huggingface_hub.utils import logging as client

    hooks = get_session().event_hooks["request"]
    if _limit_seconds not in hooks:
        hooks.append(_limit_seconds)

    level = client.get_verbosity()
    if level > logging.DEBUG:
        client.set_verbosity_error()
    try:
        with opened():
            yield
    except CondenseError:
        raise
    except Exception as error:  # the client raises kinds of four libraries; explain() tells them apart
        raise system_failure(error) or explain(error, repo) from error
    finally:
        client.set_verbosity(level)


def _limit_seconds(request: Any) -> None:
    """Give a request that the client would wait for without end (the list of files) the time of the others."""
    if request.method in ("GET", "HEAD"):
        limits = request.extensions.get("timeout", {})
        names = ("connect", "read", "write", "pool")
        request.extensions["timeout"] = {name: limits.get(name) or _SECONDS for name in names}


def explain(error: Exception, repo: str) -> CondenseError:
    """The line a user reads for a failure of the hub client."""
    from huggingface_hub import constants, errors

    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and len(chain) < 8:
        chain.append(cause)

    def any_of(*kinds: type[BaseException]) -> bool:
        return any(isinstance(link, kinds) for link in chain)

    page = f"{constants.ENDPOINT.removeprefix('https://')}/{repo}"
    if any_of(errors.GatedRepoError):
        return UnavailableError(
            f"{repo} is gated", f"accept its terms on {page}, then set HF_TOKEN or run: hf auth login"
        )
    if any_of(errors.DisabledRepoError):
        return UnavailableError(f"{repo} is disabled on the hub", f"see {page}")
    if any_of(errors.RevisionNotFoundError):
        return UnavailableError(f"{repo} has no such revision", "look at its branches and tags")
    answers = [
        link.response.status_code
        for link in chain
        if isinstance(link, errors.HfHubHTTPError) and getattr(link, "response", None) is not None
    ]
    if any_of(errors.RepositoryNotFoundError):
        return UnavailableError(
            f"{repo} is not on the hub, or it is private", "check the spelling; for a private one set HF_TOKEN"
        )
    if any_of(errors.HFValidationError):
        return UnavailableError(f"{repo!r} is neither a file, a folder nor a hub id")
    if set(answers) & {401, 403}:
        return UnavailableError(f"the hub refuses access to {repo} ({answers[0]})", "check HF_TOKEN: hf auth login")
    if any_of(errors.OfflineModeIsEnabled) or all(isinstance(link, errors.LocalEntryNotFoundError) for link in chain):
        return UnavailableError(
            f"{repo} is not in the local cache and the hub is not used (offline)",
            "check the spelling, give a folder, or go online without --offline and HF_HUB_OFFLINE",
        )
    if 404 in answers:
        return UnavailableError(f"the hub has no such file of {repo} (404)", "was it changed meanwhile? run again")
    if 429 in answers:
        return HubOutageError(f"the hub refuses {repo} for too many requests (429)", "wait, or set HF_TOKEN for more")
    again = "try again, or use --offline with a model in the cache"
    if answers:
        return HubOutageError(f"the hub answers {answers[0]} for {repo}", again)
    first = chain[-1] if any_of(errors.LocalEntryNotFoundError) else error
    line = (str(first).strip() or type(first).__name__).splitlines()[0][:200]
    return HubOutageError(f"cannot reach the hub for {repo}: {line}", again)
