"""What this installation has, where it keeps things, and what would not work with it. No network.

Only the devices load torch. The hub token is looked for, never read into a record.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from condense.errors import CondenseError
from condense.files import cache_root, size_in_words
from condense.models.gguf_copies import Copy, copies
from condense.version import __version__

SCHEMA = "condense.installation/1"
PYTHON = "3.11"
# As in pyproject.toml, which a test compares with it.
REQUIRED = {
    "torch": "2.10",
    "transformers": "5.23",
    "accelerate": "",
    "huggingface_hub": "2.4",
    "safetensors": "0.5",
    "numpy": "2.0",
    "scipy": "1.13",
    "scikit-learn": "1.5",
    "pandas": "2.2",
    "plotly": "7.0",
    "jinja2": "3.1",
    "rich": "14.0",
    "typer": "0.26",
    "packaging": "24.0",
    "psutil": "5.9",
    "threadpoolctl": "3.0",
}
# Package: (oldest version, what it is for, what installs it).
OPTIONAL = {
    "gguf": ("0.10", ".gguf checkpoints, the demo among them", "pip install 'condense-lm[gguf]'"),
    "peft": ("0.18", "adapters, and treat --use-peft", "pip install 'condense-lm[peft]'"),
    "datasets": ("4.0", "--dataset", "pip install 'condense-lm[data]'"),
    "pyarrow": ("16", "--text FILE.parquet", "pip install 'condense-lm[data]'"),
    "lm_eval": ("0.4.13", "--eval-tasks", "pip install 'condense-lm[eval]'"),
    "ray": ("2.50", "trial --jobs and --ray", "pip install 'condense-lm[ray]'"),
    "tensorboard": ("", "treat --report-to tensorboard", "pip install tensorboard"),
}
DISTRIBUTION = "condense-lm"
"""What pip calls this package."""
FOREIGN = "condense"
"""Somebody else's distribution on the package index, whose files would lie in the same folder."""
_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
_FREE_BYTES = 2e9  # less does not hold a small model and its conversion
_COUNTING_SECONDS = 1.0  # for adding up a cache


@dataclass(frozen=True)
class Problem:
    """Something that would not work: what, why, and the exact command that fixes it. `required`: nothing works."""

    what: str
    why: str
    fix: str
    required: bool = False


@dataclass(frozen=True)
class Package:
    """A package, its version (None where it is missing), and what it is for ("" if nothing works without it)."""

    name: str
    version: str | None
    oldest: str
    purpose: str


@dataclass(frozen=True)
class Device:
    """Somewhere a model can run: cpu, cuda:0, mps; its memory in bytes where it has its own."""

    name: str
    title: str
    bfloat16: bool
    memory: int | None = None


@dataclass(frozen=True)
class Folder:
    """A folder: bytes in it (at least, where counting was cut short), bytes free on its disk, can it be written."""

    name: str
    path: str
    size: int
    counted: bool
    free: int
    writable: bool


@dataclass(frozen=True)
class Installation:
    """All that `condense doctor` shows."""

    schema: str
    condense: str
    python: str
    platform: str
    packages: tuple[Package, ...]
    devices: tuple[Device, ...]
    cpu_count: int
    memory: int | None
    memory_available: int | None
    folders: tuple[Folder, ...]
    copies: tuple[Copy, ...]
    token: str
    offline: Mapping[str, str]
    settings: str
    demo: bool
    problems: tuple[Problem, ...]

    @property
    def works(self) -> bool:
        """True where all that is required is there."""
        return not any(problem.required for problem in self.problems)


def examine(settings: str = "none", problems: tuple[Problem, ...] = (), demo: bool = True) -> Installation:
    """Look at this installation.

    settings: what is known of the settings file; problems: those that the caller found, which come first; demo: is
    the demo model there. Nothing is raised for what is missing: it is a problem among the others.
    """
    packages = tuple(_packages())
    missing = [*problems, *_python_problems(), *_package_problems(packages), *_foreign_problems()]
    devices: tuple[Device, ...] = ()
    if next(package for package in packages if package.name == "torch").version is not None:
        try:
            devices = tuple(_devices())
        except Exception as error:  # a torch that is built for another machine fails in many ways
            line = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
            missing.append(
                Problem("torch", f"cannot be imported: {line}", "pip install --force-reinstall torch", required=True)
            )
    folders, token, offline = tuple(_folders()), _token(), {key: os.environ[key] for key in _OFFLINE if _is_on(key)}
    total, available = memory_of_machine()
    return Installation(
        schema=SCHEMA,
        condense=__version__,
        python=platform.python_version(),
        platform=platform.platform(),
        packages=packages,
        devices=devices,
        cpu_count=os.cpu_count() or 1,
        memory=total,
        memory_available=available,
        folders=folders,
        copies=_copies(),
        token=token,
        offline=offline,
        settings=settings,
        demo=demo,
        problems=(*missing, *_folder_problems(folders), *_hub_problems(token, offline)),
    )


# --- packages ---------------------------------------------------------------------------------------


def _packages() -> list[Package]:
    required = [Package(name, _version(name), oldest, "") for name, oldest in REQUIRED.items()]
    return required + [Package(name, _version(name), old, why) for name, (old, why, _) in OPTIONAL.items()]


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _package_problems(packages: tuple[Package, ...]) -> list[Problem]:
    problems = []
    for package in packages:
        wanted = f"{package.name}>={package.oldest}" if package.oldest else package.name
        fix = OPTIONAL[package.name][2] if package.purpose else f"pip install '{wanted}'"
        what, required = package.purpose or package.name, not package.purpose
        if package.version is None:
            why = f"the package {package.name} is missing" if package.purpose else "this package is missing"
            problems.append(Problem(what, why, fix, required))
        elif _is_older(package.version, package.oldest):
            why = f"{package.name} {package.version} is older than {package.oldest}"
            problems.append(Problem(what, why, f"pip install --upgrade '{wanted}'", required))
    return problems


def _is_older(version: str, oldest: str) -> bool:
    """True if a version is surely older; one that cannot be read, or without packaging, is taken as it is."""
    try:
        from packaging.version import InvalidVersion, Version
    except ImportError:  # it is on the list of what is missing
        return False
    try:
        return bool(oldest) and Version(version) < Version(oldest)
    except InvalidVersion:
        return False


def _python_problems() -> list[Problem]:
    if not _is_older(platform.python_version(), PYTHON):
        return []
    why = f"{platform.python_version()} is older than {PYTHON}"
    return [Problem("Python", why, f"python{PYTHON} -m venv .venv", required=True)]


def _foreign_problems() -> list[Problem]:
    """A distribution named `condense` here: whichever of the two was installed last has overwritten the other."""
    version = _version(FOREIGN)
    if version is None:
        return []
    why = f"the distribution {FOREIGN} {version} is somebody else's and writes the same folder as {DISTRIBUTION}"
    fix = f"pip uninstall --yes {FOREIGN} && pip install --force-reinstall --no-deps {DISTRIBUTION}"
    return [Problem("import condense", why, fix)]


# --- devices and memory -----------------------------------------------------------------------------


def _devices() -> list[Device]:
    import torch

    capability = torch.backends.cpu.get_cpu_capability()
    in_hardware = bool(getattr(torch.cpu, "_is_avx512_bf16_supported", bool)())
    threads = torch.get_num_threads()
    title = f"{platform.machine()} {capability}, {threads} thread{'s' * (threads != 1)} used by torch"
    devices = [Device("cpu", title, in_hardware)]
    for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        about = torch.cuda.get_device_properties(number)
        devices.append(Device(f"cuda:{number}", about.name, torch.cuda.is_bf16_supported(), about.total_memory))
    if torch.backends.mps.is_available():
        devices.append(Device("mps", "Apple GPU", True))
    return devices


def memory_of_machine() -> tuple[int | None, int | None]:
    """Bytes of memory, and of those that are available; a container's limit where that is lower."""
    try:
        import psutil
    except ImportError:  # it is on the list of what is missing
        return None, None
    memory = psutil.virtual_memory()
    total, available = int(memory.total), int(memory.available)
    with contextlib.suppress(ValueError, OSError):  # "max" is no number; psutil does not read a container's limit
        total = min(total, int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    return total, min(available, total)


# --- folders ----------------------------------------------------------------------------------------


def _folders() -> list[Folder]:
    paths = [("here", Path.cwd()), ("condense cache", cache_root())]
    constants = _hub_constants()
    if constants is not None:
        paths.append(("hub cache", Path(constants.HF_HUB_CACHE)))
    return [_folder(name, path) for name, path in paths]


def _copies() -> tuple[Copy, ...]:
    with contextlib.suppress(OSError, CondenseError):  # a cache that cannot be read is among the problems
        return copies()
    return ()


def _hub_constants() -> Any:
    """The hub client's constants, which are what the environment and its defaults come to; None without it."""
    try:
        from huggingface_hub import constants
    except Exception:  # missing or broken: the package list says so
        return None
    return constants


def _folder(name: str, path: Path) -> Folder:
    existing = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    writable = existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)
    size, counted = (0, True) if name == "here" else _size(path)
    return Folder(name, str(path), size, counted, shutil.disk_usage(existing).free, writable)


def _size(path: Path) -> tuple[int, bool]:
    """Bytes of all files below a folder, links not followed; False if counting was given up."""
    total, until = 0, time.monotonic() + _COUNTING_SECONDS
    for folder, _, files in os.walk(path):
        for file in files:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(folder, file)).st_size
        if time.monotonic() > until:
            return total, False
    return total, True


_USED_FOR = {
    "condense cache": (".gguf checkpoints, used diagnoses, resuming a run", "CONDENSE_CACHE"),
    "hub cache": ("downloads from the hub", "HF_HOME"),
}


def _folder_problems(folders: tuple[Folder, ...]) -> list[Problem]:
    problems = []
    for folder in folders:
        if folder.name not in _USED_FOR:
            if not folder.writable:
                problems.append(Problem("reports in this folder", f"{folder.path} is not writable", "cd ~"))
            continue
        what, variable = _USED_FOR[folder.name]
        if not folder.writable:
            fix = f"export {variable}=$HOME/{variable.lower()}"
            problems.append(Problem(what, f"{folder.path} is not writable", fix))
        elif folder.free < _FREE_BYTES:
            why = f"{size_in_words(folder.free)} are free for {folder.path}, a small model takes up to 2 GB"
            problems.append(Problem(what, why, f"export {variable}=/another/disk"))
    return problems


# --- the hub ----------------------------------------------------------------------------------------


def _is_on(variable: str) -> bool:
    return os.environ.get(variable, "").upper() in ("1", "ON", "YES", "TRUE")


def _token() -> str:
    """Where there is a hub token: the name of a variable or a file, or `none`. Never the token."""
    for variable in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if os.environ.get(variable, "").strip():
            return variable
    constants = _hub_constants()
    if constants is not None:
        file = Path(constants.HF_TOKEN_PATH)
        with contextlib.suppress(OSError):
            if file.stat().st_size > 0:
                return str(file)
    return "none"


def _hub_problems(token: str, offline: Mapping[str, str]) -> list[Problem]:
    problems = []
    if offline:
        names = " ".join(offline)
        problems.append(Problem("models and datasets that are not on this disk", f"{names} is set", f"unset {names}"))
    if token == "none":
        problems.append(Problem("gated and private models of the hub", "there is no token", "hf auth login"))
    return problems
