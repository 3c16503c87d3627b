"""The atlas: only what was measured alike is set beside a model, and what is said of it is what intervals allow."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import scipy.stats
from typer.testing import CliRunner

from condense.cli.app import app
from condense.comparison.atlas import Standing, add, read_atlas, standing
from condense.diagnosis.run import protocol
from condense.errors import UnavailableError, UsageError
from condense.geometry import SPECTRAL_TOKENS
from condense.records.atlas import AtlasModel
from condense.records.diagnosis import Diagnosis
from condense.records.options import MeasureOptions
from condense.texts.windows import MAX_LENGTH
from tests.moved import in_documents, moved

HOSTILE = "</script><b>\x1b[31m../../etc/x\n::error::"


@pytest.fixture
def run(diagnosed: Callable[[str], Diagnosis]) -> Diagnosis:
    return in_documents(diagnosed("gpt2"), range(8))


@pytest.fixture(autouse=True)
def _own_atlas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONDENSE_ATLAS", str(tmp_path / "atlas"))


def entry(run: Diagnosis, by: Any = 0.0, name: str = "other", **model: Any) -> AtlasModel:
    """A model of the atlas whose cosines are `by` higher; with weights of its own."""
    other = moved(run, by)
    info = replace(other.model, **{"weights_sha256": name * 3, **model})
    return AtlasModel.of(replace(other, model=info), name)


def condense(*words: object) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words])


# --- what an entry keeps -----------------------------------------------------------------------------


def test_an_entry_is_small_and_survives_its_json(run: Diagnosis, tmp_path: Path) -> None:
    made = AtlasModel.of(run, "gpt2", source="a package", licence="MIT")
    made.to_json(tmp_path / "a.json")
    assert AtlasModel.from_json(tmp_path / "a.json") == made
    assert (tmp_path / "a.json").stat().st_size < 8000
    assert made.corpus.windows == () and made.corpus.documents == run.corpus.documents
    assert made.depth == (0.0, *(pytest.approx(block / 3) for block in (1, 2, 3)))
    assert made.deep["mean_cosine"].value == pytest.approx(run.deep["mean_cosine"].value, rel=1e-5)
    assert [row["mean_cosine"] for row in made.rows()] == list(made.curves["mean_cosine"])


def test_a_curve_is_read_between_its_sites(run: Diagnosis) -> None:
    made = AtlasModel.of(run, "gpt2")
    curve = [value for value in made.curves["mean_cosine"] if value is not None]
    for depth in (0.0, 0.1, 1 / 3, 0.5, 0.9, 1.0):
        expected = float(np.interp(depth, made.depth, curve))
        assert made.at("mean_cosine", depth) == pytest.approx(expected, rel=1e-9)
    holed = replace(made, curves={"mean_cosine": (0.1, None, 0.3, 0.4)})
    assert holed.at("mean_cosine", 0.2) is None and holed.at("mean_cosine", 2 / 3) == pytest.approx(0.3)
    assert made.at("no such number", 0.5) is None and replace(made, depth=()).at("mean_cosine", 0.5) is None


# --- where a model stands ----------------------------------------------------------------------------


def test_more_less_and_open(run: Diagnosis) -> None:
    models = [entry(run, -0.2, "lower"), entry(run, 0.2, "higher"), entry(run, 0.005, "near")]
    found = standing(run, models)
    assert found is not None and found.places == ("more", "less", "open")
    assert found.words == (
        "more condensed than 1 of 3 models of the atlas that were measured alike; less than 1; not to be told apart "
        "from 1"
    )


@pytest.mark.parametrize("same_windows", [True, False])
@pytest.mark.parametrize("count", [1, 5])
def test_the_interval_decides(run: Diagnosis, same_windows: bool, count: int) -> None:
    """Against scipy: paired t where the token ids are the same, else Welch; at .05 over the number of models."""
    rng = np.random.default_rng(3)
    answers = set()
    for size in (0.002, 0.02, 0.03, 0.04, 0.06, 0.1, 0.3):
        shift = size + rng.normal(0, 0.06, 8)
        other = entry(run, shift, "other")
        if not same_windows:
            other = replace(other, corpus=replace(other.corpus, windows_sha256="another tokenizer"))
        mine, theirs = (np.array(e.per_text, float) for e in (run.deep["mean_cosine"], other.deep["mean_cosine"]))
        welch = scipy.stats.ttest_ind(mine, theirs, equal_var=False)
        test = scipy.stats.ttest_rel(mine, theirs) if same_windows else welch
        low, high = test.confidence_interval(1 - 0.05 / count)
        decided = (low > 0 or high < 0) and abs(mine.mean() - theirs.mean()) >= 0.01
        models = [other, *(entry(run, 0.0, f"filler {index}") for index in range(count - 1))]
        found = standing(run, models)
        assert found is not None
        expected = "open" if not decided else "more" if mine.mean() > theirs.mean() else "less"
        assert found.places[0] == expected, size
        answers.add(expected)
    assert "open" in answers and "less" in answers


def test_an_entry_of_fewer_windows_under_the_same_name_is_read(run: Diagnosis) -> None:
    """What somebody else wrote ends no command."""
    other = entry(run, 0.3)
    mean = other.deep["mean_cosine"]
    corpus = replace(other.corpus, documents=other.corpus.documents[1:])
    short = {**other.deep, "mean_cosine": replace(mean, per_text=(mean.per_text or ())[1:])}
    found = standing(run, [replace(other, corpus=corpus, deep=short)])
    assert found is not None and found.places == ("less",)


def test_only_what_was_measured_alike(run: Diagnosis) -> None:
    def changed(**protocol: Any) -> AtlasModel:
        other = entry(run, 0.2)
        return replace(other, protocol={**other.protocol, **protocol})

    def on(**corpus: Any) -> AtlasModel:
        other = entry(run, 0.2)
        return replace(other, corpus=replace(other.corpus, windows_sha256="w", **corpus))

    unlike = [
        changed(hash="another"),
        changed(versions={**run.protocol["versions"], "mean_cosine": 1}),
        on(requested=9),
        on(sha256="other documents", source="my.txt", version=None),
    ]
    for other in unlike:
        assert standing(run, [other]) is None
    assert standing(run, []) is None
    found = standing(run, [*unlike, on(), changed(versions={**run.protocol["versions"], "dimension": 9})])
    assert found is not None and len(found.others) == 2


def test_a_model_is_not_held_against_itself(run: Diagnosis) -> None:
    known = replace(run, model=replace(run.model, weights_sha256="a" * 64))
    itself = AtlasModel.of(known, "itself")
    assert standing(known, [itself]) is None
    found = standing(known, [itself, entry(run, 0.2)])
    assert found is not None and found.itself
    assert found.words == (
        "more condensed than 0 of 1 model of the atlas that were measured alike (this very model is in it, and left "
        "out); less than 1"
    )


def test_without_intervals_nothing_is_claimed(run: Diagnosis) -> None:
    found = standing(in_documents(run, ()), [entry(run, 0.5)])
    assert found is not None and found.places == ("open",)


def test_the_nearest_in_size_are_drawn(run: Diagnosis) -> None:
    sizes = [1, 10**4, 3 * 10**4, 10**5, 10**6, 10**9]
    models = [entry(run, 0.1, f"m{index}", parameters=size) for index, size in enumerate(sizes)]
    found = standing(replace(run, model=replace(run.model, parameters=30_000)), models)
    assert found is not None and [model.name for model in found.nearest] == ["m1", "m2", "m3", "m4"]


# --- the folder --------------------------------------------------------------------------------------


def test_add_and_list(run: Diagnosis, tmp_path: Path) -> None:
    run.to_json(tmp_path / "run.json")
    before = len(read_atlas()[0])
    for _ in range(2):  # the same run again takes the place of the first
        result = condense("atlas", "add", tmp_path / "run.json")
        assert result.exit_code == 0 and "wrote" in result.stderr
    models, problems = read_atlas()
    assert len(models) == before + 1 and not problems
    assert models[-1].deep["mean_cosine"].value == pytest.approx(run.deep["mean_cosine"].value, rel=1e-5)
    result = condense("atlas")
    assert result.exit_code == 0 and models[-1].name in result.stdout and str(len(models)) in result.stdout
    add(replace(run, protocol={**run.protocol, "hash": "another"}), "again")
    assert len(read_atlas()[0]) == before + 2


def test_a_hostile_name_stays_a_name(run: Diagnosis, tmp_path: Path) -> None:
    path = add(run, HOSTILE)
    assert path.parent == tmp_path / "atlas" and path.name.isascii() and set(path.name) & set("/<") == set()
    other = moved(run, 0.2)
    other = replace(other, model=replace(other.model, weights_sha256="b" * 64))
    result = condense("atlas")
    assert result.exit_code == 0 and "\x1b" not in result.stdout and "\n::error" not in result.stdout
    page, markdown = other.to_html(plotlyjs="none"), other.to_markdown()
    assert "atlas: &lt;/script&gt;&lt;b&gt;" in page and "</script><b>" not in page and "\x1b" not in page + markdown


def test_what_cannot_be_read_is_told_and_hides_nothing(run: Diagnosis, tmp_path: Path) -> None:
    folder = tmp_path / "atlas"
    folder.mkdir()
    (folder / "broken.json").write_text("{")
    (folder / "huge.json").write_text(" " * (1 << 21))
    (folder / "folder.json").mkdir()
    (folder / "newer.json").write_text('{"schema": "condense.atlas/2"}')
    whole = entry(run)
    mean = whole.deep["mean_cosine"]
    replace(whole, deep={}).to_json(folder / "no-numbers.json")
    replace(whole, depth=whole.depth[1:]).to_json(folder / "no-depth.json")
    short = replace(mean, per_text=(mean.per_text or ())[1:])
    replace(whole, deep={**whole.deep, "mean_cosine": short}).to_json(folder / "short.json")
    add(run, "good")
    models, problems = read_atlas()
    assert models[-1].name == "good" and len(problems) == 7
    standing(run)
    result = condense("atlas")
    assert result.exit_code == 0 and result.stderr.count("not read: ") == 7 and "Traceback" not in result.output
    assert "upgrade" in json.dumps(problems) or "newer" in json.dumps(problems)


def test_what_cannot_be_added(run: Diagnosis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    matrices = replace(run, sites=(), deep={})  # as of `analyze --weights-only`
    for nothing in (in_documents(run, ()), matrices):
        with pytest.raises(UsageError, match="no deep mean cosine over known documents"):
            add(nothing, "x")
    assert standing(matrices, [entry(run)]) is None
    assert condense("atlas", "add", tmp_path / "missing.json").exit_code == 3
    (tmp_path / "other.json").write_text('{"schema": "condense.trial/1"}')
    assert condense("atlas", "add", tmp_path / "other.json").exit_code == 3
    for words in (["add"], ["remove", "x"], ["list", "x"], [""]):
        result = condense("atlas", *words)
        assert result.exit_code == 2 and len(result.stderr.splitlines()) == 2, words
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CONDENSE_ATLAS", str(tmp_path / "file"))
    with pytest.raises((UsageError, UnavailableError)):
        add(run, "x")
    assert read_atlas()[0] is not None and condense("atlas").exit_code == 0


def test_without_a_home_folder(run: Diagnosis, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CONDENSE_ATLAS", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("none")))
    assert condense("atlas").exit_code == 0
    with pytest.raises(UsageError, match="no home folder"):
        add(run, "x")


# --- what is drawn and said --------------------------------------------------------------------------


def test_every_surface_says_it(run: Diagnosis, tmp_path: Path) -> None:
    own = replace(run, model=replace(run.model, weights_sha256="c" * 64))
    assert "of the atlas" not in own.to_markdown() and "atlas: " not in own.to_html(plotlyjs="none")
    add(moved(run, 0.2), "Higher <model>")
    found = standing(own)
    assert isinstance(found, Standing)
    assert f"The model is {found.words}" in own.to_markdown()
    page = own.to_html(plotlyjs="none")
    assert found.words in page and "atlas: Higher &lt;model&gt;" in page and "Higher <model>" not in page
    own.to_json(tmp_path / "run.json")
    shown = condense("report", tmp_path / "run.json")
    assert found.words[0].upper() + found.words[1:] in " ".join(shown.stdout.split())


# --- the models that ship ----------------------------------------------------------------------------


def test_the_models_that_ship_were_measured_as_today() -> None:
    """Fails when a default or a definition changes: make atlas measures them again."""
    models, problems = read_atlas()
    windows: Any = SimpleNamespace(info=SimpleNamespace(length=MAX_LENGTH))
    today = protocol(windows, "float32", SPECTRAL_TOKENS, MeasureOptions.seed)
    assert not problems
    assert [model.name.split()[0] for model in models] == ["all-MiniLM-L6-v2", "Gemma", "SmolLM2-135M-Instruct"]
    for model in models:
        assert model.protocol["hash"] == today["hash"]
        assert model.protocol["versions"]["mean_cosine"] == today["versions"]["mean_cosine"]
        assert model.corpus.texts == model.corpus.requested == MeasureOptions.num_texts
        assert model.licence and model.source and len(model.depth) == model.model.blocks + 1
        mean = model.deep["mean_cosine"]
        assert mean.value is not None and mean.low is not None and mean.high is not None and mean.per_text is not None
        assert mean.low < mean.value < mean.high
        assert math.isclose(np.mean(np.array(mean.per_text, float)), mean.value, rel_tol=1e-4)
