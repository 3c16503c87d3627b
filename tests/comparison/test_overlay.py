"""Several runs over their steps: names of steps, what of a folder is a run, what is paired, what the record says."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from condense.cli.console import MANNER
from condense.comparison.checkpoints import model_inside, read_run, step_in_run, step_of
from condense.comparison.members import find
from condense.comparison.overlay import where
from condense.comparison.run import compare
from condense.errors import UnavailableError, UsageError
from condense.intervals import ALPHA
from condense.records.comparison import Comparison
from condense.records.diagnosis import Diagnosis
from condense.report.comparison.text import comparison_markdown
from tests.models.test_bad_input import assert_refused, condense
from tests.moved import moved

FAST = ["--num-texts", "8", "--max-length", "64", "--device", "cpu"]
Runs = Callable[..., list[Path]]


@pytest.fixture(autouse=True)
def _manners() -> Iterator[None]:
    yield
    MANNER.quiet = MANNER.debug = False


@pytest.fixture
def llama(diagnosed: Callable[[str], Diagnosis]) -> Diagnosis:
    return diagnosed("llama")


def saved_run(run: Diagnosis, folder: Path, shifts: Mapping[int, float], bits: float = 0.0, seed: int = 0) -> Path:
    """A folder of saved runs whose mean cosine is moved by so much at each step."""
    folder.mkdir(parents=True)
    for number, (step, by) in enumerate(shifts.items()):
        made = moved(run, by, noise=0.002, seed=seed + number, bits=bits, name=f"{folder.name}/checkpoint-{step}")
        made.to_json(folder / f"checkpoint-{step}.json")
    return folder


def model_folder(path: Path, **state: Any) -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text("{}")
    if state:
        (path / "trainer_state.json").write_text(json.dumps(state))
    return path


# --- names -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("checkpoint-500", 500),  # Trainer
        ("stage1-step150-tokens1B", 150),  # OLMo
        ("step1000-unsharded", 1000),
        ("step1000-tokens4.2B", 1000),
        ("step143000", 143000),  # Pythia
        ("epoch=3-step=1000", 1000),  # Lightning
        ("epoch=3-step=1000-v1", 1000),
        ("step-00001000", 1000),  # litgpt
        ("iter-001000-ckpt", 1000),
        ("ep0-ba1000-rank0", 1000),  # Composer
        ("ba250", 250),
        ("global_step20", 20),  # DeepSpeed, verl
        ("iter_0001000", 1000),  # Megatron
        ("run/step7.json", 7),
        ("llama-3", None),
        ("batch-32", None),
        ("step-by-step-7b", None),
        ("checkpoint-best", None),
    ],
)
def test_a_step_is_read_from_every_trainer_s_name(name: str, step: int | None) -> None:
    assert step_of(name) == step
    assert step_in_run(Path(name).name) == step


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("1000", 1000),
        ("000500", 500),
        ("step1000-ema", 1000),
        ("checkpoint-500-merged", 500),
        ("final", None),
        ("checkpoint_1_1000", 1000),
        ("checkpoint-epoch=2-step=40-best", 40),
    ],
)
def test_in_a_run_a_name_may_say_more(name: str, step: int | None) -> None:
    if name == "checkpoint_1_1000":  # the epoch and the update of fairseq: which is the step is not known
        assert step_in_run(name) is None
    else:
        assert step_in_run(name) == step


def test_what_of_a_folder_is_used_and_what_is_named(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for name in ("checkpoint-100", "checkpoint-200", "checkpoint-200-merged", "checkpoint-best", "logs/version_0"):
        if name.startswith("logs"):
            (run / name).mkdir(parents=True)
        else:
            model_folder(run / name)
    model_folder(run / "final", global_step=300, best_model_checkpoint=None)
    model_folder(run / "checkpoint-last", global_step=200)
    model_folder(run / "chosen", global_step=300, best_model_checkpoint="run/checkpoint-100")
    (run / "tmp-checkpoint-300").mkdir()
    (run / "optimizer-final").mkdir()
    (run / "latest").symlink_to(run / "checkpoint-200")
    (run / "config.json").write_text("{}")
    folder, entries, left_out = read_run(run)
    assert folder == run
    assert [(entry.name, entry.step) for entry in entries] == [
        ("checkpoint-100", 100),
        ("checkpoint-200", 200),
        ("final-step-300", 300),
    ]
    assert entries[-1].path == str(run / "final")
    said = "\n".join(left_out)
    for part in (
        "checkpoint-200-merged is left out: step 200 is checkpoint-200",
        "checkpoint-best is left out: neither its name nor a trainer_state.json in it says its step",
        "checkpoint-last is left out: step 200 is checkpoint-200",
        "chosen is left out: it may be the best checkpoint or that of step 300",
        "tmp-checkpoint-300 is left out: it was not finished",
        "optimizer-final is left out: there is no model in it",
        "latest is left out: it is checkpoint-200",
        "the model in the folder itself is left out: neither",
    ):
        assert part in said, (part, said)
    assert len(left_out) == 8 and "version_0" not in said


def test_the_model_in_the_folder_itself_is_the_last_step_where_the_trainer_says_so(tmp_path: Path) -> None:
    run = model_folder(tmp_path / "run", global_step=30)
    model_folder(run / "checkpoint-10")
    assert [(entry.name, entry.step) for entry in read_run(run)[1]] == [("checkpoint-10", 10), ("final-step-30", 30)]
    (run / "trainer_state.json").write_text('{"global_step": "30"}')
    assert [entry.step for entry in read_run(run)[1]] == [10]


def test_of_two_of_a_step_the_one_with_a_model_is_used(tmp_path: Path) -> None:
    for step in (1000, 2000):
        (tmp_path / f"step{step}").mkdir()  # OLMo's sharded state
        (tmp_path / f"step{step}" / "optim.pt").write_bytes(b"x")
        model_folder(tmp_path / f"step{step}-unsharded")
    _, entries, left_out = read_run(tmp_path)
    assert [entry.name for entry in entries] == ["step1000-unsharded", "step2000-unsharded"]
    assert left_out == [f"step{n} is left out: step {n} is step{n}-unsharded" for n in (1000, 2000)]
    for step in range(3000, 60_000, 1000):
        (tmp_path / f"step{step}").mkdir()
        model_folder(tmp_path / f"step{step}-unsharded")
    assert read_run(tmp_path)[2] == [
        "step1000, step2000, step3000 and 56 more are left out: another checkpoint is of the same step"
    ]


def test_only_the_first_stage_counts_steps(tmp_path: Path) -> None:
    for name in ("stage1-step100-tokens1B", "stage1-step200-tokens2B", "stage2-ingredient1-step100-tokens1B"):
        model_folder(tmp_path / name)
    _, entries, left_out = read_run(tmp_path)
    assert [entry.step for entry in entries] == [100, 200]
    assert left_out == [
        "stage2-ingredient1-step100-tokens1B is left out: of another stage, whose steps are counted anew"
    ]


def test_checkpoints_below_the_folder_are_the_run(tmp_path: Path) -> None:
    """Lightning puts them three folders down, verl the model below the step."""
    logs = tmp_path / "a" / "lightning_logs"
    model_folder(logs / "version_0" / "checkpoints" / "epoch=0-step=10")
    model_folder(logs / "version_0" / "checkpoints" / "epoch=1-step=20")
    folder, entries, _ = read_run(tmp_path / "a")
    assert folder == logs / "version_0" / "checkpoints" and [entry.step for entry in entries] == [10, 20]
    inside = model_folder(tmp_path / "b" / "global_step_5" / "actor" / "huggingface")
    assert model_inside(tmp_path / "b" / "global_step_5") == inside
    (inside.parents[2] / "tokenizer.json").write_text("{}")
    (candidate,) = [c for c in find([tmp_path / "b", tmp_path / "a"]) if c.run is not None and c.run.name == "b"]
    assert (candidate.place, candidate.tokenizer) == (str(inside), str(tmp_path / "b"))


def test_what_is_no_run_is_refused_by_what_it_is(tmp_path: Path) -> None:
    for seed in (0, 1):
        model_folder(tmp_path / "out" / f"seed{seed}" / "checkpoint-10")
    with pytest.raises(UsageError, match="holds several runs: seed0, seed1") as failure:
        read_run(tmp_path / "out")
    assert "compare" in failure.value.hint
    import torch

    (tmp_path / "lightning").mkdir()
    for step in (10, 20):
        torch.save({"state_dict": {}}, tmp_path / "lightning" / f"epoch=0-step={step}.ckpt")
    with pytest.raises(UsageError, match="2 checkpoints that are a checkpoint of Lightning") as failure:
        read_run(tmp_path / "lightning")
    assert "torch.load" in failure.value.hint


def test_runs_are_called_by_the_end_of_their_path_that_no_other_has(tmp_path: Path) -> None:
    for name in ("a/run", "b/run", "c"):
        model_folder(tmp_path / name / "checkpoint-1")
    candidates = find([tmp_path / "a/run", tmp_path / "b/run", tmp_path / "c", tmp_path / "c"])
    names = [candidate.name for candidate in candidates]
    assert names == ["a/run/checkpoint-1", "b/run/checkpoint-1", "c (3)/checkpoint-1", "c (4)/checkpoint-1"]


def test_hub_ids_at_revisions_are_runs(tmp_path: Path) -> None:
    model_folder(tmp_path / "run" / "checkpoint-10")
    found = find(["org/a", tmp_path / "run"], ["stage1-step20-tokens1B", "main", "stage1-step10-tokens0B"])
    assert [(c.name, c.step, c.revision) for c in found] == [
        ("a/stage1-step10-tokens0B", 10, "stage1-step10-tokens0B"),
        ("a/stage1-step20-tokens1B", 20, "stage1-step20-tokens1B"),
        ("run/checkpoint-10", 10, None),
    ]
    assert found[0].run is not None and found[0].run.left_out == ("main is left out: its name says no step",)
    with pytest.raises(UsageError, match="names no training steps"):
        find(["org/a", "org/b"], ["main", "dev"])
    with pytest.raises(UsageError, match="not a run over its steps"):
        find(["org/a", model_folder(tmp_path / "model")], ["step1"])


def test_a_folder_with_a_model_and_checkpoints_is_either(tmp_path: Path) -> None:
    runs = [model_folder(tmp_path / name) for name in ("a", "b")]
    for run in runs:
        model_folder(run / "checkpoint-1")
    assert [c.step for c in find(runs)] == [1, 1]
    assert [(c.place, c.run) for c in find(runs, as_models=True)] == [(str(run), None) for run in runs]
    other = model_folder(tmp_path / "other")
    assert [c.place for c in find([other, runs[0]])] == [str(other), str(runs[0])]  # not all are runs


@pytest.mark.parametrize(
    ("name", "what"), [("contrl", "is no folder here"), ("empty", "holds no checkpoints with steps")]
)
def test_what_is_no_run_beside_a_run_is_named(tmp_path: Path, name: str, what: str) -> None:
    """A misspelt second run had the first one refused."""
    model_folder(tmp_path / "run" / "checkpoint-1")
    (tmp_path / "empty").mkdir()
    for names in ([tmp_path / "run", tmp_path / name], [tmp_path / name, tmp_path / "run"]):
        with pytest.raises(UsageError, match=f"holds the checkpoints of a run, and .*{name} {what}"):
            find(names)


# --- the record -------------------------------------------------------------------------------------------


@pytest.fixture
def two(llama: Diagnosis, tmp_path: Path) -> Comparison:
    """A control and a run that is 0.1 below it from step 20 on; each has a step that the other lacks."""
    first = saved_run(llama, tmp_path / "control", {0: 0.0, 10: 0.0, 20: 0.0, 40: 0.0, 80: 0.0})
    second = saved_run(llama, tmp_path / "treated", {0: 0.0, 10: 0.001, 20: -0.1, 40: -0.1, 160: -0.1}, seed=9)
    return compare(first, second)


def test_runs_are_paired_at_equal_steps(two: Comparison) -> None:
    assert two.kind == "overlay" and two.trajectory is None and two.overlay is not None
    assert [(run.name, run.steps, run.paired) for run in two.overlay.runs] == [
        ("control", (0, 10, 20, 40, 80), (0, 10, 20, 40)),
        ("treated", (0, 10, 20, 40, 160), (0, 10, 20, 40)),
    ]
    against = {m.name: m.difference.against for m in two.members if m.difference is not None}
    assert against == {f"treated/checkpoint-{s}": f"control/checkpoint-{s}" for s in (0, 10, 20, 40)}
    effects = [m.difference for m in two.members if m.difference is not None]
    assert all(effect.paired for effect in effects)
    words = [effect.words["mean_cosine"] for effect in effects]
    assert [word.word for word in words] == [*["smaller than what counts"] * 2, *["more spread"] * 2]
    assert {word.alpha for word in words} == {ALPHA / 4}
    assert effects[2].deep["mean_cosine"].value == pytest.approx(-0.1, abs=0.005)
    assert any("treated has step 160, which control lacks" in caveat for caveat in two.caveats)
    assert any("control has step 80, which treated lacks" in caveat for caveat in two.caveats)


def test_one_pair_of_runs_is_said_in_the_headline(two: Comparison) -> None:
    main = two.findings[0]
    assert main.title == (
        "treated is less condensed than control from step 20 on (this pair of runs; other seeds not covered)"
    )
    effect = two.members[-2].difference
    assert effect is not None and effect.covers.startswith("this pair of runs; other seeds not covered")
    assert "at step 40" in main.seen and "control/checkpoint-40.json" in main.next
    assert {finding.id for finding in two.findings} == {"less-condensed", "cone-moved", "runs-quality"}


def test_a_record_of_runs_is_read_back(two: Comparison) -> None:
    again = Comparison.from_json(two.to_json())
    assert again == two
    rows = again.rows()
    assert [row["run"] for row in rows] == ["control"] * 5 + ["treated"] * 5
    assert rows[7]["mean_cosine_word"] == "more spread" and "mean_cosine_word" not in rows[0]
    data = {key: value for key, value in json.loads(two.to_json()).items() if key != "overlay"}
    for member in data["members"]:
        del member["run"]
    assert Comparison.from_json({**data, "kind": "family"}).overlay is None  # as an older version wrote it


def test_worse_quality_and_a_crossing_are_in_the_headline(llama: Diagnosis, tmp_path: Path) -> None:
    first = saved_run(llama, tmp_path / "control", {1: 0.0, 2: 0.0, 4: 0.0})
    second = saved_run(llama, tmp_path / "other", {1: 0.1, 2: 0.0, 4: -0.1}, bits=1.0, seed=5)
    main = compare(first, second).findings[0]
    assert (main.id, main.severity) == ("runs-cross", "warning")
    assert "is less condensed than control at step 4 alone and more condensed at step 1 alone" in main.title
    assert "predicts the texts worse at all 3 steps" in main.title


def test_the_largest_of_equal_differences_is_not_named_beside_the_last(llama: Diagnosis, tmp_path: Path) -> None:
    runs = [saved_run(llama, tmp_path / name, {1: 0.0, 2: 0.0}, seed=3) for name in "ab"]
    assert "largest" not in compare(*runs).findings[0].seen


def test_runs_without_a_common_step_are_drawn_and_not_compared(llama: Diagnosis, tmp_path: Path) -> None:
    first = saved_run(llama, tmp_path / "a", {1: 0.0, 3: 0.0})
    second = saved_run(llama, tmp_path / "b", {2: 0.1, 4: 0.1})
    found = compare(first, second)
    assert found.findings[0].id == "no-common-step" and all(m.difference is None for m in found.members)
    page = found.to_html(plotlyjs="none")
    assert "chart-runs-cone" in page and "chart-runs-difference" not in page
    assert "not compared" in page and "nothing is compared" in comparison_markdown(found)


def test_on_windows_of_its_own_a_run_is_not_called_more_spread(llama: Diagnosis, tmp_path: Path) -> None:
    first = saved_run(llama, tmp_path / "a", {1: 0.0, 2: 0.0})
    other = replace(llama, corpus=replace(llama.corpus, windows_sha256="f" * 64, version="1"))
    second = saved_run(other, tmp_path / "b", {1: -0.3, 2: -0.3}, seed=4)
    found = compare(first, second, force=True)
    main = found.findings[0]
    assert main.id == "other-windows" and "less condensed" not in main.title, main.title
    assert "b reads other than a at all 2 steps, each on windows of its own" in main.title
    assert "counts" not in found.to_html(plotlyjs="none").partition('id="chart-runs-difference"')[2][:4000]


def test_three_runs_are_each_against_the_first(llama: Diagnosis, tmp_path: Path) -> None:
    runs = [
        saved_run(llama, tmp_path / "a", {1: 0.0, 2: 0.0}),
        saved_run(llama, tmp_path / "b", {1: 0.0, 2: 0.1}, seed=3),
        saved_run(llama, tmp_path / "c", {2: 0.0}, seed=7),
    ]
    found = compare(*runs)
    assert found.overlay is not None and found.overlay.compared == 3
    assert found.findings[0].title.startswith("1 of 2 runs differ from a at some step: b (each one pair of runs")
    markdown = comparison_markdown(found)
    assert "| step 2 | c |" in markdown and "## Step by step" in markdown
    assert "chart-runs-difference" in found.to_html(plotlyjs="none")


def test_a_run_of_which_nothing_can_be_read_is_the_error(llama: Diagnosis, tmp_path: Path) -> None:
    first = saved_run(llama, tmp_path / "a", {1: 0.0, 2: 0.0})
    second = saved_run(llama, tmp_path / "b", {1: 0.0})
    (second / "checkpoint-1.json").write_text("{")
    with pytest.raises(UnavailableError, match="no checkpoint of b could be measured"):
        compare(first, second)


def test_other_settings_of_one_run_are_refused_before_anything_is_drawn(llama: Diagnosis, tmp_path: Path) -> None:
    first = saved_run(llama, tmp_path / "a", {1: 0.0})
    other = replace(llama, protocol={**llama.protocol, "hash": "other", "seed": 5})
    second = saved_run(other, tmp_path / "b", {1: 0.0})
    with pytest.raises(UsageError, match=r"b/checkpoint-1 cannot be compared with a/checkpoint-1: seed is"):
        compare(first, second)
    assert compare(first, second, force=True).kind == "overlay"


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ([0, 1, 2, 4], "at all 4 steps"),
        ([2, 4], "from step 2 on"),
        ([0, 1], "up to step 1"),
        ([1, 2], "from step 1 to 2"),
        ([0, 2], "at 2 of 4 steps (0, 2)"),
        ([4], "at step 4 alone"),
    ],
)
def test_steps_in_words(steps: list[int], words: str) -> None:
    assert where(steps, [0, 1, 2, 4]) == words


# --- the command ------------------------------------------------------------------------------------------


def test_two_runs_of_models_are_measured_kept_and_drawn_again(
    tiny: Callable[[str], Path], tmp_path: Path, tokenizers: dict[str, Any]
) -> None:
    """The tokenizer in the run's folder, an optimizer without a model, a best checkpoint without a step."""
    steps = {"a": ((1, "gpt2"), (2, "qwen2")), "b": ((2, "qwen2"),)}
    for run, own in steps.items():
        for step, name in own:
            ignore = shutil.ignore_patterns("tokenizer*", "special*")
            shutil.copytree(tiny(name), tmp_path / run / f"checkpoint-{step}", ignore=ignore)
        tokenizers["bytes"].save_pretrained(tmp_path / run)
    model_folder(tmp_path / "a" / "checkpoint-best")
    (tmp_path / "b" / "checkpoint-3").mkdir()
    (tmp_path / "b" / "checkpoint-3" / "optimizer.pt").write_bytes(b"")
    result = condense("compare", tmp_path / "a", tmp_path / "b", *FAST, "-o", tmp_path / "out")
    assert result.exit_code == 3 and "b/checkpoint-3 is left out" in result.stderr, result.output
    assert "a: checkpoint-best is left out" in result.stderr
    found = Comparison.from_json(tmp_path / "out" / "comparison.json")
    assert found.overlay is not None and [run.paired for run in found.overlay.runs] == [(2,), (2,)]
    assert found.members[2].difference is not None and found.members[2].difference.deep["mean_cosine"].value == 0.0
    kept = tmp_path / "out" / "members"
    assert (kept / "a" / "checkpoint-1.json").exists() and (kept / "b" / "checkpoint-2.json").exists()
    again = condense("compare", kept / "a", kept / "b", "--json", tmp_path / "again.json")
    assert again.exit_code == 0, again.output
    redrawn = Comparison.from_json(tmp_path / "again.json")
    assert [finding.title for finding in redrawn.findings] == [finding.title for finding in found.findings]
    assert_refused(condense("check", tmp_path / "again.json"), 2, "are not read token by token")
