"""Text to what every arm shares: rows to train on, windows to measure on, the schedule of steps.

Nothing here trains or measures. Split by document, so that training, validation and probe text are disjoint.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from condense.errors import RunError, UnavailableError, UsageError
from condense.files import size_in_words
from condense.models.checkpoint import Checkpoint
from condense.records.plans import Plan, TrialPlan
from condense.records.treatment import Schedule
from condense.texts.documents import Document
from condense.texts.windows import Windows, documents_of, windows
from condense.training.loop import collator
from condense.training.rows import (
    MEASURED_LENGTHS,
    Rows,
    Split,
    fingerprint,
    keeps_documents_apart,
    packed_rows,
    padded_rows,
    split,
    validation_windows,
)

MAX_TOKENS = 2_000_000
TOKENS_PER_STEP = 131_072
ROW_LENGTH = 1024
CHECKPOINTS_KEPT = 3  # two by rotation, one while it is written
REPORT_BYTES, RUN_BYTES = 5_000_000, 2_000_000  # the page with its record; what is measured of a run, on two texts


@dataclass(frozen=True)
class HeldOut:
    """Documents that no run trains on and that are not in the validation text, with their windows."""

    documents: Sequence[Document]
    windows: Windows


@dataclass(frozen=True)
class NextText:
    """What final models are trained on further: its split, rows of the model's own tokens, windows, the schedule."""

    parts: Split
    rows: Rows
    windows: Windows
    schedule: Schedule


@dataclass(frozen=True)
class Prepared:
    """What all arms share: the split text, rows of token ids, windows of validation and probe, the schedule.

    tuning: the text that settings are chosen on; other: one of another domain; then: one to train on further; each None
    where a trial does not ask for it.
    """

    parts: Split
    rows: Rows
    masked: bool
    validation: Windows
    probe: Windows
    schedule: Schedule
    tuning: HeldOut | None = None
    other: HeldOut | None = None
    then: NextText | None = None


def prepare_text(
    name: str,
    opened: Checkpoint,
    text: str | Path | Iterable[str] | Iterable[Document],
    column: str,
    plan: Plan,
    more: TrialPlan | None = None,
    processes: int = 1,
    begun_with: int | None = None,
) -> Prepared:
    """Split, tokenise and cut the text for a model; more: the trial, for the texts that it takes besides.

    processes: how many train together; begun_with: how many did when a run that is resumed was begun, so that its steps
    keep their rows.

    UnavailableError for a model without a causal or masked objective or a text without content, UsageError for
    lengths that the model or the text cannot give.
    """
    refuse_untrainable(name, opened)
    masked = opened.info.objective == "masked"
    parts = split(documents_of(text, column), plan.seed)
    length = plan.max_length or min(ROW_LENGTH, opened.positions or ROW_LENGTH)
    if opened.positions and length > opened.positions:
        raise UsageError(
            f"--max-length {length} is beyond the model's {opened.positions} positions", "use a shorter one"
        )
    asked = rows_asked(plan, begun_with or processes)
    rows = training_rows(opened, parts, length, masked, most_tokens(plan, length, asked))
    chosen_on: Sequence[Document] = ()
    if more is not None and more.tune:
        if more.tune_text is None:
            parts, chosen_on = halved(parts)
        else:
            chosen_on = apart(documents_of(more.tune_text, column), parts, "--tune-text")
    validation, probe = measured_windows(opened, parts, plan, rows.length)
    tuning = held_out(validation, opened, chosen_on, plan, "tuning text") if chosen_on else None
    schedule = make_schedule(plan, rows, parts, processes, asked)
    made = Prepared(parts, rows, masked, validation, probe, schedule, tuning)
    return made if more is None else with_texts(made, opened, column, plan, more)


def with_texts(made: Prepared, opened: Checkpoint, column: str, plan: Plan, more: TrialPlan) -> Prepared:
    """The text of another domain and the next one, as a trial asks for them.

    UsageError where there are no bits per byte: for a masked model, and for a tokenizer without offsets.
    """
    if (more.other_text or more.then_text) and made.masked:
        raise UsageError(
            "--other-text and --then-text need bits per byte, which a masked model has not", "leave them out"
        )
    if more.other_text is not None:
        documents = apart(documents_of(more.other_text, column), made.parts, "--other-text")
        other = held_out(made.validation, opened, documents, plan, "text of another domain")
        _refuse_without_bytes(other.windows, "--other-text")
        made = replace(made, other=other)
    if more.then_text is None:
        return made
    parts = split(apart(documents_of(more.then_text, column), made.parts, "--then-text"), plan.seed)
    rows = training_rows(opened, parts, made.rows.length, made.masked, most_tokens(plan, made.rows.length))
    steps = more.then_steps or max(4, made.schedule.steps // 4)
    schedule = replace(
        made.schedule,
        rows=len(rows),
        steps=steps,
        train_tokens=steps * made.schedule.tokens_per_step,
        train_documents=len(parts.train),
        validation_documents=len(parts.validation),
        train_sha256=parts.train_sha256,
        validation_sha256=parts.validation_sha256,
        notes=(*parts.notes, *rows.notes),
    )
    held = held_out(made.validation, opened, tuple(parts.validation), plan, "the next text")
    _refuse_without_bytes(held.windows, "--then-text")
    return replace(made, then=NextText(parts, rows, held.windows, schedule))


def _refuse_without_bytes(measured: Windows, flag: str) -> None:
    if not all(measured.predicted_bytes):
        reason = "the tokenizer gives no offsets into the text"
        raise UsageError(f"{flag} needs bits per byte, and {reason}", "leave it out")


def halved(parts: Split) -> tuple[Split, tuple[Document, ...]]:
    """The split with every second validation document taken off, and those; UsageError where there are not two."""
    documents = tuple(parts.validation)
    if len(documents) < 2:
        raise UsageError(
            "the validation text is one document, so none is left to choose settings on", "name a text with --tune-text"
        )
    return replace(parts, validation=documents[::2]), documents[1::2]


def apart(documents: Iterable[Document], parts: Split, flag: str) -> tuple[Document, ...]:
    """The documents that are neither trained on nor in the validation text, each once; UsageError without any."""
    known = {fingerprint(document.text.strip()) for part in (parts.train, parts.validation) for document in part}
    chosen = []
    for document in documents:
        mark = fingerprint(document.text.strip())
        if document.text.strip() and mark not in known:
            known.add(mark)
            chosen.append(document)
    if not chosen:
        raise UsageError(f"{flag} holds no document that is not in --text too", "name other text")
    return tuple(chosen)


def held_out(
    validation: Windows, opened: Checkpoint, documents: Sequence[Document], plan: Plan, source: str
) -> HeldOut:
    """Other documents with their windows, as long as those of the validation text."""
    length = validation.info.length
    cut = windows(opened.tokenizer, documents, num_texts=plan.num_texts, max_length=length, source=source)
    return HeldOut(documents, cut)


def measured_windows(opened: Checkpoint, parts: Split, plan: Plan, trained: int) -> tuple[Windows, Windows]:
    """Windows of the validation text and of the probe, never longer than the rows that are `trained` on.

    A position that no row reaches has an embedding that was not trained. UsageError for an --eval-length beyond.
    """
    asked, tokenizer, source = plan.eval_length, opened.tokenizer, "validation text"
    if asked is not None and asked > trained:
        raise UsageError(
            f"--eval-length {asked} is longer than the rows of {trained} tokens that are trained on",
            "use a shorter one, or a longer --max-length",
        )
    longest = min(trained, MEASURED_LENGTHS[0])
    if asked is None:
        validation = validation_windows(tokenizer, parts.validation, plan.num_texts, longest)
    else:
        validation = windows(tokenizer, parts.validation, num_texts=plan.num_texts, max_length=asked, source=source)
    probe = windows(tokenizer, num_texts=plan.num_texts, max_length=asked or longest)
    return validation, probe


def refuse_untrainable(name: str, opened: Checkpoint) -> None:
    """UnavailableError for a model that has no language-modelling objective, or no head to train it with."""
    if opened.info.objective not in ("causal", "masked"):
        raise UnavailableError(
            f"{name} has no language-modelling objective to train ({opened.info.architecture})",
            "condense treats causal and masked language models",
        )
    if opened.head_missing:
        raise UnavailableError(f"{name} cannot be trained: {opened.head_missing}")


def rows_asked(plan: Plan, processes: int) -> int | None:
    """Rows of a step over all processes, as the batch options say; None where they say nothing."""
    batch, accumulation = plan.per_device_train_batch_size, plan.gradient_accumulation_steps
    return (batch or 1) * (accumulation or 1) * processes if batch or accumulation else None


def most_tokens(plan: Plan, length: int, rows_per_step: int | None = None) -> int:
    """Tokens that a run can train on without seeing one twice: its budget, and no fewer than the default one."""
    asked, rows_per_step = plan.train_tokens or 0, rows_per_step or rows_asked(plan, 1)
    if plan.max_steps:
        asked = max(asked, plan.max_steps * (rows_per_step * length if rows_per_step else TOKENS_PER_STEP))
    return max(asked, MAX_TOKENS)


def training_rows(opened: Checkpoint, parts: Split, length: int, masked: bool, most: int | None) -> Rows:
    """Rows of `length` tokens of the training documents: packed where the model keeps documents apart.

    most: no more of the text is tokenised than rows of so many tokens need.
    """
    if masked:
        rows = padded_rows(opened.tokenizer, parts.train, length, masked=True, most=most)
    elif keeps_documents_apart(opened.model):
        rows = packed_rows(opened.tokenizer, parts.train, length, most=most)
    else:
        rows = padded_rows(opened.tokenizer, parts.train, length, most=most)
    if len(rows) == 0:
        raise UsageError(
            f"the training text does not fill one row of {length} tokens", "lower --max-length or give more text"
        )
    return rows


def make_schedule(plan: Plan, rows: Rows, parts: Split, processes: int, rows_per_step: int | None) -> Schedule:
    """Steps, batch and accumulation from the budget: one pass, at most 2 M tokens, unless told otherwise.

    The rows of a step do not depend on the number of processes, unless the batch options are given for each.
    """
    length, batch = rows.length, plan.per_device_train_batch_size or 1
    budget = plan.train_tokens or min(len(rows) * length, MAX_TOKENS)
    per_step = rows_per_step or max(1, min(TOKENS_PER_STEP, max(length, budget // 50)) // length)
    steps = plan.max_steps or max(1, budget // (per_step * length))
    return Schedule(
        rows=len(rows),
        row_length=length,
        steps=steps,
        tokens_per_step=per_step * length,
        train_tokens=steps * per_step * length,
        batch_size=batch,
        accumulation=math.ceil(per_step / (batch * processes)),
        packed=rows.packed,
        train_documents=len(parts.train),
        validation_documents=len(parts.validation),
        train_sha256=parts.train_sha256,
        validation_sha256=parts.validation_sha256,
        notes=(*parts.notes, *rows.notes),
        disk_bytes=0,  # how many models are kept is the orchestration's to say
        processes=processes,
    )


def windows_for(checkpoint: Checkpoint, texts: Prepared) -> tuple[Windows, Windows]:
    """The documents of the validation and probe windows in another tokenizer's tokens: as many, of the same length."""
    validation, probe = (
        windows(
            checkpoint.tokenizer,
            documents,
            num_texts=len(old),
            max_length=old.info.length,
            positions=checkpoint.positions,
            source=old.info.source,
        )
        for documents, old in ((texts.parts.validation, texts.validation), (None, texts.probe))
    )
    return validation, probe


def disk_needed(opened: Checkpoint, plan: Plan, models: int, runs: int) -> int:
    """Bytes on disk at the worst moment: so many saved models and, with --save-steps, training checkpoints.

    A model comes with its tokenizer; the report and what is measured of so many runs are on top.
    """
    weights, tokenizer = 4 * opened.info.parameters, tokenizer_bytes(opened.tokenizer)
    copies = 4 if plan.fsdp else 3  # weights and two moments; of a sharded model the weights as one file more
    states = (copies * weights + tokenizer) * CHECKPOINTS_KEPT if plan.save_steps else 0
    return (weights + tokenizer) * models + states + REPORT_BYTES + RUN_BYTES * runs


def tokenizer_bytes(tokenizer: Any) -> int:
    """Bytes that a tokenizer takes when it is saved: as text, or the files that it was read from."""
    core = getattr(tokenizer, "backend_tokenizer", None)
    if core is not None:
        return len(core.to_str(pretty=True).encode())
    files = [Path(value) for name, value in vars(tokenizer).items() if name.endswith("_file") and value]
    return sum(file.stat().st_size for file in files if file.is_file())


def refuse_small_disk(work: Path, needed: int) -> None:
    """Refuse a run whose files would not fit beside its output, before it trains: RunError.

    work: the run's folder, there or not; what a resumed run has written already counts as part of `needed` bytes.
    """
    written = sum(file.stat().st_size for file in work.rglob("*") if file.is_file())
    existing = next(path for path in (work, *work.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free >= needed - written:
        return
    missing = f"{size_in_words(needed - written)} needed, {size_in_words(free)} free"
    raise RunError(
        f"not enough disk in {existing.absolute()}: {missing}",
        "free some space, or choose an --output on another disk",
    )


def training_memory(trained: int, peaks: Mapping[str, int]) -> int | None:
    """Bytes that training takes: the peak of a forward and backward pass, and what is kept of each trained parameter.

    That is a gradient and Adam's two moments, in float32. peaks: of the arms that were timed; None without any.
    """
    return max(peaks.values()) + 3 * 4 * trained if peaks else None


def first_batch(tokenizer: Any, rows: Rows, schedule: Schedule, masked: bool, seed: int) -> dict[str, Tensor]:
    """A micro-batch of the first rows, for timing."""
    chosen = [rows[i] for i in range(min(schedule.batch_size, len(rows)))]
    batch: dict[str, Tensor] = collator(tokenizer, masked, seed)(chosen)
    return batch
