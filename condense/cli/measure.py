"""From options to a checkpoint, its windows and its diagnosis: what `analyze` and `compare` have in common."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Literal

from condense.cli.running import MANNER, command_line, counting, quieten_libraries, say, say_first, working
from condense.errors import UsageError

if TYPE_CHECKING:
    from condense.diagnosis.cache import Wanted
    from condense.diagnosis.distributed import Ranks
    from condense.models.locate import Located
    from condense.records.diagnosis import Diagnosis
    from condense.texts.windows import Windows

Cache = Literal["use", "refresh", "off"]


def batch_of(size: str) -> int | None:
    """Texts per forward pass; None for auto."""
    if size == "auto":
        return None
    if not size.isdigit() or int(size) < 1:
        raise UsageError(f"--batch-size is {size!r}", "use a whole number from 1, or auto")
    return int(size)


def cache_of(no_cache: bool, refresh: bool) -> Cache:
    """What is done with kept diagnoses: used, measured again and replaced, or left alone."""
    if no_cache and refresh:
        raise UsageError("--no-cache and --refresh are both given", "--refresh keeps what it measures: name one")
    return "off" if no_cache else "refresh" if refresh else "use"


def locate_model(model: str, **chosen: Any) -> Located:
    """Find MODEL with a spinner; `chosen` are the keywords of `condense.load`. No weights are read yet."""
    if chosen.get("offline"):
        os.environ["HF_HUB_OFFLINE"] = "1"  # read when the hub client is imported, so set before
    with working(f"looking at {model}"):
        quieten_libraries()
        from condense.models.locate import locate

        return locate(model, **chosen)


def cut_windows(
    located: Located,
    *,
    text: str | None = None,
    dataset: str | None = None,
    dataset_config: str | None = None,
    split: str | None = None,
    column: str = "text",
    num_texts: int = 32,
    max_length: int | None = None,
    seed: int = 0,
    no_text: bool = False,
) -> Windows:
    """The windows that the corpus options ask for; says so where there are fewer."""
    from condense.texts import documents
    from condense.texts import windows as corpus

    if text is not None and dataset is not None:
        raise UsageError("--text and --dataset are both given", "name one corpus")
    chosen: Any = documents.dataset(dataset, dataset_config, split, column) if dataset else text
    windows = corpus.windows(
        located.tokenizer, chosen, num_texts=num_texts, max_length=max_length, positions=located.positions,
        seed=seed, text_column=column, source=f"dataset {dataset}" if dataset else None,
    )  # fmt: skip
    if len(windows) < num_texts and not MANNER.quiet:
        say(f"{len(windows)} windows of {windows.info.length} tokens were found, {num_texts} asked for; going on")
    return corpus.without_names(windows) if no_text else windows


def diagnosed(
    located: Located,
    windows: Windows,
    batch: int | None,
    seed: int,
    twin: bool,
    *,
    cache: Cache,
    ranks: Ranks | None = None,
    title: str = "",
) -> Diagnosis:
    """The diagnosis that was kept of this very run, else a measured one, which is kept."""
    from condense.diagnosis.cache import Wanted, keep, recall
    from condense.diagnosis.distributed import ALONE, together

    wanted, ranks = Wanted(located, windows, batch, seed, twin), ranks or ALONE
    with together(ranks):
        found = recall(wanted, command=command_line(), ranks=ranks) if cache == "use" else None
        if found is not None:
            day, clock = found.created[:10], found.created[11:16]
            say_first(f"used the diagnosis measured on {day} {clock} UTC; --refresh measures again")
            return found
        diagnosis = _measured(wanted, journal=cache != "off", ranks=ranks, title=title)
        if cache != "off":
            keep(wanted, diagnosis, ranks=ranks)
    return diagnosis


def _measured(wanted: Wanted, *, journal: bool, ranks: Ranks, title: str) -> Diagnosis:
    from condense.diagnosis.run import analyze as measure
    from condense.models.checkpoint import read

    with working(f"loading {wanted.located.name}"):
        checkpoint = read(wanted.located)
    title = title or ("measuring, then its random twin" if wanted.twin else "measuring")
    with counting(title) as on_text:
        return measure(
            checkpoint, wanted.windows, batch_size=wanted.batch_size, seed=wanted.seed, twin=wanted.twin,
            command=command_line(), on_text=on_text, on_note=say_first, journal=journal, ranks=ranks,
        )  # fmt: skip
