"""The files of the hub's cache: which of a repository are needed, which are present, and whether they are intact.

No request is sent to the hub.
"""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import json
import os
import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from condense.errors import CondenseError, UnavailableError
from condense.files import sha256_of_files, write_text
from condense.models.folder import PICKLE_HINT
from condense.records.options import ModelOptions

_SMALL = (
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "*.model",
    "*.spm",
    "*.tiktoken",
    "chat_template*",
    "tekken.json",
    "modules.json",
    "adapter_config.json",
    "sentence_bert_config.json",
)
INDEX = "model.safetensors.index.json"
WEIGHTS = (".safetensors", ".bin")
COMMIT = re.compile(r"[0-9a-f]{40}")
GO_ONLINE = "go online once, without --offline and HF_HUB_OFFLINE"


@dataclass(frozen=True)
class Fetched:
    """A snapshot on disk and the commit it is of."""

    path: Path
    revision: str | None


@dataclass(frozen=True)
class Selection:
    """Which files are needed: weights or only the other files, pickles where nothing else is, code."""

    weights: bool = True
    allow_pickle: bool = False
    code: bool = False

    @classmethod
    def of(cls, options: ModelOptions) -> Selection:
        """What a model under these options needs."""
        return cls(not options.random_init, options.allow_pickle, options.trust_remote_code)


def cached(repo: str, revision: str | None, selection: Selection | None = None, *, listed: bool = False) -> Fetched:
    """The copy in the hub's cache, without asking the hub; UnavailableError if there is none or it is incomplete.

    Which files belong to it is known from the listing that the client keeps. Of a copy without one, fetched file by
    file by another program, the files present are taken; with `listed` that is an error.
    """
    from huggingface_hub import errors, get_cached_repo_tree

    commit = revision if revision and COMMIT.fullmatch(revision) else _read_ref(repo, revision or "main")
    snapshot = _repository_folder(repo) / "snapshots" / (commit or "none")
    if commit is None or not snapshot.is_dir():
        at_revision = f" at {revision}" if revision else ""
        raise UnavailableError(
            f"{repo}{at_revision} is not in the local cache and the hub is not used or not reachable (offline)",
            f"check the spelling, give a folder, or {GO_ONLINE}",
        )
    try:
        present = [file.path for file in get_cached_repo_tree(repo, revision=commit) if "/" not in file.path]
    except errors.CachedRepoTreeNotFoundError:
        if listed:
            raise UnavailableError(f"it is not known what belongs to the copy of {repo} in {snapshot}") from None
        present = [file.name for file in snapshot.iterdir()]
    chosen = selection or Selection()
    index = snapshot / INDEX
    names = needed(repo, present, chosen, shards_of(index.read_bytes()) if index.is_file() else ())
    if lacking := [name for name in names if not (snapshot / name).is_file()]:
        raise UnavailableError(
            f"the copy of {repo} in {snapshot} is not whole: {', '.join(lacking[:3])} missing",
            GO_ONLINE,
        )
    return Fetched(snapshot, commit)


def _repository_folder(repo: str) -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"


def _ref_file(repo: str, revision: str) -> Path | None:
    """The file that holds the commit of a branch or tag, where the hub's client reads it; None for an invalid name."""
    return None if ".." in revision or revision.startswith("/") else _repository_folder(repo) / "refs" / revision


def _read_ref(repo: str, revision: str) -> str | None:
    """The commit of a branch or tag when it was fetched last."""
    path = _ref_file(repo, revision)
    try:
        return path.read_text(encoding="ascii").strip() if path else None
    except (OSError, ValueError):
        return None


def keep_ref(repo: str, revision: str, commit: str) -> None:
    """Record the commit of a branch or tag; a cache that cannot be written is left as it is."""
    path = _ref_file(repo, revision)
    if path is not None and revision != commit and _read_ref(repo, revision) != commit:
        with contextlib.suppress(CondenseError):
            write_text(path, commit)


def shards_of(index: bytes) -> tuple[str, ...]:
    """The files that a safetensors index names; () where it cannot be read: opening it raises an error later."""
    try:
        weight_map = json.loads(index)["weight_map"]
        return tuple(sorted({str(name) for name in weight_map.values()}))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return ()


def needed(
    repo: str, names: Sequence[str], selection: Selection | None = None, shards: Iterable[str] = ()
) -> list[str]:
    """Of the top-level files of a repository, those that a measurement reads; `shards`: what its index names.

    UnavailableError where there are none, or no weights.
    """
    chosen = selection or Selection()
    patterns = [*_SMALL, *(("*.py",) if chosen.code else ())]
    names_needed = {name for name in names for pattern in patterns if fnmatch.fnmatch(name, pattern)}
    if chosen.weights:
        whole = [name for name in names if name in ("model.safetensors", "adapter_model.safetensors")]
        listed = {*fnmatch.filter(names, "model-*-of-*.safetensors"), *shards, INDEX} & set(names)
        pickles = fnmatch.filter(names, "pytorch_model*.bin*")
        names_needed |= set(whole or listed or (pickles if chosen.allow_pickle else []))
    if chosen.weights and not any(name.endswith(WEIGHTS) for name in names_needed):
        raise _no_weights(repo, names)
    if not names_needed:
        raise UnavailableError(f"{repo} holds no config and no tokenizer", "is it a model of transformers?")
    return sorted(names_needed)


def _no_weights(repo: str, names: Sequence[str]) -> UnavailableError:
    """The error for a repository without weights in safetensors, by what it holds instead."""
    ggufs = sorted(name for name in names if name.lower().endswith(".gguf"))
    if ggufs:
        return UnavailableError(
            f"{repo} has no safetensors weights, it holds {len(ggufs)} .gguf file{'s' * (len(ggufs) != 1)}",
            f"fetch one and name it: hf download {repo} {shlex.quote(ggufs[0])} --local-dir . "
            f"&& condense analyze {shlex.quote(f'./{ggufs[0]}')}",
        )
    others = sorted(name for name in names if name.endswith((".pth", ".ckpt", ".msgpack", ".h5", ".onnx", ".nemo")))
    if others and not any(name.endswith(".bin") for name in names):
        return UnavailableError(
            f"{repo} has no safetensors weights, it holds {others[0]}",
            f"fetch it, and see what it is: hf download {repo} --local-dir DIR && condense analyze DIR",
        )
    return UnavailableError(f"{repo} has no safetensors weights", PICKLE_HINT)


def repository_of(file: Path) -> str | None:
    """The repository of a file in a snapshot of the hub's cache; None for any other file."""
    parts = file.absolute().parts
    if not file.is_symlink() or len(parts) < 4 or parts[-3] != "snapshots" or not parts[-4].startswith("models--"):
        return None
    return parts[-4].removeprefix("models--").replace("--", "/")


def damage(file: Path, digest: str | None = None) -> str:
    """What is wrong with a file of a snapshot, from the hash that its blob is named by; "" if nothing is.

    The name is a sha256, or git's sha1 of a small file. `digest`: the file's sha256, where that is known. A file that
    was copied instead of linked is kept under no hash.
    """
    if not file.is_symlink():
        return ""
    expected = Path(os.readlink(file)).name
    if len(expected) == 64:
        actual, kind = digest or sha256_of_files((file,)), "sha256"
    elif COMMIT.fullmatch(expected):
        data = file.read_bytes()
        actual, kind = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest(), "git sha1"
    else:
        return ""
    if actual == expected:
        return ""
    return f"{file} is damaged: its {kind} is {actual[:12]}…, it should be {expected[:12]}…"
