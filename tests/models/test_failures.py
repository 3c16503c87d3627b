"""Nothing that a checkpoint, a saved run or the surroundings do is an internal error."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import condense
from condense import files
from condense.comparison.run import compare
from condense.diagnosis.quality import perplexity
from condense.errors import CondenseError, UnavailableError, UsageError, as_condense_error
from condense.metrics import METRICS
from condense.models.locate import positions_of
from condense.records.base import Estimate
from condense.records.diagnosis import Diagnosis
from tests.models.test_bad_input import analyze, assert_refused, assert_went_on
from tests.models.test_bad_input import condense as command

Copy = Callable[[str], Path]


@pytest.fixture(autouse=True)
def _somewhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative paths are written below the test's own folder."""
    monkeypatch.chdir(tmp_path)


# --- Rust extensions that panic ---------------------------------------------------------------------


@pytest.fixture
def panicking(copy_of: Copy) -> Path:
    """A checkpoint whose tokenizer.json makes the Rust library panic, which is no `Exception`."""
    folder = copy_of("llama")
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    content["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": "AAAA////"}
    file.write_text(json.dumps(content))
    return folder


def test_a_panic_is_one_line_and_exit_3(panicking: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "condense", "analyze", str(panicking)],
        capture_output=True, text=True, env={**os.environ, "PYTHONWARNINGS": "ignore"}, check=False,
    )  # fmt: skip
    assert run.returncode == 3 and "Traceback" not in run.stderr
    assert [line for line in run.stderr.splitlines() if line.startswith("condense: the tokenizer in ")]
    assert len(run.stderr.splitlines()) <= 2, run.stderr


def test_a_panic_anywhere_is_the_members_own(
    panicking: Path, tiny: Copy, diagnosed: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UnavailableError, match="a library crashed on its files"):
        condense.load(panicking)
    made = iter([KeyError("a bug"), MemoryError(), Panic("called `Option::unwrap()` on a `None` value")])

    def measure(candidate: Any, settings: Any, place: Any) -> Diagnosis:
        if "member" in candidate.name:
            raise next(made)
        return diagnosed("llama")  # type: ignore[no-any-return]

    for number in (1, 2, 3):
        (tmp := panicking.parent / f"member{number}").mkdir()
        (tmp / "config.json").write_text("{}")
    names = [str(panicking.parent / name) for name in ("llama", "member1", "member2", "member3")]
    found = compare(*names, str(tiny("llama")), measure=measure, force=True)
    assert [failure.exit_code for failure in found.failures] == [4, 4, 3]
    assert [failure.reason.split(":")[0] for failure in found.failures] == [
        "internal error (KeyError)",
        "out of memory",
        "a library crashed on the model's files",
    ]


Panic = type("PanicException", (BaseException,), {})


def test_an_interruption_stays_one(tiny: Copy) -> None:
    def measure(candidate: Any, settings: Any, place: Any) -> Diagnosis:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(str(tiny("llama")), str(tiny("gpt2")), measure=measure)


def test_every_failure_becomes_one_line() -> None:
    assert as_condense_error(UsageError("what", "then")).exit_code == 2
    assert as_condense_error(MemoryError()).exit_code == 4
    assert as_condense_error(RuntimeError("CUDA out of memory")).hint.startswith("lower")
    absent = as_condense_error(ModuleNotFoundError("No module named 'transformers'", name="transformers.models"))
    assert absent.exit_code == 3 and str(absent) == "this needs the package transformers, which is not installed"
    assert as_condense_error(ModuleNotFoundError("no", name="condense.models.nix")).exit_code == 4
    internal = as_condense_error(KeyError("a\nb"))
    assert type(internal) is CondenseError and "\n" not in str(internal)


# --- forward passes that fail -----------------------------------------------------------------------


def test_a_failing_forward_pass_is_the_checkpoints_failure(opened: Callable[[str], Any]) -> None:
    checkpoint = opened("gpt2")
    windows = condense.windows(checkpoint.tokenizer, num_texts=2, max_length=80)
    block = checkpoint.model.transformer.h[1]
    for error in (IndexError("index out of range in self"), KeyError("mask"), AssertionError(), ZeroDivisionError("x")):

        def fail(module: Any, args: Any, error: Exception = error) -> None:
            if args[0].shape[1] > 64:  # beyond what is tried before anything is measured
                raise error

        handle = block.register_forward_pre_hook(fail)
        try:
            with pytest.raises(UnavailableError, match="GPT2LMHeadModel fails in its forward pass") as caught:
                condense.analyze(checkpoint, windows)
        finally:
            handle.remove()
        assert caught.value.hint and "\n" not in str(caught.value)


def test_a_bug_of_ours_in_a_hook_stays_one(opened: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = opened("gpt2")
    windows = condense.windows(checkpoint.tokenizer, num_texts=1, max_length=20)

    def broken(*args: Any, **kwargs: Any) -> None:
        raise KeyError("a bug of ours")

    monkeypatch.setattr("condense.geometry.measure", broken)
    with pytest.raises(KeyError):
        condense.analyze(checkpoint, windows)


# --- losses beyond e^709 ----------------------------------------------------------------------------


def test_a_diverged_checkpoint_gets_its_report(copy_of: Copy, tiny: Copy, tmp_path: Path) -> None:
    folder = copy_of("llama")
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] *= 1e5
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert_went_on(analyze(folder, "-o", tmp_path / "bad"))
    assert_went_on(analyze(tiny("llama"), "--json", tmp_path / "good.json"))
    quality = json.loads((tmp_path / "bad" / "diagnosis.json").read_text())["quality"]
    assert quality["loss"]["value"] > 709 and quality["bits_per_byte"]["value"] > 0
    assert quality["perplexity"]["value"] is None and "beyond the numbers" in quality["perplexity"]["reason"]
    for runs in (("bad/diagnosis.json", "good.json"), ("good.json", "bad/diagnosis.json")):
        result = command("compare", *(tmp_path / run for run in runs), "--html", tmp_path / "page.html")
        assert result.exit_code == 0, result.output


def test_a_single_text_beyond_the_floats() -> None:
    found = perplexity(Estimate(500.0, 200.0, 800.0, (1.0, 999.0)))
    assert found.value == pytest.approx(1.4e217, rel=0.01) and found.high is None and found.reason is None
    assert found.per_text == (pytest.approx(2.718281828), None)
    assert perplexity(Estimate(None, reason="no head")).reason == "no head"


# --- no home folder ---------------------------------------------------------------------------------


def test_without_a_home_folder(tiny: Copy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As in a container under a user that has neither HOME nor an entry in passwd."""

    def homeless(path: Path) -> Path:
        if str(path).startswith("~"):
            raise RuntimeError("Could not determine home directory.")
        return path

    monkeypatch.setattr(Path, "expanduser", homeless)
    monkeypatch.setattr(Path, "home", lambda: homeless(Path("~")))
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    monkeypatch.delenv("CONDENSE_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert_went_on(analyze(tiny("llama")))
    cache = tmp_path / f"condense-{os.getuid()}"
    assert files.cache_root() == cache and cache.stat().st_mode & 0o777 == 0o700
    for name in ("~/model", "~nobody-at-all/model"):
        assert_refused(analyze(name), 2, "there is no such home folder", "give the whole path")
    assert_refused(analyze(tiny("llama"), "--text", "~/text.txt"), 2, "there is no such home folder")
    assert_refused(analyze(tiny("llama"), CONDENSE_CACHE="~/cache"), 2, "there is no such home folder")


def test_a_cache_of_somebody_else_is_not_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    monkeypatch.setenv("CONDENSE_CACHE", str(tmp_path / "condense-0"))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "condense-0").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="belongs to somebody else"):
        files.cache_folder("gguf")


# --- configs that name positions in their own way ---------------------------------------------------


class Config:
    """What a checkpoint with code of its own may have for a config."""

    model_type = ""

    def __init__(self, **values: Any) -> None:
        vars(self).update(values)

    def get_text_config(self) -> "Config":
        return self


@pytest.mark.parametrize(
    ("values", "positions"),
    [
        ({"n_ctx": 77}, 77),
        ({"block_size": 256}, 256),
        ({"max_sequence_length": 2048}, 2048),
        ({"max_position_embeddings": "many", "context_length": 99}, 99),
        ({"max_position_embeddings": True}, None),
        ({"max_position_embeddings": -1, "n_positions": [5]}, None),
        ({"max_position_embeddings": 514, "model_type": "roberta", "pad_token_id": None}, 512),
        ({"max_position_embeddings": 514, "model_type": "xmod"}, 512),
        ({"max_position_embeddings": 514, "model_type": "camembert", "pad_token_id": 1}, 512),
        ({}, None),
    ],
)
def test_positions_under_any_name(values: dict[str, Any], positions: int | None) -> None:
    assert positions_of(Config(**values)) == positions


# --- runs of an older version -----------------------------------------------------------------------


def test_a_metric_that_an_older_run_lacks(
    diagnosed: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    own = json.loads(diagnosed("llama").to_json())
    (tmp_path / "new.json").write_text(json.dumps(own))
    kept = {"mean_cosine", "effective_rank"}
    for name, keys in (("few", kept), ("other", set(METRICS) - kept), ("none", set())):
        old = json.loads(json.dumps(own))
        for site in old["sites"]:
            site["metrics"] = {key: value for key, value in site["metrics"].items() if key in keys}
        old["deep"] = {key: value for key, value in old["deep"].items() if key in keys}
        (tmp_path / f"{name}.json").write_text(json.dumps(old))
        read = Diagnosis.from_json(tmp_path / f"{name}.json")
        assert set(read.deep) == set(METRICS) == set(read.sites[0].metrics)
        lacking = read.sites[1].metrics[min(set(METRICS) - keys)]
        assert lacking.value is None and "did not have it" in str(lacking.reason)
        for arguments in (
            ("report", f"{name}.json"),
            ("report", f"{name}.json", "--html", "x.html", "--csv", "x.csv", "--md", "x.md"),
            ("compare", "new.json", f"{name}.json", "-o", f"{name}-1", "--force"),
            ("compare", f"{name}.json", "new.json", "-o", f"{name}-2", "--force"),
            ("check", "new.json", "--baseline", f"{name}.json", "--force"),
            ("check", f"{name}.json", "--baseline", "new.json", "--force"),
        ):
            result = command(*(str(tmp_path / a) if a.endswith(".json") else a for a in arguments))
            assert result.exit_code in (0, 1, 5), (arguments, result.output)
            assert "internal error" not in result.output
        old = json.loads(Path(f"{name}-1/comparison.json").read_text())
        for member in old["members"]:
            member["deep"] = {}
            member.get("difference", {}).pop("deep", None)
            member.get("difference", {})["deep"] = {}
        for member in old["members"][:1]:
            member.pop("difference", None)
        Path("older.json").write_text(json.dumps(old))
        result = command("report", "older.json", "--html", "y.html", "--csv", "y.csv", "--md", "y.md")
        assert result.exit_code == 0, result.output


def test_merged_weights_can_be_trained(copy_of: Copy, tmp_path: Path) -> None:
    """What PEFT merges comes back frozen, and training it was an internal error."""
    import peft

    base = copy_of("llama")
    config = peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
    wrapped = peft.get_peft_model(condense.load(base, device="cpu").model, config)
    wrapped.peft_config["default"].base_model_name_or_path = str(base)
    wrapped.save_pretrained(tmp_path / "adapter")
    model = condense.load(tmp_path / "adapter", device="cpu").model
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert (
        not torch.is_grad_enabled() or model(torch.tensor([[1, 2, 3]]), labels=torch.tensor([[1, 2, 3]])).loss.grad_fn
    )
