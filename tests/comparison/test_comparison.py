"""Members side by side: differences, caveats, refusals, the peak of a run; from saved runs and from models."""

import copy
import json
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import Result

import condense as condense_package
from condense.cli.console import MANNER
from condense.comparison.comparability import caveats, differing_settings, refuse_incomparable
from condense.comparison.differences import difference
from condense.comparison.members import find, run_of, step_of
from condense.comparison.run import assembled, compare
from condense.comparison.trajectory import peak_of, scale_of
from condense.errors import UnavailableError, UsageError
from condense.intervals import NO_DOCUMENTS, ONE_DOCUMENT
from condense.records.base import Estimate
from condense.records.comparison import Comparison
from condense.records.diagnosis import Diagnosis
from condense.records.options import CompareOptions
from condense.records.treatment import Arm, Treatment
from tests.models.test_adapt import NanoGPT
from tests.models.test_bad_input import assert_refused, condense
from tests.moved import in_documents
from tests.moved import moved as moved_by_window

FAST = ["--num-texts", "8", "--max-length", "64", "--device", "cpu"]


@pytest.fixture(autouse=True)
def _manners(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CONDENSE_CACHE", str(tmp_path / "cache"))
    yield
    MANNER.quiet = MANNER.debug = False


@pytest.fixture
def llama(diagnosed: Callable[[str], Diagnosis]) -> Diagnosis:
    return diagnosed("llama")


def moved(run: Diagnosis, by: float, name: str, bits: float = 0.0, noise: float = 0.001) -> Diagnosis:
    """The same run with every cosine moved by about `by`, text by text, and every bits per byte by `bits`."""
    draw = random.Random(name)

    def shifted(of: Estimate, step: float) -> Estimate:
        if of.value is None or of.per_text is None:
            return of
        per = tuple(None if v is None else v + step + draw.gauss(0, noise) for v in of.per_text)
        known = [v for v in per if v is not None]
        return replace(of, value=sum(known) / len(known), per_text=per)

    keys = ("mean_cosine", "mean_cosine_without_top_dimensions")
    sites = tuple(
        replace(site, metrics={k: shifted(e, by) if k in keys else e for k, e in site.metrics.items()})
        for site in run.sites
    )
    deep = {k: shifted(e, by) if k in keys else e for k, e in run.deep.items()}
    quality = replace(run.quality, bits_per_byte=shifted(run.quality.bits_per_byte, bits))
    return replace(run, model=replace(run.model, id=name), sites=sites, deep=deep, quality=quality)


# --- differences ------------------------------------------------------------------------------------------


def test_a_pair_is_the_paired_difference(llama: Diagnosis) -> None:
    other = moved(llama, 0.1, "other", bits=0.5)
    found = compare(llama, other)
    assert (found.kind, [m.name for m in found.members]) == ("pair", [llama.model.id, "other"])
    effect = found.members[1].difference
    assert effect is not None and effect.paired and found.members[0].difference is None
    direct = difference(other, llama, llama.model.id)
    for key in ("mean_cosine", "effective_rank"):
        want, have = direct.deep[key], effect.deep[key]
        assert (have.value, have.low, have.high) == (want.value, want.low, want.high)
    assert effect.deep["mean_cosine"].value == pytest.approx(0.1, abs=0.002)
    assert found.findings[0].id == "more-condensed"
    assert {f.id for f in found.findings} >= {"cone-moved", "quality-lost"}
    assert found.caveats == ()


@pytest.mark.parametrize(
    ("by", "noise", "id"),
    [(0.1, 0.001, "more-condensed"), (-0.1, 0.001, "less-condensed"), (0.0, 0.001, "too-small-to-count"),
     (0.012, 0.05, "inconclusive")],
)  # fmt: skip
def test_the_words_follow_the_interval(llama: Diagnosis, by: float, noise: float, id: str) -> None:
    assert compare(llama, moved(llama, by, "x", noise=noise)).findings[0].id == id


def test_without_documents_nothing_is_decided(llama: Diagnosis) -> None:
    old = in_documents(llama, ())
    found = compare(old, in_documents(moved(llama, 0.1, "other"), ()))
    assert found.findings[0].id == "inconclusive" and NO_DOCUMENTS in found.findings[0].why
    assert any(NO_DOCUMENTS in caveat for caveat in found.caveats)
    one = compare(in_documents(llama, (0,) * 8), in_documents(moved(llama, 0.1, "other"), (0,) * 8))
    assert one.findings[0].id == "more-condensed" and any(ONE_DOCUMENT in caveat for caveat in one.caveats)


def test_members_are_corrected_alike(llama: Diagnosis) -> None:
    """A difference whose interval just excludes 0 has a word beside one other member, and none beside five."""
    edge = moved(llama, 0.018, "edge", noise=0.017)
    still = [moved(llama, 0.0, f"still {n}", noise=0.0005) for n in range(5)]
    for others, word in ((still[:1], "more condensed"), (still, "inconclusive")):
        member = compare(llama, edge, *others).members[1]
        assert member.difference is not None
        judged = member.difference.words["mean_cosine"]
        assert judged.alpha == pytest.approx(0.05 / (1 + len(others))) and judged.word == word, judged


def test_no_title_hides_what_else_changed(llama: Diagnosis) -> None:
    """Three members of one mean cosine: one lost quality and rose without its top dimensions."""
    lost = moved(llama, 0.0, "lost", bits=2.0)
    rose = in_documents(llama, llama.corpus.documents)
    deep = dict(lost.deep)
    key = "mean_cosine_without_top_dimensions"
    per = tuple((v or 0.0) + 0.107 for v in rose.deep[key].per_text or ())
    deep[key] = replace(deep[key], value=sum(per) / len(per), per_text=per)
    found = compare(llama, replace(lost, deep=deep), moved(llama, 0.0, "same", noise=0.06)).findings[0]
    assert found.title.startswith("None is shown to be more or less condensed than"), found.title
    assert "lost predicts the texts worse" in found.title and "without each text’s top three" in found.title
    assert found.severity == "warning"


def test_what_is_kept_of_a_member(llama: Diagnosis) -> None:
    member = compare(llama, moved(llama, 0.1, "other")).members[0]
    assert [s.label for s in member.sites] == [s.label for s in llama.sites]
    for site, whole in zip(member.sites, llama.sites, strict=True):
        assert set(site.metrics) == {"mean_cosine", "mean_cosine_without_top_dimensions", "effective_rank"}
        assert site.metrics["mean_cosine"].value == whole.metrics["mean_cosine"].value
        assert sum(site.histogram.counts) == sum(whole.histogram.counts) and len(site.histogram.counts) == 100
    assert all(of.per_text is None for of in member.deep.values())


def test_a_run_does_not_differ_from_itself(llama: Diagnosis) -> None:
    effect = compare(llama, llama).members[1].difference
    assert effect is not None and effect.deep["mean_cosine"].value == 0.0
    assert compare(llama, llama).findings[0].id == "too-small-to-count"


def test_round_trip_and_rows(llama: Diagnosis, tmp_path: Path) -> None:
    found = compare(llama, moved(llama, 0.1, "other"), moved(llama, -0.1, "third"))
    text = found.to_json(tmp_path / "c.json")
    again = Comparison.from_json(tmp_path / "c.json")
    assert again == found and again.to_json() == text
    first, second, _ = found.rows()
    assert first["member"] == llama.model.id and "mean_cosine_difference" not in first
    assert second["mean_cosine_difference_low"] <= second["mean_cosine_difference"]
    assert second["paired"] is True
    assert list(found.to_frame()["member"]) == [m.name for m in found.members]


# --- other tokenizers, other shapes -------------------------------------------------------------------------


def test_another_tokenizer_is_unpaired_with_the_caveat(diagnosed: Callable[[str], Diagnosis]) -> None:
    found = compare(diagnosed("llama"), diagnosed("gpt2"))
    effect = found.members[1].difference
    assert effect is not None and not effect.paired
    assert "more condensed" not in found.findings[0].title and "less condensed" not in found.findings[0].title
    assert effect.quality["loss"].value is None and "windows differ" in (effect.quality["loss"].reason or "")
    assert effect.quality["bits_per_byte"].value is not None
    assert any("another tokenizer" in caveat for caveat in found.caveats)


def test_other_objectives_and_stacks_are_said(diagnosed: Callable[[str], Diagnosis]) -> None:
    found = compare(diagnosed("gpt2"), diagnosed("bart"), force=True)
    effect = found.members[1].difference
    assert effect is not None and all(of.value is None for of in effect.quality.values())
    assert any("different things" in caveat for caveat in found.caveats)
    assert any("only the decoder" in caveat for caveat in found.caveats)
    assert {site.stack for site in found.members[1].sites} == {"decoder"}


def test_other_depth_and_width(llama: Diagnosis) -> None:
    other = replace(
        moved(llama, 0.1, "wide"), model=replace(llama.model, hidden_size=64, blocks=llama.model.blocks + 1)
    )
    effect = compare(llama, other).members[1].difference
    assert effect is not None and effect.sites == ()
    assert effect.deep["effective_rank"].value is None and effect.deep["mean_cosine"].value is not None


# --- refusals ------------------------------------------------------------------------------------------------


def test_what_differs_is_named(llama: Diagnosis) -> None:
    other = replace(
        moved(llama, 0.1, "other"),
        protocol={**llama.protocol, "hash": "x", "dtype": "bfloat16", "seed": 3},
        corpus=replace(llama.corpus, windows_sha256="w", requested=32),
    )
    said = ("dtype is float32 against bfloat16", "seed is 0 against 3", "number of texts is 8 against 32")
    assert differing_settings(llama, other) == said
    with pytest.raises(UsageError, match=".*".join(said)):
        compare(llama, other)
    forced = compare(llama, other, force=True)
    assert any("was not measured as" in c and "bfloat16" in c for c in forced.caveats)


def test_another_text_is_refused_but_another_reading_of_the_probe_is_not(llama: Diagnosis) -> None:
    probe = replace(llama, corpus=replace(llama.corpus, windows_sha256="w", sha256="s"))
    assert differing_settings(llama, probe) == ()
    own = replace(llama, corpus=replace(llama.corpus, windows_sha256="w", sha256="s", version=None, source="a.txt"))
    (said,) = differing_settings(llama, own)
    assert said.startswith("the text is") and said.endswith("against a.txt")
    with pytest.raises(UsageError, match="cannot be compared"):
        refuse_incomparable({"a": llama, "b": own})
    assert caveats({"a": llama, "b": llama}) == []


# --- a run over its steps --------------------------------------------------------------------------------------


def run_like(llama: Diagnosis, values: dict[int, float]) -> dict[str, Diagnosis]:
    base = llama.deep["mean_cosine"].value or 0.0
    return {f"checkpoint-{step}": moved(llama, v - base, f"run/checkpoint-{step}") for step, v in values.items()}


@pytest.mark.parametrize(
    ("values", "step", "early"),
    [
        ({0: 0.5, 10: 0.98, 100: 0.2, 1000: 0.1}, 10, True),
        ({0: 0.1, 100: 0.2, 900: 0.6, 1000: 0.3}, 900, False),
        ({0: 0.1, 10: 0.2, 100: 0.3, 1000: 0.4}, None, None),
        ({0: 0.5, 10: 0.504, 100: 0.5, 1000: 0.2}, None, None),
    ],
)
def test_the_peak(llama: Diagnosis, values: dict[int, float], step: int | None, early: bool | None) -> None:
    peak = peak_of(run_like(llama, values), list(values))
    assert (peak.step if peak else None) == step
    assert (peak.early if peak else None) == early
    if peak:
        assert (peak.rise.low or 0) > 0 > (peak.fall.high or 0)


def test_the_scale_that_fits() -> None:
    assert scale_of([0, 5, 10, 20, 40, 80]) == "log"
    assert scale_of([500, 1000, 1500, 2000, 2500]) == "linear"
    assert scale_of([0, 100]) == "linear"


def test_a_run_in_memory_is_a_trajectory(llama: Diagnosis) -> None:
    runs = run_like(llama, {0: 0.5, 10: 0.98, 100: 0.2})
    found = compare(*runs.values())
    assert found.kind == "trajectory" and found.trajectory is not None
    assert [m.step for m in found.members] == [0, 10, 100]
    assert found.findings[0].id == "early-peak" and "step 10" in found.findings[0].title
    assert found.trajectory.peak is not None and found.trajectory.run == "run"


# --- candidates ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "step"),
    [("run/checkpoint-500", 500), ("step1000", 1000), ("global_step20", 20), ("a/step-7.json", 7), ("my-model", None),
     ("llama-3", None), ("01-checkpoint-5", 5)],
)  # fmt: skip
def test_steps_in_names(name: str, step: int | None) -> None:
    assert step_of(name) == step


def checkpoints(folder: Path, *steps: int, tokenizer: str = "") -> Path:
    for step in steps:
        place = folder / f"checkpoint-{step}"
        place.mkdir(parents=True)
        (place / "config.json").write_text("{}")
    if tokenizer:
        (folder / tokenizer).write_text("{}")
    return folder


def test_a_folder_of_checkpoints_comes_in_numeric_order(tmp_path: Path) -> None:
    found = find([checkpoints(tmp_path, 1000, 20, 3, tokenizer="tokenizer.json")])
    assert [c.step for c in found] == [3, 20, 1000]
    assert {c.tokenizer for c in found} == {str(tmp_path)}
    assert run_of(found) == str(tmp_path)


def test_one_checkpoint_named_alone_takes_the_tokenizer_of_its_run(tmp_path: Path) -> None:
    folder = checkpoints(tmp_path, 1, 2, tokenizer="tokenizer.json")
    first, second = find([folder / "checkpoint-1", folder / "checkpoint-2"])
    assert (first.tokenizer, second.step, first.name) == (str(folder), 2, "checkpoint-1")


def test_revisions_are_steps_where_they_end_in_numbers() -> None:
    found = find(["org/model"], ["step2000", "step1000", "step10"])
    assert [(c.name, c.step, c.revision) for c in found] == [
        ("step10", 10, "step10"), ("step1000", 1000, "step1000"), ("step2000", 2000, "step2000"),
    ]  # fmt: skip
    assert run_of(found) == "org/model"
    assert [c.step for c in find(["org/model"], ["step1000", "main"])] == [None, None]


def test_names_are_told_apart(llama: Diagnosis, tmp_path: Path) -> None:
    for name in ("a", "b"):
        llama.to_json(tmp_path / f"{name}.json")
    assert [c.name for c in find([tmp_path / "a.json", tmp_path / "b.json"])] == ["a", "b"]
    assert [c.name for c in find(["org/x", "org/y", "other/x"])] == ["org/x", "y", "other/x"]
    assert [c.name for c in find(["org/x", "org/x"])] == ["org/x", "org/x (2)"]


@pytest.fixture
def treatment(llama: Diagnosis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A treatment out of nothing: its arms are the same run, moved; the probe is another text."""
    from tests.browser.test_treatment_page import treatment as made

    def arm(name: str, by: float) -> Arm:
        own = moved(llama, by, f"my-model {name}")
        probe = replace(own, corpus=replace(own.corpus, sha256="probe", windows_sha256="probe"))
        return Arm(own, probe)

    path = tmp_path / "condense.json"
    arms = {"before": arm("before", 0.0), "control": arm("control", 0.02), "treated": arm("treated", -0.1)}
    replace(made(), arms=arms).to_json(path)
    return path


# --- the command -------------------------------------------------------------------------------------------------


def assert_done(result: Result) -> None:
    assert result.exit_code == 0, result.output
    assert "Traceback" not in result.output


def saved(run: Diagnosis, path: Path) -> Path:
    run.to_json(path)
    return path


def test_the_command_on_saved_runs(llama: Diagnosis, tmp_path: Path) -> None:
    a = saved(llama, tmp_path / "a.json")
    b = saved(moved(llama, 0.1, "b"), tmp_path / "b.json")
    result = condense("compare", a, b, "-o", tmp_path / "out")
    assert_done(result)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "comparison.csv", "comparison.json", "report.html", "report.md",
    ]  # fmt: skip
    assert "more condensed" in result.stdout and "wrote" in result.stderr
    again = condense("report", tmp_path / "out" / "comparison.json", "--html", tmp_path / "again.html")
    assert_done(again)
    assert (tmp_path / "again.html").read_text() == (tmp_path / "out" / "report.html").read_text()
    shown = condense("report", tmp_path / "out" / "comparison.json")
    assert shown.stdout == result.stdout


def test_the_command_on_models_and_a_saved_run(tiny: Callable[[str], Path], llama: Diagnosis, tmp_path: Path) -> None:
    """The model is measured as the saved run was; the same weights give no difference at all."""
    before = saved(llama, tmp_path / "before.json")
    result = condense("compare", tiny("qwen2"), tiny("gpt2"), *FAST, "-o", tmp_path / "out")
    assert_done(result)
    found = Comparison.from_json(tmp_path / "out" / "comparison.json")
    assert [m.name for m in found.members] == ["qwen2", "gpt2"]
    assert found.members[1].difference is not None and found.members[1].difference.paired  # one tokenizer
    assert {p.name for p in (tmp_path / "out" / "members").iterdir()} == {"qwen2.json", "gpt2.json"}
    other = condense("compare", before, tiny("llama"), "--device", "cpu")  # the fixture's own setting is 32
    assert other.exit_code == 2 and "spectral_tokens is 32 against 256" in other.stderr and "--force" in other.stderr
    same = condense("compare", tmp_path / "out" / "members" / "gpt2.json", tiny("gpt2"), "--device", "cpu",
                    "--json", tmp_path / "same.json")  # fmt: skip
    assert_done(same)
    effect = Comparison.from_json(tmp_path / "same.json").members[1].difference
    assert effect is not None and effect.paired and effect.deep["mean_cosine"].value == 0.0


def test_a_run_of_checkpoints_with_a_damaged_one(
    tiny: Callable[[str], Path], tmp_path: Path, tokenizers: dict[str, Any]
) -> None:
    import shutil

    run = tmp_path / "run"
    for step, name in ((1, "gpt2"), (2, "qwen2"), (10, "qwen2"), (20, "gpt2")):
        shutil.copytree(tiny(name), run / f"checkpoint-{step}", ignore=shutil.ignore_patterns("tokenizer*", "special*"))
    tokenizers["bytes"].save_pretrained(run)
    weights = run / "checkpoint-2" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    result = condense("compare", run, *FAST, "--json", tmp_path / "c.json")
    assert result.exit_code == 3
    assert "checkpoint-2 is left out" in result.stderr and "could not be measured: checkpoint-2" in result.stderr
    found = Comparison.from_json(tmp_path / "c.json")
    assert [m.step for m in found.members] == [1, 10, 20] and found.kind == "trajectory"
    assert [f.name for f in found.failures] == ["checkpoint-2"]
    assert any("checkpoint-2 could not be measured" in caveat for caveat in found.caveats)


def test_checkpoints_of_two_runs_keep_their_names(llama: Diagnosis, tmp_path: Path) -> None:
    for run in ("a", "b"):
        (tmp_path / run).mkdir()
        moved(llama, 0.1, f"{run}/checkpoint-5").to_json(tmp_path / run / "checkpoint-5.json")
    found = compare(tmp_path / "a/checkpoint-5.json", tmp_path / "b/checkpoint-5.json")
    assert [(m.name, m.step) for m in found.members] == [("a/checkpoint-5", None), ("b/checkpoint-5", None)]
    assert found.trajectory is None and "step 5" not in found.to_html(plotlyjs="none")


def test_python_measures_too(tiny: Callable[[str], Path]) -> None:
    found = compare(tiny("gpt2"), tiny("qwen2"), settings=CompareOptions(num_texts=4, max_length=32))
    assert found.reference.corpus.texts == 4 and found.reference.corpus.length == 32
    assert found.members[1].difference is not None and found.members[1].difference.paired


# --- in memory -------------------------------------------------------------------------------------------------


def test_checkpoints_in_memory(opened: Callable[[str], Any], tiny: Callable[[str], Path]) -> None:
    """As the same models by name, and each stays in the mode that it was in."""
    llama, qwen = opened("llama"), opened("qwen3")
    llama.model.train()
    options = CompareOptions(num_texts=3, max_length=32)
    try:
        found = compare(llama, qwen, settings=options)
        assert llama.model.training and not qwen.model.training
    finally:
        llama.model.eval()
    named = compare(tiny("llama"), tiny("qwen3"), settings=options, device="cpu")
    assert [member.source for member in found.members] == ["in memory", "in memory"]
    for ours, theirs in zip(found.members, named.members, strict=True):
        assert ours.deep["mean_cosine"].value == theirs.deep["mean_cosine"].value
        assert ours.model.weights_sha256 == theirs.model.weights_sha256


def test_modules_in_memory(opened: Callable[[str], Any]) -> None:
    """Of any class, on token ids; a module and a changed copy of it are read token by token."""
    torch.manual_seed(0)
    module, ids = NanoGPT(), torch.randint(0, 61, (4000,))
    other = copy.deepcopy(module)
    with torch.no_grad():
        other.lm_head.weight.mul_(1.5)
    windows = condense_package.windows(ids, num_texts=4, max_length=32)
    found = compare(module, other, windows=windows)
    assert [member.name for member in found.members] == ["NanoGPT (1)", "NanoGPT (2)"] and found.kind == "pair"
    second = found.members[1]
    assert second.difference is not None and second.difference.deep["mean_cosine"].value == 0.0
    assert second.same is not None and second.same.word not in ("identical", "not compared") and module.training
    assert compare(module, condense_package.analyze(module, windows), windows=windows).members[1].difference is not None
    transformer = opened("gpt2").model
    ours = compare(transformer, copy.deepcopy(transformer), windows=windows)
    assert ours.members[1].same is not None and ours.members[1].same.word == "identical"


def test_what_is_in_memory_has_to_be_whole(opened: Callable[[str], Any], llama: Diagnosis) -> None:
    with pytest.raises(ValueError, match="not both"):
        compare(opened("llama"), "llama")
    with pytest.raises(ValueError, match="int is no name, diagnosis, checkpoint or module"):
        compare(llama, 5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="two or more"):
        compare(NanoGPT())
    with pytest.raises(ValueError, match="diagnosis 2 is of the weights alone"):
        compare(llama, replace(llama, sites=()))
    with pytest.raises(ValueError, match=r"NanoGPT \(1\) has no tokenizer: give windows=condense.windows"):
        compare(NanoGPT(), NanoGPT())


# --- bad input -------------------------------------------------------------------------------------------------


def test_a_comparison_of_one_is_refused_where_it_is_read(llama: Diagnosis) -> None:
    """A saved run that somebody cut: every command ended in an internal error."""
    data = json.loads(compare(llama, llama).to_json())
    for count in (0, 1):
        with pytest.raises(UnavailableError, match=f"members: {count} where two or more are compared"):
            Comparison.from_json({**data, "members": data["members"][:count]})


def test_bad_input(llama: Diagnosis, tmp_path: Path, tiny: Callable[[str], Path]) -> None:
    a = saved(llama, tmp_path / "a.json")
    unknown = tmp_path / "new.json"
    unknown.write_text('{"schema":"condense.other/9"}')
    broken = tmp_path / "broken.json"
    broken.write_text('{"schema":"condense.diagnosis/1","condense":"x"}')
    (tmp_path / "empty").mkdir()
    one = checkpoints(tmp_path / "one", 5)
    many = checkpoints(tmp_path / "many", 5, 6)
    both = saved(moved(llama, 0.1, "b"), tmp_path / "b.json")
    condense("compare", a, both, "--json", tmp_path / "c.json")
    for arguments, code, part in (
        ([a], 2, "nothing to compare"),
        ([a, unknown], 3, "unknown kind"),
        ([a, broken], 3, "broken.json"),
        ([a, tmp_path / "missing.json"], 3, "no such run file"),
        ([a, tmp_path / "missing/"], 3, "no such file"),
        ([tmp_path / "empty"], 2, "holds no checkpoints"),
        ([one], 2, "nothing to compare"),
        ([many, a], 2, "holds the checkpoints of a run"),
        ([tiny("gpt2")], 2, "is one model"),
        ([a, tmp_path / "c.json"], 2, "is a comparison already"),
        ([a, both, "--revisions", "x,y"], 2, "--revisions"),
        (["org/model", "--revisions", "x"], 2, "--revisions"),
    ):
        assert_refused(condense("compare", *arguments), code, part)


def test_one_bad_member_does_not_end_the_others(llama: Diagnosis, tmp_path: Path) -> None:
    """Whatever is wrong with it: a damaged file, a newer one, nothing there, a folder without a model."""
    a, b = saved(llama, tmp_path / "a.json"), saved(moved(llama, 0.1, "b"), tmp_path / "b.json")
    cut = tmp_path / "cut.json"
    cut.write_text(Path(a).read_text()[:2000])
    newer = tmp_path / "newer.json"
    newer.write_text(Path(a).read_text().replace("condense.diagnosis/1", "condense.diagnosis/9", 1))
    wrong = tmp_path / "wrong.json"
    wrong.write_text(Path(a).read_text().replace('"mean_cosine"', '"mean_cosine_of_another"').replace('"value"', '"v"'))
    (tmp_path / "folder").mkdir()
    bad = [cut, newer, wrong, tmp_path / "missing.json", tmp_path / "missing/", tmp_path / "folder"]
    result = condense("compare", cut, a, *bad[1:], b, "--device", "cpu", "--json", tmp_path / "c.json")
    assert result.exit_code == 3 and "Traceback" not in result.output
    found = Comparison.from_json(tmp_path / "c.json")
    assert [member.source for member in found.members] == [str(a), str(b)]
    assert len(found.failures) == len(bad) and all(failure.exit_code == 3 for failure in found.failures)
    assert found.members[1].difference is not None and found.members[1].difference.against == "llama"


def test_a_folder_that_may_not_be_read_does_not_end_the_others(
    llama: Diagnosis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = saved(llama, tmp_path / "a.json"), saved(moved(llama, 0.1, "b"), tmp_path / "b.json")
    (tmp_path / "closed").mkdir()
    listed = Path.iterdir

    def closed(self: Path) -> Iterator[Path]:
        if self.name == "closed":
            raise PermissionError(13, "Permission denied", str(self))
        return listed(self)

    monkeypatch.setattr(Path, "iterdir", closed)
    result = condense("compare", a, b, tmp_path / "closed", "--json", tmp_path / "c.json")
    assert result.exit_code == 3 and "closed is left out: no permission" in result.stderr
    assert len(Comparison.from_json(tmp_path / "c.json").members) == 2


def test_a_run_that_opens_while_it_unlearns_is_no_good_news(llama: Diagnosis) -> None:
    """A cone that opens is green only where prediction is as good or better: a diverged run opens too."""

    def ends(bits: float, noise: float = 0.0) -> Any:
        rng = np.random.default_rng(0)
        cost = bits + rng.normal(0, noise, llama.corpus.texts)
        last = moved_by_window(llama, -0.1, bits=tuple(cost))
        return assembled(
            {"a": llama, "b": last}, steps={"a": 0, "b": 100}, places={"a": "a", "b": "b"}, run="r"
        ).findings[0]

    assert (ends(0.0).severity, ends(0.0).title) == ("good", "The run ends less condensed than it began")
    assert ends(0.3).severity == "warning" and ends(0.3).title.endswith("and predicts the texts worse")
    assert ends(0.0, noise=0.5).severity == "info"


def test_a_family_s_headline_names_what_was_lost(llama: Diagnosis) -> None:
    """Rounding that lowers the cosine and ruins the predictions is not told as "less condensed" alone."""
    top = "mean_cosine_without_top_dimensions"

    def title(**members: Diagnosis) -> str:
        runs = {"a": llama, **members}
        return assembled(runs, steps=dict.fromkeys(runs), places={n: n for n in runs}).findings[0].title

    same, ruined = llama, moved_by_window(llama, -0.05, keys=("mean_cosine",), bits=0.5)
    inner = moved_by_window(ruined, 0.05, keys=(top,))
    assert title(b=inner, c=same) == (
        "b is less condensed than a, the others differ by less than what counts, but b predicts the texts worse and b "
        "is more condensed without each text’s top three dimensions"
    )
    both = title(b=ruined, c=moved_by_window(llama, 0.05, bits=0.5))
    assert both == "Against a, 1 of 2 are more condensed and 1 less, but b and c predict the texts worse"


def test_a_damaged_saved_run_of_a_trajectory_is_left_out(llama: Diagnosis, tmp_path: Path) -> None:
    for step in (1, 2, 10):
        saved(moved(llama, step / 100, f"run/checkpoint-{step}"), tmp_path / "runs" / f"step{step}.json")
    (tmp_path / "runs" / "step5.json").write_text("{")
    found = compare(tmp_path / "runs")
    assert found.kind == "trajectory" and [member.step for member in found.members] == [1, 2, 10]
    assert [failure.name for failure in found.failures] == ["step5.json"]


def test_only_failures_are_the_error_itself(tmp_path: Path) -> None:
    result = condense("compare", checkpoints(tmp_path / "a", 1, 2), "--device", "cpu")
    assert result.exit_code == 3 and "Traceback" not in result.output and result.stdout == ""


def test_an_argument_of_the_wrong_kind(llama: Diagnosis) -> None:
    with pytest.raises(ValueError, match="not both"):
        compare(llama, "name")
    with pytest.raises(ValueError, match="two or more"):
        compare(llama)
    with pytest.raises(UnavailableError):
        Comparison.from_json({"schema": "condense.diagnosis/1"})


# --- a real run, as small as can be -------------------------------------------------------------------------------


def test_a_pretraining_run_and_its_early_peak(tmp_path: Path) -> None:
    """From random weights: the mean cosine climbs in the first steps and comes down again."""
    from tests.benchmarks.trajectory import pretrain

    run = pretrain(
        tmp_path / "run", steps=(0, 4, 8, 16, 40, 90), vocabulary=400, blocks=2, width=64, length=64, batch=8,
        rate=5e-3, quiet=True,
    )  # fmt: skip
    result = condense("compare", run, *FAST, "-o", tmp_path / "out")
    assert_done(result)
    found = Comparison.from_json(tmp_path / "out" / "comparison.json")
    assert found.trajectory is not None and found.trajectory.scale == "log"
    values = [m.deep["mean_cosine"].value or 0.0 for m in found.members]
    peak = found.trajectory.peak
    assert peak is not None and peak.early and peak.value == max(values), values
    assert found.findings[0].id == "early-peak"
    assert f"peak {peak.step}" in result.stdout
    bits = [m.quality.bits_per_byte.value or math.inf for m in found.members]
    assert bits[-1] < bits[0]


def test_a_treatment_gives_its_arms(treatment: Path, llama: Diagnosis, tmp_path: Path) -> None:
    assert [c.name for c in find([treatment])] == ["before", "control", "treated"]
    run = Treatment.from_json(treatment)
    assert find([treatment])[2].diagnosis == run.arms["treated"].validation
    probe = saved(run.arms["before"].probe, tmp_path / "probe.json")
    with_probe = find([probe, treatment])
    assert [c.diagnosis for c in with_probe[1:]] == [arm.probe for arm in run.arms.values()]


def test_runs_of_one_model_are_called_by_what_was_done(llama: Diagnosis, tmp_path: Path) -> None:
    names = ("m", "m (control, seed 0)", "m (dispersion=1, seed 0)", "other (control)")
    files = [saved(moved(llama, 0.1, name), tmp_path / f"{number}.json") for number, name in enumerate(names)]
    found = compare(*files)
    assert [member.name for member in found.members] == [
        "m",
        "control, seed 0",
        "dispersion=1, seed 0",
        "other (control)",
    ]
