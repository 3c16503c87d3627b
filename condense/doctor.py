"""What this installation has, where it keeps things, and what would not work with it. No network.

Only what is asked of torch loads torch. The hub token is looked for, never read into a record.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from condense.files import cache_root
from condense.version import __version__

SCHEMA = "condense.installation/1"
PYTHON = "3.11"
# As in pyproject.toml, which a test compares with it.
REQUIRED = {
    "torch": "2.10", "transformers": "5.23", "accelerate": "", "huggingface_hub": "2.0", "safetensors": "0.5",
    "numpy": "2.0", "scipy": "1.13", "scikit-learn": "1.5", "pandas": "2.2", "plotly": "7.0", "jinja2": "3.1",
    "rich": "14.0", "typer": "0.26",
}  # fmt: skip
# Package: (oldest version, what it is for, what installs it).
OPTIONAL = {
    "gguf": ("0.10", ".gguf checkpoints, the demo among them", "pip install '.[gguf]'"),
    "peft": ("0.18", "adapters, and treat --use-peft", "pip install '.[peft]'"),
    "datasets": ("4.0", "--dataset", "pip install '.[data]'"),
    "pyarrow": ("16", "--text FILE.parquet", "pip install '.[data]'"),
    "lm_eval": ("0.4.13", "--eval-tasks", "pip install '.[eval]'"),
    "tensorboard": ("", "treat --report-to tensorboard", "pip install tensorboard"),
}
_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
_ROOM = 2e9  # bytes: less does not hold a small model and its conversion
_PATIENCE = 1.0  # seconds for adding up a cache


@dataclass(frozen=True)
class Problem:
    """Something that would not work: what, why, and the exact command that mends it. `required`: nothing works."""

    what: str
    why: str
    mend: str
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
class Place:
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
    places: tuple[Place, ...]
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
    found = [*problems, *_of_python(), *_of_packages(packages)]
    devices: tuple[Device, ...] = ()
    if next(package for package in packages if package.name == "torch").version is not None:
        try:
            devices = tuple(_devices())
        except Exception as error:  # a torch that is built for another machine fails in many ways
            line = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
            found.append(Problem("torch", f"cannot be imported: {line}", "pip install --force-reinstall torch", True))
    places, token, offline = tuple(_places()), _token(), {key: os.environ[key] for key in _OFFLINE if _is_on(key)}
    found += [*_of_places(places), *_of_the_hub(token, offline)]
    total, available = _memory()
    return Installation(
        SCHEMA, __version__, platform.python_version(), platform.platform(), packages, devices, os.cpu_count() or 1,
        total, available, places, token, offline, settings, demo, tuple(found),
    )  # fmt: skip


# --- packages ---------------------------------------------------------------------------------------


def _packages() -> list[Package]:
    required = [Package(name, _version(name), oldest, "") for name, oldest in REQUIRED.items()]
    return required + [Package(name, _version(name), old, why) for name, (old, why, _) in OPTIONAL.items()]


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _of_packages(packages: tuple[Package, ...]) -> list[Problem]:
    found = []
    for package in packages:
        wanted = f"{package.name}>={package.oldest}" if package.oldest else package.name
        mend = OPTIONAL[package.name][2] if package.purpose else f"pip install '{wanted}'"
        what, required = package.purpose or package.name, not package.purpose
        if package.version is None:
            why = f"the package {package.name} is missing" if package.purpose else "this package is missing"
            found.append(Problem(what, why, mend, required))
        elif _numbers(package.version) < _numbers(package.oldest):
            why = f"{package.name} {package.version} is older than {package.oldest}"
            found.append(Problem(what, why, f"pip install --upgrade '{wanted}'", required))
    return found


def _numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:3]]


def _of_python() -> list[Problem]:
    if sys.version_info[:2] >= tuple(_numbers(PYTHON)):
        return []
    return [
        Problem("Python", f"{platform.python_version()} is older than {PYTHON}", f"python{PYTHON} -m venv .venv", True)
    ]


# --- devices and memory -----------------------------------------------------------------------------


def _devices() -> list[Device]:
    import torch

    capability = torch.backends.cpu.get_cpu_capability()
    in_hardware = bool(getattr(torch.cpu, "_is_avx512_bf16_supported", bool)())
    threads = torch.get_num_threads()
    title = f"{platform.machine()} {capability}, {threads} thread{'s' * (threads != 1)} used by torch"
    found = [Device("cpu", title, in_hardware)]
    for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        about = torch.cuda.get_device_properties(number)
        found.append(Device(f"cuda:{number}", about.name, torch.cuda.is_bf16_supported(), about.total_memory))
    if torch.backends.mps.is_available():
        found.append(Device("mps", "Apple GPU", True))
    return found


def _memory() -> tuple[int | None, int | None]:
    """Bytes of memory, and of those that are available; a container's limit where that is lower."""
    total: int | None = None
    with contextlib.suppress(ValueError, OSError, AttributeError):  # Windows has no sysconf
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(ValueError, OSError):  # "max" is no number
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii"))
        total = min(total or limit, limit)
    with contextlib.suppress(OSError, AttributeError):
        match = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(encoding="ascii"))
        if match:
            available = int(match.group(1)) * 1024
            return total, min(available, total or available)
    return total, None


# --- places -----------------------------------------------------------------------------------------


def _places() -> list[Place]:
    named = [("here", Path.cwd()), ("condense cache", cache_root())]
    constants = _hub()
    if constants is not None:
        named.append(("hub cache", Path(constants.HF_HUB_CACHE)))
    return [_place(name, path) for name, path in named]


def _hub() -> Any:
    """The hub client's constants, which are what the environment and its defaults come to; None without it."""
    try:
        from huggingface_hub import constants
    except Exception:  # missing or broken: the package list says so
        return None
    return constants


def _place(name: str, path: Path) -> Place:
    existing = next(place for place in (path, *path.absolute().parents) if place.exists())
    writable = existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)
    size, counted = (0, True) if name == "here" else _size(path)
    return Place(name, str(path), size, counted, shutil.disk_usage(existing).free, writable)


def _size(path: Path) -> tuple[int, bool]:
    """Bytes of all files below a folder, links not followed; False if counting was given up."""
    total, until = 0, time.monotonic() + _PATIENCE
    for folder, _, files in os.walk(path):
        for file in files:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(folder, file)).st_size
        if time.monotonic() > until:
            return total, False
    return total, True


_LOST = {
    "condense cache": (".gguf checkpoints, used diagnoses, resuming a run", "CONDENSE_CACHE"),
    "hub cache": ("downloads from the hub", "HF_HOME"),
}


def _of_places(places: tuple[Place, ...]) -> list[Problem]:
    found = []
    for place in places:
        if place.name not in _LOST:
            if not place.writable:
                found.append(Problem("reports in this folder", f"{place.path} is not writable", "cd ~"))
            continue
        what, variable = _LOST[place.name]
        if not place.writable:
            found.append(Problem(what, f"{place.path} is not writable", f"export {variable}=$HOME/{variable.lower()}"))
        elif place.free < _ROOM:
            why = f"{place.free / 1e9:.1f} GB are free for {place.path}, a small model takes up to 2"
            found.append(Problem(what, why, f"export {variable}=/another/disk"))
    return found


# --- the hub ----------------------------------------------------------------------------------------


def _is_on(variable: str) -> bool:
    return os.environ.get(variable, "").upper() in ("1", "ON", "YES", "TRUE")


def _token() -> str:
    """Where there is a hub token: the name of a variable or a file, or `none`. Never the token."""
    for variable in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if os.environ.get(variable, "").strip():
            return variable
    constants = _hub()
    if constants is not None:
        file = Path(constants.HF_TOKEN_PATH)
        with contextlib.suppress(OSError):
            if file.stat().st_size > 0:
                return str(file)
    return "none"


def _of_the_hub(token: str, offline: Mapping[str, str]) -> list[Problem]:
    found = []
    if offline:
        names = " ".join(offline)
        found.append(Problem("models and datasets that are not on this disk", f"{names} is set", f"unset {names}"))
    if token == "none":
        found.append(Problem("gated and private models of the hub", "there is no token", "hf auth login"))
    return found
