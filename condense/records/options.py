"""Every option of condense once: a field of a frozen dataclass with its flag, for the shell, files and Python."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_type_hints

from condense.errors import UsageError

MODEL, CORPUS, OUTPUT, SAFETY = "Model", "Corpus", "Output", "Dangerous, off unless asked for"
GATE, RUN, TASKS = "Gate", "Run", "Downstream tasks (extra: eval)"
LOSS, TRAINING, LORA, ARMS, WORKERS = "Loss", "Training", "LoRA", "Arms", "Workers (extra: ray)"

MAX_SEED = 2**32 - 1
"""What the random generators of torch, NumPy and Python all take."""
_TOKEN = re.compile(r"[!-~]+")
_DEVICE = re.compile(r"auto|cpu|mps|(cuda|xpu)(:\d+)?")

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class Flag:
    """How an option is given on the command line; plain data, which `cli.groups` turns into a flag.

    names: `--field-name` if none are given; at_least, at_most: the smallest value that is allowed and, of a whole
    number, the largest; above: the bound that a value has to exceed; environment: a variable that sets it too.
    settings: which settings files may set it: one that is `found` in the working directory too, which may only
    change numbers; such a one with a path `inside` its folder; only one that is `named` with --config, and the
    environment; `never` a file. secret: never shown.
    Where the flag takes another type than the field, kind is that type, unread the flag's default, and read turns
    its value into the field's; read(unread) is the field's default. bare: the value of a flag that stands alone, and
    the pattern of a word behind it that is its value.
    """

    help: str
    panel: str | None = None
    names: tuple[str, ...] = ()
    metavar: str | None = None
    at_least: int | None = None
    above: float | None = None
    at_most: int = 2**63 - 1
    environment: str | None = None
    settings: Literal["found", "inside", "named", "never"] = "named"
    secret: bool = False
    kind: Any = None
    unread: Any = None
    read: Callable[[Any], Any] | None = None
    bare: tuple[str, str] | None = None

    def name_of(self, field: str) -> str:
        """The first name of the flag, as messages show it."""
        return self.names[0].partition("/")[0] if self.names else "--" + field.replace("_", "-")

    def check(self, field: str, value: Any) -> None:
        """UsageError for an empty text, a number that is not finite or one out of range; it names the flag."""
        name = self.name_of(field)
        if value == "":
            raise UsageError(f"{name} is empty", "give it a value, or leave it out")
        if isinstance(value, str) and "\0" in value:
            raise UsageError(f"{name} holds a null byte", "which no name has")
        if isinstance(value, bool) or not isinstance(value, int | float):
            return
        if isinstance(value, int) and value > self.at_most:
            raise UsageError(f"{name} is too large", f"use {self.at_most} or less")
        if isinstance(value, float) and not math.isfinite(value):
            raise UsageError(f"{name} is {value}", "use a finite number")
        if self.above is not None and not value > self.above:
            raise UsageError(f"{name} is {value}", f"use a number above {self.above:g}")
        if self.at_least is not None and value < self.at_least:
            raise UsageError(f"{name} is {value}", f"use {self.at_least} or more")


class Options:
    """The base of all option groups, which are frozen dataclasses: their flags check the fields of a new one."""

    def __post_init__(self) -> None:
        """UsageError for a value that its flag does not allow."""
        for name, option in options_of(type(self)).items():
            if option.flag is not None:
                option.flag.check(name, getattr(self, name))

    @classmethod
    def of(cls, options: Self | None, fields: Mapping[str, Any]) -> Self:
        """The group that was given, or its defaults, with the keyword fields of a call in their places."""
        return cls(**{**vars(options or cls()), **fields})


@dataclass(frozen=True)
class Option:
    """A field of a group: its type, its default (`dataclasses.MISSING` without one) and its flag, if it has one."""

    kind: Any
    default: Any
    flag: Flag | None


def options_of(group: type) -> dict[str, Option]:
    """The fields of a group by name, in order."""
    return _options_of(group)


@functools.cache
def _options_of(group: type) -> dict[str, Option]:
    hints, made = get_type_hints(group, include_extras=True), {}
    for field in dataclasses.fields(group):
        kind, flag = flag_of(hints[field.name])
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        made[field.name] = Option(kind, default, flag)
    return made


def flag_of(hint: Any) -> tuple[Any, Flag | None]:
    """The type and the flag of an annotation `Annotated[type, Flag(…)]`; no flag where there is none."""
    flags = [part for part in getattr(hint, "__metadata__", ()) if isinstance(part, Flag)]
    return (hint.__origin__, flags[0]) if flags else (hint, None)


def takes(group: type[Options]) -> Callable[[Function], Function]:
    """Show the fields of a group in the signature of a function that takes them as `**fields`."""

    def decorate(function: Function) -> Function:
        keyword = inspect.Parameter.KEYWORD_ONLY
        signature = inspect.signature(function)
        own = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        added = [
            inspect.Parameter(name, keyword, default=option.default, annotation=option.kind)
            for name, option in options_of(group).items()
            if name not in signature.parameters
        ]
        function.__signature__ = signature.replace(parameters=[*own, *added])  # type: ignore[attr-defined]
        return function

    return decorate


# --- the groups ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ModelOptions(Options):
    """How to open a checkpoint; the same for the model, its tokenizer and a base model.

    seed: of random weights. The command line takes it from --seed.
    """

    revision: Annotated[str | None, Flag("Branch, tag or commit of a hub id.", MODEL)] = None
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16", "auto"],
        Flag("Arithmetic of the forward pass; auto takes the checkpoint's.", MODEL, settings="found"),
    ] = "float32"
    device: Annotated[str, Flag("auto, cpu, cuda, cuda:1 or mps.", MODEL, metavar="DEVICE")] = "auto"
    device_map: Annotated[str | None, Flag("Spread a large model over devices (auto).", MODEL)] = None
    tokenizer: Annotated[str | None, Flag("Hub id or folder, if not the model's own.", MODEL)] = None
    token: Annotated[
        str | None, Flag("Hub token for gated models.", MODEL, environment="HF_TOKEN", settings="never", secret=True)
    ] = dataclasses.field(default=None, repr=False)
    offline: Annotated[bool, Flag("Use only what is on this disk.", MODEL)] = False
    random_init: Annotated[bool, Flag("Random weights from the config.", MODEL)] = False
    trust_remote_code: Annotated[bool, Flag("Run Python code that the checkpoint ships.", SAFETY, settings="never")] = (
        False
    )
    allow_pickle: Annotated[bool, Flag("Read pickled weights.", SAFETY, settings="never")] = False
    seed: int = 0

    def __post_init__(self) -> None:
        """Take blanks off the token, which files of secrets end in; UsageError for a device that there is not."""
        object.__setattr__(self, "token", (self.token or "").strip() or None)
        super().__post_init__()
        if self.token and not _TOKEN.fullmatch(self.token):
            raise UsageError("the hub token (--token, HF_TOKEN) holds characters that no token has", "look at its file")
        if not _DEVICE.fullmatch(self.device):
            raise UsageError(f"cannot use device {self.device!r}", "use --device cpu, cuda, cuda:1, mps or auto")


@dataclass(frozen=True)
class TextOptions(Options):
    """Which text is read."""

    text: Annotated[
        str | None,
        Flag(
            "txt, md, jsonl, json, csv, tsv, parquet, arrow; plain or compressed. Without it: condense's probe text; "
            "treat and trial need one.",
            CORPUS,
            metavar="FILE|DIR|-",
            settings="inside",
        ),
    ] = None
    dataset: Annotated[str | None, Flag("Dataset id on the hub.", CORPUS)] = None
    dataset_config: Annotated[str | None, Flag("Its configuration.", CORPUS)] = None
    split: Annotated[
        str | None,
        Flag("Its split. Default: train to train on; else test, validation, train.", CORPUS, settings="found"),
    ] = None
    text_column: Annotated[str, Flag("Column that holds the text.", CORPUS, settings="found")] = "text"

    def __post_init__(self) -> None:
        """UsageError for two texts."""
        super().__post_init__()
        if self.text is not None and self.dataset is not None:
            raise UsageError("--text and --dataset are both given", "name one corpus")


def batch_of(size: str) -> int | None:
    """Texts per forward pass; None for auto."""
    if size == "auto":
        return None
    if not (size.isascii() and size.isdigit()) or int(size) < 1:
        raise UsageError(f"--batch-size is {size!r}", "use a whole number from 1, or auto")
    return int(size)


@dataclass(frozen=True)
class MeasureOptions(Options):
    """How a model is measured, and what is done with diagnoses that were kept."""

    num_texts: Annotated[
        int, Flag("Windows to measure.", CORPUS, ("--num-texts", "--limit"), at_least=1, settings="found")
    ] = 32
    max_length: Annotated[
        int | None,
        Flag(
            "Tokens per window. Default: 512, or the model's positions if fewer.", CORPUS, at_least=8, settings="found"
        ),
    ] = None
    seed: Annotated[int, Flag("Seed of everything drawn.", CORPUS, at_least=0, at_most=MAX_SEED, settings="found")] = 0
    batch_size: Annotated[
        int | None,
        Flag(
            "Texts per forward pass, or auto.",
            CORPUS,
            metavar="N",
            kind=str,
            unread="auto",
            read=batch_of,
            settings="found",
        ),
    ] = None
    random_twin: Annotated[bool, Flag("Measure the same config with random weights too.", MODEL)] = False
    halves: Annotated[
        bool,
        Flag("Embed the two halves of every window apart too: do they find each other? One more forward pass.", RUN),
    ] = False
    lens: Annotated[
        bool, Flag("The logit lens of every block on up to 8 windows: what would the head predict from it?", RUN)
    ] = False
    no_cache: Annotated[
        bool, Flag("Neither use nor keep a diagnosis, nor the texts measured so far, from which a run resumes.", RUN)
    ] = False
    refresh: Annotated[bool, Flag("Measure again, and replace the diagnosis that was kept of the same run.", RUN)] = (
        False
    )

    def __post_init__(self) -> None:
        """UsageError for options that do not go together."""
        super().__post_init__()
        if self.no_cache and self.refresh:
            raise UsageError("--no-cache and --refresh are both given", "--refresh keeps what it measures: name one")


@dataclass(frozen=True)
class CompareOptions(Options):
    """How `compare` measures models that come without a diagnosis; None is what the saved runs had."""

    num_texts: Annotated[
        int | None,
        Flag(
            "Windows to measure. Default: what the saved runs had, or 32.",
            CORPUS,
            ("--num-texts", "--limit"),
            at_least=1,
            settings="found",
        ),
    ] = None
    max_length: Annotated[
        int | None,
        Flag("Tokens per window. Default: what the saved runs had, or 512.", CORPUS, at_least=8, settings="found"),
    ] = None
    seed: Annotated[
        int | None,
        Flag(
            "Seed of everything drawn. Default: that of the saved runs, or 0.",
            CORPUS,
            at_least=0,
            at_most=MAX_SEED,
            settings="found",
        ),
    ] = None
    quality_tolerance: Annotated[
        float,
        Flag(
            "Kullback–Leibler divergence to the first model below which another is equivalent, as a share of its loss.",
            RUN,
            above=0,
        ),
    ] = 0.005
    one_at_a_time: Annotated[
        bool, Flag("Never hold two models in memory: keep what the first one predicts on the disk meanwhile.", RUN)
    ] = False


@dataclass(frozen=True)
class OutputOptions(Options):
    """What is written, and where."""

    output: Annotated[
        Path | None,
        Flag(
            "Write diagnosis.json, report.html, report.md and layers.csv here.",
            OUTPUT,
            ("--output", "-o"),
            metavar="DIR",
        ),
    ] = None
    json: Annotated[Path | None, Flag("Write the run as JSON.", OUTPUT, metavar="FILE")] = None
    html: Annotated[Path | None, Flag("Write the report.", OUTPUT, metavar="FILE")] = None
    md: Annotated[Path | None, Flag("Write a Markdown summary.", OUTPUT, metavar="FILE")] = None
    csv: Annotated[Path | None, Flag("Write the layer table.", OUTPUT, metavar="FILE")] = None
    plotlyjs: Annotated[
        Literal["inline", "cdn", "none"], Flag("Charts inside the file, from a CDN, or none.", OUTPUT)
    ] = "inline"
    no_text: Annotated[bool, Flag("Keep names of documents and paths of texts out of every output.", OUTPUT)] = False
    force: Annotated[
        bool, Flag("Write into a folder that is not empty; never over a file that condense did not write.", OUTPUT)
    ] = False


@dataclass(frozen=True)
class GateOptions(Options):
    """What a run is held against, and what counts as a failure."""

    baseline: Annotated[
        Path | None, Flag("A saved run to compare with.", GATE, metavar="BASE.json", settings="inside")
    ] = None
    asserted: Annotated[
        tuple[str, ...],
        Flag(
            'Such as "deep.mean_cosine <= 0.8" or "bits_per_byte <= baseline + 1 %"; may be repeated.',
            GATE,
            ("--assert",),
            metavar="TEXT",
            kind=list[str] | None,
            read=lambda texts: tuple(texts or ()),
            settings="found",
        ),
    ] = ()
    informational: Annotated[bool, Flag("Report everything, never fail.", GATE)] = False
    strict: Annotated[
        bool,
        Flag(
            "Fail unless everything passed: warnings, open results and what did not run count.", GATE, settings="found"
        ),
    ] = False
    inconclusive: Annotated[
        Literal["warn", "fail"], Flag("What an interval that reaches over the bound counts as.", GATE, settings="found")
    ] = "warn"
    not_run: Annotated[
        Literal["fail", "warn", "ignore"],
        Flag("What counts as what could not be measured; ignore: as not asked for.", GATE, settings="found"),
    ] = "warn"
    accept: Annotated[
        Path | None,
        Flag(
            "Show what changed, then write the run there as the new baseline.",
            GATE,
            metavar="BASE.json",
            settings="never",
        ),
    ] = None
    junit: Annotated[Path | None, Flag("Write JUnit XML.", OUTPUT, metavar="FILE")] = None
    md: Annotated[Path | None, Flag("Write a Markdown summary.", OUTPUT, metavar="FILE")] = None
    force: Annotated[bool, Flag("Compare runs whose settings differ.", GATE)] = False


@dataclass(frozen=True)
class RunOptions(Options):
    """How a command that trains begins."""

    resume: Annotated[bool, Flag("Resume an interrupted run.", TRAINING)] = False
    force: Annotated[
        bool,
        Flag(
            "Replace what condense made in OUT and is unchanged (.condense.json lists it), and drop an unfinished run. "
            "Nothing else is removed or written over.",
            OUTPUT,
        ),
    ] = False
    dry_run: Annotated[bool, Flag("Print the plan and stop.", OUTPUT)] = False
