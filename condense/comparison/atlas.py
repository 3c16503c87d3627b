"""The atlas: models that were measured before, and how a diagnosis compares with those that were measured alike.

The ones that ship are in `condense/data/atlas`, made from packages by `make atlas`; the user's own are in a folder of
theirs. A model is placed by its deep mean cosine, by the rules of every other difference. numpy is loaded only where
something was measured alike.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from condense.errors import CondenseError, UnavailableError, UsageError
from condense.files import expanded, sha256
from condense.records.atlas import PLACED_BY, AtlasModel
from condense.records.base import Estimate
from condense.records.diagnosis import Diagnosis
from condense.records.plans import Plan

if TYPE_CHECKING:
    from condense.intervals import Spread

MOST_BYTES = 1 << 20
_NEAREST = 4
Place = Literal["more", "less", "open"]


@dataclass(frozen=True)
class Standing:
    """How a model's deep mean cosine compares with the models of the atlas that were measured alike.

    `places`: for each other model whether this one is more condensed, less condensed, or whether that is undecided;
    `nearest` are those of the others that are nearest in size; `itself`: the model is in the atlas too, and left out.
    """

    others: tuple[AtlasModel, ...]
    places: tuple[Place, ...]
    nearest: tuple[AtlasModel, ...] = ()
    itself: bool = False

    @property
    def words(self) -> str:
        """One sentence: more condensed than k of n."""
        more, less, unclear = (self.places.count(outcome) for outcome in ("more", "less", "open"))
        count = len(self.others)
        models = "1 model" if count == 1 else f"{count} models"
        own = " (this very model is in it, and left out)" if self.itself else ""
        rest = [f"less than {less}"] if less else []
        rest += [f"not to be told apart from {unclear}"] if unclear else []
        first = f"more condensed than {more} of {models} of the atlas that were measured alike{own}"
        return "; ".join([first, *rest])


def standing(run: Diagnosis, models: Iterable[AtlasModel] | None = None) -> Standing | None:
    """How a diagnosis compares with the models of the atlas; None where none was measured alike.

    Alike: equal protocol, texts and definition of the number. More or less condensed: the difference is at least the
    smallest that counts, and its interval at .05 over the number of models excludes 0; paired where both read the same
    token ids. models: read from the atlas unless given.
    """
    own = run.deep.get(PLACED_BY)
    if own is None or own.value is None:  # of matrices alone
        return None
    known = read_atlas()[0] if models is None else models
    alike = [other for other in known if not _is_unlike(run, other)]
    others = [other for other in alike if not _is_same(run, other)]
    if not others:
        return None
    places = tuple(_place_against(run, other, len(others)) for other in others)
    size = max(1, run.model.parameters)
    by_size = sorted(others, key=lambda other: abs(math.log(max(1, other.model.parameters) / size)))
    nearest = tuple(sorted(by_size[:_NEAREST], key=_model_name))
    return Standing(tuple(others), places, nearest, itself=len(others) < len(alike))


def _is_unlike(run: Diagnosis, other: AtlasModel) -> bool:
    """Whether the two were measured differently in anything that changes the number compared."""
    if run.protocol.get("hash") != other.protocol.get("hash"):
        return True
    from condense.comparison.comparability import Conditions, differing_settings

    return bool(differing_settings(run, Conditions(other.protocol, other.corpus), (PLACED_BY,)))


def _is_same(run: Diagnosis, other: AtlasModel) -> bool:
    return run.model.weights_sha256 is not None and run.model.weights_sha256 == other.model.weights_sha256


def _place_against(run: Diagnosis, other: AtlasModel, count: int) -> Place:
    """Whether the run is more condensed than one of `count` models."""
    from condense import intervals

    mine, theirs = run.deep[PLACED_BY], other.deep[PLACED_BY]
    sides, alike = (
        (mine.per_text or (), theirs.per_text or ()),
        run.corpus.windows_sha256 == other.corpus.windows_sha256,
    )
    if alike and len(sides[0]) == len(sides[1]) == len(run.corpus.documents) > 0:
        paired = [None if a is None or b is None else a - b for a, b in zip(*sides, strict=True)]
        spread = intervals.over_documents(paired, run.corpus.documents)
    else:
        both = ((mine, run.corpus.documents), (theirs, other.corpus.documents))
        spread = intervals.difference(*(_spread_of_estimate(estimate, documents) for estimate, documents in both))
    low, high = spread.bounds(intervals.ALPHA / count)
    if spread.value is None or low is None or high is None or low <= 0 <= high or abs(spread.value) < Plan.min_effect:
        return "open"
    return "more" if spread.value > 0 else "less"


def _spread_of_estimate(estimate: Estimate, documents: tuple[int, ...]) -> Spread:
    from condense import intervals

    if estimate.per_text is None or len(estimate.per_text) != len(documents):
        return intervals.Spread(estimate.value, (), intervals.NO_DOCUMENTS)
    return intervals.over_documents(estimate.per_text, documents)


# --- files of the atlas ------------------------------------------------------------------------------------


def own_folder() -> Path | None:
    """`$CONDENSE_ATLAS`, else `$XDG_DATA_HOME/condense/atlas`, else `~/.local/share/condense/atlas`; None: no home."""
    named = os.environ.get("CONDENSE_ATLAS")
    if named:
        return expanded(named)
    base = os.environ.get("XDG_DATA_HOME")
    try:
        return (Path(base) if base else Path.home() / ".local" / "share") / "condense" / "atlas"
    except RuntimeError:
        return None


def read_atlas() -> tuple[list[AtlasModel], list[str]]:
    """The models that ship, then the user's own, by name; and a line for each file that cannot be read."""
    shipped = sorted(resources.files("condense").joinpath("data/atlas").iterdir(), key=lambda file: file.name)
    models = [AtlasModel.from_json(file.read_text(encoding="utf-8")) for file in shipped if file.name.endswith(".json")]
    folder, own, problems = own_folder(), [], []
    try:
        files = sorted(folder.glob("*.json")) if folder else []
    except OSError as error:
        files, problems = [], [f"cannot look into {folder}: {error.strerror or error}"]
    for file in files:
        try:
            if file.stat().st_size > MOST_BYTES:
                raise UnavailableError(f"{file.stat().st_size:,} bytes are no entry of an atlas")
            own.append(_complete(AtlasModel.from_json(file)))
        except (CondenseError, OSError) as error:
            problems.append(f"{file}: {error}")
    return sorted(models, key=_model_name) + sorted(own, key=_model_name), problems


def _complete(model: AtlasModel) -> AtlasModel:
    """An entry with all that is read of it; UnavailableError for one that somebody else wrote, or cut."""
    lengths = {len(curve) for curve in model.curves.values()} - {len(model.depth)}
    if lengths or not {PLACED_BY, "effective_rank"} <= model.deep.keys():
        raise UnavailableError("its curves or deep numbers are not complete")
    windows = model.deep[PLACED_BY].per_text
    if windows is not None and len(windows) != len(model.corpus.documents):
        raise UnavailableError(f"it has {len(windows)} values of {len(model.corpus.documents)} windows")
    return model


def _model_name(model: AtlasModel) -> str:
    return model.name.lower()


def add(run: Diagnosis, name: str) -> Path:
    """Write a diagnosis to the user's own folder, replacing an earlier one of the same run; returns the file.

    UsageError for a run that nothing can be compared with: without documents, or without a deep mean cosine.
    """
    folder = own_folder()
    if folder is None:
        raise UsageError("there is no home folder to keep an atlas in", "set CONDENSE_ATLAS to a folder")
    own = run.deep.get(PLACED_BY)
    if not run.corpus.documents or own is None or own.per_text is None or own.value is None:
        raise UsageError(f"{name} has no deep mean cosine over known documents", "measure it again with this condense")
    entry = AtlasModel.of(run, name, source="own run")
    measured = f"{run.model.weights_sha256} {run.protocol.get('hash')} {run.corpus.windows_sha256}"
    slug = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-").lower()[:60] or "model"
    path = folder / f"{slug}-{sha256(measured)[:12]}.json"
    entry.to_json(path)
    return path
