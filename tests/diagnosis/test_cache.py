"""What was measured is used again, and nothing but that: another byte of weights, text or settings is another run."""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from condense.cli.app import app
from condense.cli.console import MANNER
from condense.diagnosis import cache as diagnosis_cache
from condense.diagnosis.cache import FOLDER, Wanted, keep, recall
from condense.diagnosis.distributed import Ranks
from condense.diagnosis.run import analyze
from condense.diagnosis.verdict import BANDS
from condense.errors import UnavailableError
from condense.files import cache_root, prune
from condense.models.checkpoint import load, read
from condense.models.locate import Located, locate
from condense.records.diagnosis import Diagnosis
from condense.records.options import ModelOptions
from condense.texts.windows import windows
from tests.test_architecture import UPWARDS, file_of, imports, sources

Copy = Callable[[str], Path]
USED = "used the diagnosis measured on"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CONDENSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    yield
    MANNER.quiet = MANNER.debug = False


def run(model: object, *more: object, num_texts: int = 3) -> Result:
    words = ["analyze", model, "--num-texts", num_texts, "--max-length", 32, "--device", "cpu", *more]
    return CliRunner().invoke(app, [str(word) for word in words])


def done(result: Result) -> Result:
    assert result.exit_code == 0, result.output
    return result


def kept() -> list[Path]:
    return sorted((cache_root() / FOLDER).glob("*.txt"))


def bytes_of(path: Path) -> str:
    """A report's JSON but for what tells when and how it was asked for."""
    data = json.loads(path.read_text())
    for part in (data, data.get("twin") or {}):
        for key in ("created", "timing", "command"):
            part.pop(key, None)
    return json.dumps(data)


def retrain(folder: Path) -> None:
    """Other numbers in the same file: same name, size and time."""
    file = folder / "model.safetensors"
    before = file.stat()
    weights = load_file(file)
    save_file({key: value * 1.5 for key, value in weights.items()}, file, metadata={"format": "pt"})
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


# --- the command ------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [(), ("--random-twin",), ("--random-init",), ("--dtype", "bfloat16")])
def test_a_second_run_reads_no_weights_and_writes_the_same(
    tiny: Copy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...]
) -> None:
    one, two, three = tmp_path / "one.json", tmp_path / "two.json", tmp_path / "three.json"
    first = done(run(tiny("gpt2"), *more, "--json", one))
    assert USED not in first.stderr and len(kept()) == 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("condense.models.checkpoint.read", lambda located: pytest.fail("the model was built"))
        second = done(run(tiny("gpt2"), *more, "--json", two))
    created = json.loads(one.read_text())["created"]
    line = f"{USED} {created[:10]} {created[11:16]} UTC; --refresh measures again"
    assert second.stderr.splitlines()[0] == line and second.stdout == first.stdout
    assert json.loads(two.read_text())["created"] == created
    done(run(tiny("gpt2"), *more, "--no-cache", "--json", three))
    assert bytes_of(one) == bytes_of(two) == bytes_of(three)


def test_the_command_is_that_of_the_run(tiny: Copy, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = asked(tiny("gpt2"), twin=True)
    keep(wanted, measured(wanted, command="the first"))
    found = recall(wanted, command="the second")
    assert found is not None and found.twin is not None
    assert found.command == found.twin.command == "the second"


def test_a_retrained_model_is_measured_again(copy_of: Copy) -> None:
    folder = copy_of("gpt2")
    first = done(run(folder))
    retrain(folder)
    second = done(run(folder))
    assert USED not in second.stderr and second.stdout != first.stdout and len(kept()) == 2


def test_refresh_measures_again_and_replaces(tiny: Copy, monkeypatch: pytest.MonkeyPatch) -> None:
    done(run(tiny("gpt2")))
    (file,) = kept()
    found = Diagnosis.from_json(file.read_text().partition("\n")[2])
    wanted = asked(tiny("gpt2"), num_texts=3)
    keep(wanted, replace(found, created="2020-01-01T00:00:00+00:00"))
    assert kept() == [file]
    assert f"{USED} 2020-01-01 00:00 UTC" in done(run(tiny("gpt2"))).stderr
    assert USED not in done(run(tiny("gpt2"), "--refresh")).stderr
    assert kept() == [file] and "2020-01-01" not in file.read_text()


def test_no_cache_neither_reads_nor_writes(tiny: Copy) -> None:
    done(run(tiny("gpt2"), "--no-cache"))
    assert not cache_root().exists()
    done(run(tiny("gpt2")))
    assert USED not in done(run(tiny("gpt2"), "--no-cache")).stderr


def test_no_cache_and_refresh_do_not_go_together(tiny: Copy) -> None:
    result = run(tiny("gpt2"), "--no-cache", "--refresh")
    assert result.exit_code == 2 and "--no-cache and --refresh" in result.stderr


@pytest.mark.parametrize(
    "spoil",
    [lambda data: data[:-40], lambda data: b"", lambda data: b"\xff" * 99, lambda data: data.replace(b"0.1", b"0.2")],
)
def test_a_spoilt_entry_is_ignored_and_written_anew(tiny: Copy, spoil: Callable[[bytes], bytes]) -> None:
    done(run(tiny("gpt2")))
    (file,) = kept()
    whole = file.read_bytes()
    file.write_bytes(spoil(whole))
    assert file.read_bytes() != whole
    assert USED not in done(run(tiny("gpt2"))).stderr
    assert USED in done(run(tiny("gpt2"))).stderr


def test_a_cache_that_cannot_be_written_is_done_without(
    tiny: Copy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("CONDENSE_CACHE", str(tmp_path / "file"))
    for _ in range(2):
        assert USED not in done(run(tiny("gpt2"))).stderr


def test_a_device_that_is_none_is_refused(tiny: Copy) -> None:
    result = CliRunner().invoke(app, ["analyze", str(tiny("gpt2")), "--device", "abacus"])
    assert result.exit_code == 2 and "cannot use device 'abacus'" in result.stderr


# --- the key ----------------------------------------------------------------------------------------


def asked(
    model: Path | Located, *, num_texts: int = 3, length: int = 32, text: Any = None, tokenizer: Path | None = None,
    text_seed: int = 0, twin: bool = False, **more: Any,
) -> Wanted:  # fmt: skip
    found = (
        model
        if isinstance(model, Located)
        else locate(model, ModelOptions(**{"device": "cpu", **more.pop("opened", {})}))
    )
    cut = windows(found.tokenizer, text, num_texts=num_texts, max_length=length, seed=text_seed)
    return Wanted(found, cut, twin=twin, **more)


def measured(wanted: Wanted, command: str = "") -> Diagnosis:
    return analyze(read(wanted.located), wanted.windows, twin=wanted.twin, seed=wanted.seed, command=command)


TEXTS = [f"{word} and nothing else, again and again, for as long as a window is. " * 8 for word in ("Rain", "Snow")]
CHANGES: dict[str, dict[str, Any]] = {
    "other text": {"text": TEXTS},
    "fewer texts": {"num_texts": 2},
    "another length": {"length": 24},
    "another seed": {"seed": 1},
    "another batch": {"batch_size": 2},
    "its twin too": {"twin": True},
    "other bands": {"bands": replace(BANDS, cone_severe=0.99)},
    "fewer tokens in the spectra": {"spectral_tokens": 16},
    "another dtype": {"opened": {"dtype": "bfloat16"}},
    "random weights": {"opened": {"random_init": True}},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_another_run_is_another_entry(tiny: Copy, diagnosed: Callable[[str], Any], change: dict[str, Any]) -> None:
    keep(asked(tiny("gpt2")), diagnosed("gpt2"))
    assert recall(asked(tiny("gpt2"))) is not None
    assert recall(asked(tiny("gpt2"), **change)) is None


def test_what_measures_is_in_the_key(
    tiny: Copy, diagnosed: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = asked(tiny("gpt2"))
    keep(wanted, diagnosed("gpt2"))
    changes: list[tuple[str, Any]] = [
        ("__version__", "9.9"), ("_code", lambda: "other code"), ("_versions", lambda: {"torch": "9.9"}),
        ("_arithmetic", lambda device: ["another processor"]),
    ]  # fmt: skip
    for name, value in changes:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(diagnosis_cache, name, value)
            assert recall(wanted) is None, name
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        assert recall(wanted) is None
    finally:
        torch.set_num_threads(threads)
    assert recall(wanted) is not None


@pytest.mark.parametrize("name", ["geometry.py", "diagnosis/verdict.py", "models/gguf.py", "texts/documents.py"])
def test_the_code_is_hashed_to_the_byte(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("x = 1\n")
    monkeypatch.setattr(diagnosis_cache, "__file__", str(tmp_path / "diagnosis" / "cache.py"))
    before = diagnosis_cache._code()
    path.write_text("x = 2\n")
    assert diagnosis_cache._code() != before


def test_the_packages_that_are_hashed_exist() -> None:
    root = Path(diagnosis_cache.__file__).parents[1]
    assert all((root / name / "__init__.py").is_file() for name in diagnosis_cache._MEASURING)


def test_all_code_that_measures_is_hashed() -> None:
    """Everything that a diagnosis imports, also inside functions, stands in a package whose files are hashed."""
    files, seen = sources(), set[str]()
    waiting = ["diagnosis/run.py", "texts/documents.py", "models/checkpoint.py"]
    while waiting:
        file = waiting.pop()
        if file not in seen and file != "__init__.py":
            seen.add(file)
            others = {file_of(module) for module, _ in imports(files[file]) if module.startswith("condense.")}
            waiting += [other for other in others if (file, other.split("/")[0]) not in UPWARDS]
    assert {"geometry/measure.py", "diagnosis/verdict.py", "models/layers.py"} <= seen
    packages = {file.split("/")[0] for file in seen if "/" in file}
    assert packages == set(diagnosis_cache._MEASURING)


def test_a_config_alone_makes_another_model(copy_of: Copy, diagnosed: Callable[[str], Any]) -> None:
    folder = copy_of("gpt2")
    keep(asked(folder), diagnosed("gpt2"))
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "layer_norm_epsilon": 0.1}))
    assert recall(asked(folder)) is None


def test_another_name_or_tokenizer_is_told_in_the_record(
    tiny: Copy, copy_of: Copy, diagnosed: Callable[[str], Any]
) -> None:
    keep(asked(tiny("gpt2")), diagnosed("gpt2"))
    assert recall(asked(copy_of("gpt2"))) is None  # its findings name the model
    other = locate(tiny("gpt2"), ModelOptions(device="cpu", tokenizer=str(tiny("llama"))))
    assert recall(asked(other)) is None


def test_ranks_share_an_entry_of_single_texts_only(tiny: Copy, diagnosed: Callable[[str], Any]) -> None:
    one, four = asked(tiny("gpt2")), asked(tiny("gpt2"), batch_size=4)
    for wanted in (one, four):
        keep(wanted, diagnosed("gpt2"))
    assert diagnosis_cache._cache_file(one, 1) == diagnosis_cache._cache_file(one, 2)
    assert diagnosis_cache._cache_file(four, 1) != diagnosis_cache._cache_file(four, 2)
    keep(asked(tiny("gpt2"), seed=5), diagnosed("gpt2"), ranks=Ranks(1, 2))  # not the first: writes nothing
    assert recall(asked(tiny("gpt2"), seed=5)) is None


def test_foreign_code_has_no_key(tiny: Copy, diagnosed: Callable[[str], Any]) -> None:
    wanted = asked(tiny("gpt2"), opened={"trust_remote_code": True})
    keep(wanted, diagnosed("gpt2"))
    assert kept() == [] and recall(wanted) is None


def test_an_adapter_is_known_by_weights_base_and_scale(
    copy_of: Copy, tmp_path: Path, diagnosed: Callable[[str], Any]
) -> None:
    from peft import LoraConfig, get_peft_model

    base, adapter = copy_of("gpt2"), tmp_path / "adapter"
    wrapped = get_peft_model(
        load(base, device="cpu").model, LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True)
    )
    wrapped.peft_config["default"].base_model_name_or_path = str(base)
    wrapped.save_pretrained(adapter)
    keep(asked(adapter), diagnosed("gpt2"))
    assert recall(asked(adapter)) is not None and recall(asked(base)) is None
    config = adapter / "adapter_config.json"
    text = config.read_text()
    config.write_text(json.dumps({**json.loads(text), "lora_alpha": 64}))
    assert recall(asked(adapter)) is None
    config.write_text(text)
    assert recall(asked(adapter)) is not None
    retrain(base)
    assert recall(asked(adapter)) is None


# --- what is kept -----------------------------------------------------------------------------------


def test_weights_that_change_while_they_are_read(copy_of: Copy, diagnosed: Callable[[str], Any]) -> None:
    wanted = asked(copy_of("gpt2"))
    os.utime(wanted.located.files[0], (1, 1))
    keep(wanted, diagnosed("gpt2"))
    assert kept() == []
    with pytest.raises(UnavailableError, match="changed while they were read"):
        read(wanted.located)


def test_the_unused_and_the_too_much_are_dropped(
    tiny: Copy, diagnosed: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def age(file: Path, days: float) -> Path:
        os.utime(file, (time.time() - days * 86400,) * 2)
        return file

    root = cache_root() / FOLDER
    root.mkdir(parents=True)
    names = ("ancient.txt", "old.txt", "recent.txt", ".torn.tmp", ".writing.tmp")
    for name in names:
        (root / name).write_text("x" * 1000)
    ancient, old, recent, torn, writing = (root / name for name in names)
    age(ancient, 91), age(old, 60), age(recent, 1), age(torn, 1)
    prune(root, days=90, most_bytes=2**28)
    assert not ancient.exists() and not torn.exists() and old.exists() and recent.exists() and writing.exists()
    monkeypatch.setattr(diagnosis_cache, "_KEPT_BYTES", 2500)
    keep(asked(tiny("gpt2")), diagnosed("gpt2"))
    assert not old.exists() and recent.exists()
    (file,) = (file for file in kept() if file != recent)
    age(file, 30)
    assert recall(asked(tiny("gpt2"))) is not None
    assert file.stat().st_mtime > time.time() - 3600  # what is used stays


def test_a_lost_cache_folder_is_made_again(tiny: Copy, diagnosed: Callable[[str], Any]) -> None:
    keep(asked(tiny("gpt2")), diagnosed("gpt2"))
    shutil.rmtree(cache_root())
    keep(asked(tiny("gpt2")), diagnosed("gpt2"))
    assert recall(asked(tiny("gpt2"))) == diagnosed("gpt2").__class__.from_json(
        diagnosed("gpt2").to_json().replace('"command":"condense analyze tiny"', '"command":""')
    )
