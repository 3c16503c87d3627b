"""Records to JSON and back, the refusals on the way, and files that are whole or not there."""

import dataclasses
import errno
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from condense import files
from condense.errors import RunError, UnavailableError, UsageError
from condense.files import write_text
from condense.metrics import METRICS, QUALITY
from condense.records.base import Estimate
from condense.records.diagnosis import DIAGNOSIS_SCHEMA, Diagnosis
from condense.records.serial import decode, dumps, encode, loads, read_json


@pytest.fixture
def saved(diagnosed: Callable[[str], Diagnosis]) -> dict[str, Any]:
    """A diagnosis as parsed JSON, to be changed."""
    return json.loads(diagnosed("gpt2").to_json())


# --- round trip -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpt2", "bert", "bart"])
def test_round_trip(diagnosed: Callable[[str], Diagnosis], name: str, tmp_path: Path) -> None:
    diagnosis = diagnosed(name)
    text = diagnosis.to_json(tmp_path / "run.json")
    for source in (text, tmp_path / "run.json", str(tmp_path / "run.json"), json.loads(text)):
        again = Diagnosis.from_json(source)
        assert again == diagnosis
        assert again.to_json() == text


def test_the_json_is_that_of_the_contract(saved: dict[str, Any]) -> None:
    assert saved["schema"] == DIAGNOSIS_SCHEMA == "condense.diagnosis/1"
    assert {
        "schema", "condense", "created", "command", "model", "corpus", "protocol", "environment", "timing", "quality",
        "sites", "deep", "trend", "paper", "verdict",
    } <= set(saved)  # fmt: skip
    assert {"id", "revision", "weights_sha256", "architecture", "objective", "parameters", "hidden_size", "blocks",
            "dtype", "source_format"} <= set(saved["model"]) | {"revision"}  # fmt: skip
    assert {"source", "sha256", "windows_sha256", "texts", "skipped", "tokens", "length", "seed", "windows"} <= set(
        saved["corpus"]
    )
    assert set(saved["deep"]) == set(METRICS)
    for site in saved["sites"]:
        assert set(site) == {"site", "stack", "index", "depth", "metrics", "top_dimensions", "histogram"}
        assert set(site["metrics"]) == set(METRICS) and len(site["histogram"]["counts"]) == 200
        assert {"value", "low", "high", "per_text"} <= set(site["metrics"]["mean_cosine"])
        assert {"null", "null_ratio"} <= set(site["metrics"]["effective_rank"])
    assert set(QUALITY) <= set(saved["quality"])
    assert set(saved["trend"]) == {"spearman", "kendall"} and set(saved["trend"]["spearman"]) == {"rho", "p"}
    assert {"level", "cone", "rank", "attribution", "borderline", "findings"} <= set(saved["verdict"])
    finding = {"id", "severity", "title", "seen", "why", "next", "source"}
    assert all(set(found) == finding for found in saved["verdict"]["findings"])


def test_an_undefined_number_is_null_with_a_reason(saved: dict[str, Any]) -> None:
    def walk(value: Any) -> None:
        if isinstance(value, dict):
            if "value" in value and value["value"] is None:
                assert value.get("reason"), value
            for inner in value.values():
                walk(inner)
        elif isinstance(value, list):
            for inner in value:
                walk(inner)

    walk(saved)
    assert any(s["metrics"]["top_dimension_share"]["value"] is None for s in saved["sites"])


def test_not_a_number_is_never_written() -> None:
    with pytest.raises(ValueError, match="[Oo]ut of range"):
        dumps(Estimate(float("nan")))


def test_fields_left_at_none_are_omitted_but_bounds_are_not() -> None:
    assert encode(Estimate(1.0)) == {"value": 1.0, "low": None, "high": None}
    assert decode(Estimate, {"value": 1}) == Estimate(1.0)
    assert isinstance(decode(Estimate, {"value": 1}).value, float)


def test_text_survives(diagnosed: Callable[[str], Diagnosis]) -> None:
    odd = "ä 𝄞 \u2028 \x1b[31m </script> \ud800".encode("utf-8", "replace").decode()
    diagnosis = dataclasses.replace(diagnosed("gpt2"), command=odd)
    assert Diagnosis.from_json(diagnosis.to_json()).command == odd


def test_unknown_keys_are_of_a_newer_version(saved: dict[str, Any]) -> None:
    saved["later"] = saved["model"]["later"] = 1
    assert Diagnosis.from_json(saved).model.id


# --- what is not a diagnosis ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        (["schema"], "condense.diagnosis/2", "condense.diagnosis/2"),
        (["schema"], None, "expected"),
        (["model", "parameters"], "many", "model.parameters"),
        (["model", "parameters"], 1.5, "model.parameters"),
        (["model", "parameters"], True, "model.parameters"),
        (["model", "objective"], "telepathy", "model.objective"),
        (["corpus"], [], "corpus"),
        (["sites"], {}, "sites"),
        (["sites", 1, "depth"], "deep", "sites[1].depth"),
        (["sites", 1, "site"], "attic", "sites[1].site"),
        (["sites", 0, "metrics", "mean_cosine", "value"], "x", "sites[0].metrics.mean_cosine.value"),
        (["sites", 0, "histogram", "counts", 3], 0.5, "sites[0].histogram.counts[3]"),
        (["verdict", "level"], "fine", "verdict.level"),
        (["verdict", "borderline"], 0, "verdict.borderline"),
    ],
)
def test_a_wrong_value_is_named(saved: dict[str, Any], path: list[Any], value: Any, named: str) -> None:
    place = saved
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(UnavailableError) as caught:
        Diagnosis.from_json(saved)
    assert named in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    ("path", "named"),
    [
        (["deep", "mean_cosine", "value"], "deep.mean_cosine.value"),
        (["deep", "mean_cosine", "low"], "deep.mean_cosine.low"),
        (["sites", 1, "metrics", "cosine_std", "per_text", 3], "sites[1].metrics.cosine_std.per_text"),
        (["quality", "loss", "value"], "quality.loss.value"),
        (["timing", "measure_seconds"], "timing.measure_seconds"),
        (["verdict", "bands", "cone_high"], "verdict.bands.cone_high"),
    ],
)
def test_a_number_that_is_not_finite_is_refused(
    saved: dict[str, Any], tmp_path: Path, path: list[Any], named: str, value: float
) -> None:
    holder = saved
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = value
    file = tmp_path / "run.json"
    file.write_text(json.dumps(saved))  # Python writes NaN and Infinity, which are no JSON
    file_of_large = tmp_path / "large.json"
    file_of_large.write_text(json.dumps(saved).replace("-Infinity", "-1e999").replace("Infinity", "1e999"))
    for source in (saved, file, file.read_text(), file_of_large):
        with pytest.raises(UnavailableError) as caught:
            Diagnosis.from_json(source)
        assert named in str(caught.value) and caught.value.exit_code == 3


# --- older runs -------------------------------------------------------------------------------------

OLD = Path(__file__).parents[1] / "saved" / "diagnosis-0.1.0.json"


def test_a_run_without_documents_is_read_and_has_no_intervals() -> None:
    data, run = json.loads(OLD.read_text()), Diagnosis.from_json(OLD)
    assert run.corpus.documents == () and run.verdict.borderline == () and run.verdict.frequencies == {}
    assert data["deep"]["mean_cosine"]["low"] is not None
    assert run.deep["mean_cosine"].value == data["deep"]["mean_cosine"]["value"]
    tables = [run.deep, *(site.metrics for site in run.sites), vars(run.quality)]
    estimates = [each for table in tables for each in table.values() if isinstance(each, Estimate)]
    assert len(estimates) > 50 and all(each.low is None and each.high is None for each in estimates)
    assert run.deep["dimension"].value is None and "did not have it" in (run.deep["dimension"].reason or "")
    assert Diagnosis.from_json(run.to_json()) == run


def test_a_run_with_documents_keeps_its_intervals(diagnosed: Callable[[str], Any]) -> None:
    run = diagnosed("bart")
    again = Diagnosis.from_json(run.to_json())
    assert again == run and again.stacks["encoder"].deep["mean_cosine"].low is not None


def test_the_shares_of_a_word() -> None:
    run = Diagnosis.from_json(OLD)
    shares = {"common direction": 0.62, "rogue dimensions": 0.376, "not condensed": 0.004}
    verdict = dataclasses.replace(run.verdict, frequencies={"attribution": shares})
    assert verdict.share("attribution") == "common direction in 62 %, rogue dimensions in 38 %"
    assert verdict.share("cone") == ""


def test_values_that_are_not_one_per_window_are_refused(saved: dict[str, Any]) -> None:
    saved["deep"]["mean_cosine"]["per_text"].pop()
    count = len(saved["corpus"]["documents"])
    with pytest.raises(UnavailableError, match=f"deep.mean_cosine has {count - 1} values for {count} windows"):
        Diagnosis.from_json(saved)


def test_a_missing_value_is_named(saved: dict[str, Any]) -> None:
    del saved["sites"][2]["index"]
    with pytest.raises(UnavailableError, match=r"sites\[2\]\.index is missing"):
        Diagnosis.from_json(saved)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not JSON"),
        (b'{"schema": "condense.diagnosis/1"', "not JSON"),
        (b"\x80\x81", "not JSON"),
        (b"[1, 2]", "no schema"),
        (b'{"value": 1}', "no schema"),
        (b'{"schema": "other/1"}', "other/1"),
        (b'{"schema": "condense.diagnosis/1"}', "missing"),
    ],
)
def test_a_file_that_is_no_run(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "run.json"
    file.write_bytes(content)
    with pytest.raises(UnavailableError, match=message):
        Diagnosis.from_json(file)


def test_a_missing_run_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="no such run file"):
        read_json(tmp_path / "none.json")
    with pytest.raises(UnavailableError, match="cannot read"):
        read_json(tmp_path)
    with pytest.raises(UnavailableError, match="not JSON"):
        Diagnosis.from_json("{no")


# --- files ------------------------------------------------------------------------------------------


def test_writing_makes_the_folder_and_leaves_nothing_beside(tmp_path: Path) -> None:
    write_text(tmp_path / "a" / "b" / "run.json", "x\r\ny\n")
    assert (tmp_path / "a" / "b" / "run.json").read_bytes() == b"x\r\ny\n"
    assert [file.name for file in (tmp_path / "a" / "b").iterdir()] == ["run.json"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("failure", [OSError(errno.EIO, "i/o"), OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
def test_a_file_is_never_torn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, failure: BaseException
) -> None:
    file = tmp_path / "run.json"
    write_text(file, "before")

    def fail(*args: Any, **kwargs: Any) -> None:
        raise failure

    monkeypatch.setattr(files.os if step == "fsync" else files.Path, step, fail)
    kinds = (UsageError, RunError, KeyboardInterrupt)
    with pytest.raises(kinds) as caught:
        write_text(file, "after" * 1000)
    monkeypatch.undo()
    assert file.read_text() == "before"
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.json"]
    if isinstance(failure, OSError):
        full = failure.errno == errno.ENOSPC
        assert isinstance(caught.value, RunError if full else UsageError)
        assert caught.value.exit_code == (4 if full else 2)


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_mode_follows_the_umask(tmp_path: Path, mask: int, mode: int) -> None:
    before = os.umask(mask)
    try:
        write_text(tmp_path / "run.json", "x")
        assert os.umask(mask) == mask  # and it is put back
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "run.json").stat().st_mode) == mode


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    for place in (tmp_path / "file" / "run.json", tmp_path / "folder", Path("/proc/none/run.json")):
        with pytest.raises(UsageError, match="cannot write") as caught:
            write_text(place, "x")
        assert caught.value.exit_code == 2 and caught.value.hint
    assert [entry.name for entry in (tmp_path / "folder").iterdir()] == []
    assert {entry.name for entry in tmp_path.iterdir()} == {"file", "folder"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UsageError, match="cannot write"):
        write_text(tmp_path / "run.json", "x")


# --- the layer table --------------------------------------------------------------------------------


def test_to_frame(diagnosed: Callable[[str], Diagnosis]) -> None:
    diagnosis = diagnosed("gpt2")
    frame = diagnosis.to_frame()
    assert len(frame) == len(diagnosis.sites) == 5
    assert list(frame.columns[:4]) == ["site", "stack", "index", "depth"]
    assert set(METRICS) <= set(frame.columns)
    assert {"mean_cosine_low", "mean_cosine_high", "effective_rank_null_ratio", "top_dimension_1"} <= set(frame.columns)
    assert frame["site"].tolist() == ["embedding", "block", "block", "block", "output"]
    assert frame["mean_cosine"].tolist() == [site.metrics["mean_cosine"].value for site in diagnosis.sites]
    assert (frame["mean_cosine_low"] <= frame["mean_cosine"]).all()


def test_labels(diagnosed: Callable[[str], Diagnosis]) -> None:
    labels = [site.label for site in diagnosed("gpt2").sites]
    assert labels == ["embedding", "block 1", "block 2", "block 3", "output"]


def test_a_number_that_is_none_at_any_depth() -> None:
    """It was looked for to deeper than Python's own limit."""
    for depth in (1, 700):
        with pytest.raises(UnavailableError, match="not a number" if depth == 1 else "is not JSON"):
            loads('{"a":' + "[" * depth + "NaN" + "]" * depth + "}")
