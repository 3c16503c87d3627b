"""Checkpoints by hub id, from a small hub on 127.0.0.1 that the real client talks to."""

import json
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from condense.cli.app import app
from condense.diagnosis.estimate import find
from condense.errors import CondenseError, RunError, UnavailableError
from condense.files import size_in_words
from condense.models import hub, hub_files
from condense.models.hub import HubOutageError, fetch
from condense.models.hub_files import Selection, needed, shards_of
from condense.models.locate import locate
from condense.records.options import ModelOptions
from tests.models.hub_server import Hub

REPO = "org/tiny"
ROOT = Path(__file__).parents[2]
TOKENIZER = Selection(weights=False)


@pytest.fixture
def server(tiny: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with the tiny Llama as org/tiny, an empty cache, and a client that waits for nothing."""
    from huggingface_hub import constants, file_download, utils

    made = Hub()
    made.add(REPO, {**files_of(tiny("llama")), "video.mp4": b"x", "onnx/model.onnx": b"y", "pytorch_model.bin": b"z"})
    template = made.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", made.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    quick = SimpleNamespace(**{**vars(time), "sleep": lambda seconds: None})
    for module in (file_download, sys.modules[utils.http_backoff.__module__]):
        monkeypatch.setattr(module, "time", quick)
    monkeypatch.setattr(hub, "_SECONDS", 0.5)
    yield made
    utils.close_session()
    made.close()


def files_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def refused(match: str, options: ModelOptions | None = None, repo: str = REPO) -> CondenseError:
    with pytest.raises(CondenseError, match=match) as caught:
        fetch(repo, options or ModelOptions())
    assert "\n" not in str(caught.value) and caught.value.hint
    return caught.value


def analyze(*arguments: object) -> Result:
    options = ["--num-texts", "8", "--max-length", "32", "--device", "cpu"]
    return CliRunner().invoke(app, ["analyze", *map(str, arguments), *options])


# --- fetching ---------------------------------------------------------------------------------------


def test_what_is_needed_is_fetched_and_nothing_else(server: Hub, tiny: Callable[[str], Path]) -> None:
    fetched = fetch(REPO, ModelOptions())
    there = {file.name for file in fetched.path.iterdir()}
    assert there == set(files_of(tiny("llama")))
    assert fetched.revision == server.repositories[REPO].refs["main"]
    assert all((fetched.path / name).read_bytes() == data for name, data in files_of(tiny("llama")).items())


def test_size_and_free_disk_are_told_before_a_download(
    server: Hub, tiny: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    sizes = {name: len(data) for name, data in files_of(tiny("llama")).items()}
    weights = sizes.pop("model.safetensors")
    caplog.set_level(logging.INFO, "condense")
    fetch(REPO, ModelOptions(), TOKENIZER)
    first, *progress = [record.getMessage() for record in caplog.records]
    assert first.startswith(f"{REPO}: 4 of 4 files to download, {size_in_words(sum(sizes.values()))}; free disk ")
    assert progress[-1].startswith(f"{REPO}: 100 % of")
    caplog.clear()
    fetch(REPO, ModelOptions())
    first, *progress = [record.getMessage() for record in caplog.records]
    assert first.startswith(f"{REPO}: 1 of 5 files to download, {size_in_words(weights)}; free disk "), (
        "what is there is not counted"
    )
    caplog.clear()
    fetch(REPO, ModelOptions())
    assert not caplog.records


def test_progress_is_a_line_at_every_tenth(
    server: Hub, tiny: Callable[[str], Path], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 2000)
    caplog.set_level(logging.INFO, "condense")
    fetch(REPO, ModelOptions())
    told = [record.getMessage().partition(": ")[2] for record in caplog.records][1:]
    assert [line.partition(" of ")[0] for line in told] == [f"{percent} %" for percent in range(10, 101, 10)]


@pytest.mark.parametrize("revision", [None, "main", "v1", "commit"])
def test_what_was_fetched_is_found_offline(server: Hub, tiny: Callable[[str], Path], revision: str | None) -> None:
    commit = server.add(REPO, tiny("gpt2"), "v1")
    wanted = commit if revision == "commit" else revision
    fetched = fetch(REPO, ModelOptions(revision=wanted))
    server.requests.clear()
    assert fetch(REPO, ModelOptions(revision=wanted, offline=True)) == fetched
    assert fetch(REPO, ModelOptions(revision=fetched.revision, offline=True)) == fetched
    assert fetch(REPO, ModelOptions(revision=wanted, offline=True), TOKENIZER) == fetched
    assert find(REPO, ModelOptions(revision=wanted, offline=True)).downloads == ()
    assert server.requests == []
    other = "v1" if revision in (None, "main") else "main"
    refused("is not in the local cache", ModelOptions(revision=other, offline=True))


def test_a_whole_commit_is_not_asked_for_again(server: Hub) -> None:
    fetched = fetch(REPO, ModelOptions())
    server.requests.clear()
    assert fetch(REPO, ModelOptions(revision=fetched.revision)) == fetched
    assert server.requests == []


def test_a_tokenizer_alone_is_not_a_model_offline(server: Hub) -> None:
    fetch(REPO, ModelOptions(), TOKENIZER)
    error = refused("is not whole: model.safetensors missing", ModelOptions(offline=True))
    assert "go online once" in error.hint
    assert fetch(REPO, ModelOptions(offline=True), TOKENIZER).path.is_dir()


def test_a_moved_branch_is_followed(server: Hub, tiny: Callable[[str], Path]) -> None:
    first = fetch(REPO, ModelOptions())
    server.add(REPO, tiny("gpt2"))
    second = fetch(REPO, ModelOptions())
    assert second != first and fetch(REPO, ModelOptions(offline=True)) == second


def test_a_copy_by_another_program_is_used_offline(server: Hub) -> None:
    """Fetched file by file, as transformers does: without a list of what belongs to it."""
    from huggingface_hub import hf_hub_download

    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        hf_hub_download(REPO, name)
    kept = fetch(REPO, ModelOptions(offline=True))
    assert (kept.path / "model.safetensors").exists()
    (kept.path / "model.safetensors").unlink()
    refused("has no safetensors weights", ModelOptions(offline=True))


# --- which files ------------------------------------------------------------------------------------


def sharded(folder: Path, names: tuple[str, str]) -> dict[str, bytes]:
    """The files of a checkpoint, its weights in two files of these names with an index."""
    files, tensors = files_of(folder), load_file(folder / "model.safetensors")
    del files["model.safetensors"]
    weight_map = {key: names[number % 2] for number, key in enumerate(sorted(tensors))}
    for name in names:
        path = folder.parent / name
        save_file({key: tensors[key] for key in tensors if weight_map[key] == name}, path, metadata={"format": "pt"})
        files[name] = path.read_bytes()
    files["model.safetensors.index.json"] = json.dumps({"metadata": {}, "weight_map": weight_map}).encode()
    return files


NUMBERED = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


@pytest.mark.parametrize("names", [NUMBERED, ("a.safetensors", "b.safetensors")])
def test_the_shards_that_the_index_names_are_fetched(
    server: Hub, copy_of: Callable[[str], Path], names: tuple[str, str]
) -> None:
    files = sharded(copy_of("llama"), names)
    server.add("org/shards", {**files, "consolidated.safetensors": b"a second copy"})
    located = locate("org/shards", ModelOptions(device="cpu"))
    assert {file.name for file in located.folder.path.iterdir()} == set(files)
    assert [file.name for file in located.files] == sorted(names)
    offline = locate("org/shards", ModelOptions(device="cpu", offline=True))
    assert offline.weights_sha256 == located.weights_sha256
    (located.folder.path / names[0]).unlink()
    refused(f"{names[0]} missing", ModelOptions(offline=True), "org/shards")


def test_files_of_tokenizers_are_needed_whatever_their_kind() -> None:
    names = ["config.json", "model.safetensors", "spiece.model", "source.spm", "qwen.tiktoken", "tekken.json", "a.txt"]
    assert needed(REPO, names) == sorted(set(names) - {"a.txt"})
    assert needed(REPO, [*names, "modeling.py"], Selection(code=True)).count("modeling.py") == 1


def test_a_repository_without_safetensors(server: Hub, tiny: Callable[[str], Path]) -> None:
    files = files_of(tiny("llama"))
    files["pytorch_model.bin"] = files.pop("model.safetensors")
    server.add("org/pickle", files)
    assert "--allow-pickle" in refused("has no safetensors weights", repo="org/pickle").hint
    assert not server.asked("GET .*resolve"), "nothing is fetched for nothing"
    there = fetch("org/pickle", ModelOptions(allow_pickle=True)).path
    assert (there / "pytorch_model.bin").exists()
    server.add("org/empty", {"README.md": b"nothing"})
    refused("no safetensors", repo="org/empty")
    with pytest.raises(UnavailableError, match="no config and no tokenizer"):
        fetch("org/empty", ModelOptions(), TOKENIZER)


def test_a_disk_that_is_too_small(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch(REPO, ModelOptions(), TOKENIZER)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100_000))
    error = refused("not enough disk for org/tiny: ... kB to download, 100 kB free")
    assert isinstance(error, RunError) and "HF_HOME" in error.hint
    assert not server.asked("GET .*model.safetensors")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10**12))
    fetch(REPO, ModelOptions())
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=0))
    fetch(REPO, ModelOptions())  # nothing is missing, so nothing is needed


# --- what goes wrong --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ({"status": 401}, r"refuses access to org/tiny \(401\)"),
        ({"status": 403}, r"refuses access to org/tiny \(403\)"),
        ({"status": 404, "code": "RepoNotFound"}, "not on the hub, or it is private"),
        ({"pattern": "GET .*resolve", "status": 404, "code": "EntryNotFound"}, r"no such file of org/tiny \(404\)"),
    ],
)
def test_a_refusal_is_told_and_no_outage(server: Hub, fault: dict[str, Any], said: str) -> None:
    fetch(REPO, ModelOptions(), TOKENIZER)
    server.fail(**fault)
    error = refused(said)
    assert isinstance(error, UnavailableError) and not isinstance(error, HubOutageError)


def test_private_gated_and_unknown(server: Hub) -> None:
    repository = server.repositories[REPO]
    repository.token = "hf_right"
    assert "HF_TOKEN" in refused("not on the hub, or it is private").hint
    assert "HF_TOKEN" in refused("not on the hub, or it is private", ModelOptions(token="hf_wrong")).hint
    fetch(REPO, ModelOptions(token="hf_right"), TOKENIZER)
    repository.token, repository.gated = "", True
    assert "accept its terms" in refused("org/tiny is gated").hint
    refused("has no such revision", ModelOptions(revision="nix"))
    refused("not on the hub", repo="org/nobody")


OUTAGES: dict[str, dict[str, Any]] = {
    "429": {"status": 429},
    "500": {"status": 500},
    "503": {"status": 503},
    "cut": {"cut": 10},
    "slow": {"seconds": 1.0},
    "refused": {},
}


@pytest.mark.parametrize("name", OUTAGES)
def test_an_outage_goes_on_from_the_cache(server: Hub, caplog: pytest.LogCaptureFixture, name: str) -> None:
    fetched = fetch(REPO, ModelOptions())
    server.fail(**OUTAGES[name])
    if name == "refused":
        server.close()
    assert fetch(REPO, ModelOptions()) == fetched
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and record.name == "condense"
    assert f"going on with the copy in {fetched.path}" in record.getMessage()
    assert find(REPO, ModelOptions()).downloads == ()


@pytest.mark.parametrize("name", OUTAGES)
def test_an_outage_without_a_copy_is_one_line(server: Hub, caplog: pytest.LogCaptureFixture, name: str) -> None:
    server.fail(**OUTAGES[name])
    if name == "refused":
        server.close()
    said = {"429": "too many requests", "500": "answers 500", "503": "answers 503"}.get(name, "cannot reach the hub")
    assert isinstance(refused(said), HubOutageError)
    assert not caplog.records


@pytest.mark.parametrize("pattern", ["GET /api/models/org/tiny$", "GET .*/tree/"])
def test_a_hub_that_falls_silent_is_not_waited_for(server: Hub, pattern: str) -> None:
    """Whichever request it is that gets no answer; the client itself has no limit for the list of files."""
    from huggingface_hub.utils import get_session

    with hub._explained(REPO):
        hooks = get_session().event_hooks["request"]
    limits: list[dict[str, float]] = []
    hooks.append(lambda request: limits.append(request.extensions["timeout"]))
    server.fail(pattern, seconds=1.0)
    began = time.monotonic()
    assert isinstance(refused("cannot reach the hub"), HubOutageError)
    assert time.monotonic() - began < 30
    assert limits and all(0 < seconds <= 10 for each in limits for seconds in each.values())


@pytest.mark.parametrize("fault", [{"status": 503}, {"status": 500}, {"cut": 5000}, {"status": 429}])
def test_a_download_that_breaks_never_takes_an_older_commit(
    server: Hub, tiny: Callable[[str], Path], fault: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """The hub said which commit is wanted: measuring the last one instead would answer another question."""
    first = fetch(REPO, ModelOptions())
    server.add(REPO, tiny("gpt2"))
    server.fail("GET .*resolve.*safetensors", **fault)
    assert isinstance(refused("hub"), HubOutageError)
    assert not caplog.records
    assert fetch(REPO, ModelOptions(offline=True)) == first, "the whole copy stays the one that is found offline"
    server.faults.clear()
    server.requests.clear()
    second = fetch(REPO, ModelOptions())
    assert second != first and len(server.asked("GET .*resolve")) == 1, "what had arrived was kept"


def test_a_cut_download_goes_on_where_it_was(server: Hub) -> None:
    server.fail("GET .*resolve.*safetensors", cut=5000, times=1)
    fetched = fetch(REPO, ModelOptions())
    assert len(server.asked("GET .*resolve.*safetensors")) == 2
    assert len((fetched.path / "model.safetensors").read_bytes()) > 5000


# --- damage -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
@pytest.mark.parametrize("how", ["truncated", "flipped", "empty"])
def test_a_damaged_file_is_named_and_fetched_again(
    server: Hub, tiny: Callable[[str], Path], caplog: pytest.LogCaptureFixture, name: str, how: str
) -> None:
    whole = locate(REPO, ModelOptions(device="cpu"))
    file = whole.folder.path / name
    data = (tiny("llama") / name).read_bytes()
    broken = {"truncated": data[:-10], "flipped": data[:9] + bytes([data[9] ^ 1]) + data[10:], "empty": b""}[how]
    file.resolve().write_bytes(broken)
    with pytest.raises(UnavailableError, match="is damaged") as caught:
        locate(REPO, ModelOptions(device="cpu", offline=True))
    assert str(file) in str(caught.value) and file.resolve().name[:12] in str(caught.value)
    again = locate(REPO, ModelOptions(device="cpu"))
    (record,) = caplog.records
    assert f"{file} is damaged" in record.getMessage() and "fetching it again" in record.getMessage()
    assert file.read_bytes() == data and again.weights_sha256 == whole.weights_sha256
    assert not again.has_changed()


def test_a_damaged_file_and_no_hub(server: Hub) -> None:
    fetched = fetch(REPO, ModelOptions())
    (fetched.path / "model.safetensors").resolve().write_bytes(b"x")
    server.fail(status=503)
    with pytest.raises(UnavailableError, match="answers 503"):
        locate(REPO, ModelOptions(device="cpu"))


def test_files_that_are_not_the_hubs_are_left_alone(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    link = tmp_path / "model.safetensors"
    link.symlink_to(tiny("llama") / "model.safetensors")
    assert hub.checked_sha256([link, tiny("gpt2") / "model.safetensors"], ModelOptions()) == {}
    assert hub_files.damage(link) == "" and hub_files.repository_of(link) is None


# --- through the command ----------------------------------------------------------------------------


def test_a_run_by_hub_id_and_again_offline(server: Hub, tmp_path: Path) -> None:
    result = analyze(REPO, "--revision", "main", "--json", tmp_path / "run.json")
    assert result.exit_code == 0, result.output
    assert (
        json.loads((tmp_path / "run.json").read_text())["model"]["revision"] == server.repositories[REPO].refs["main"]
    )
    told = [line for line in result.stderr.splitlines() if line.startswith(f"{REPO}: ")]
    assert " files to download, " in told[0] and told[-1].startswith(f"{REPO}: 100 % of ")
    server.close()
    assert analyze(REPO, "--no-cache").exit_code == 0


def command(server_url: str, cache: Path, *words: object, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment |= {"HF_ENDPOINT": server_url, "HF_HUB_CACHE": str(cache), "PYTHONPATH": str(ROOT), **variables}
    line = [sys.executable, "-m", "condense", *map(str, words), "--num-texts", "8", "--max-length", "32"]
    return subprocess.run(line, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_the_process_of_a_user(server: Hub, tmp_path: Path) -> None:
    """A download, an outage and both ways of being offline, each in a process of its own."""
    cache = tmp_path / "cache"
    first = command(server.url, cache, "-q", "analyze", REPO, "--json", tmp_path / "run.json")
    assert first.returncode == 0, first.stderr
    assert first.stderr.splitlines() == [f"wrote {tmp_path / 'run.json'}"], "no progress under -q"
    server.fail(status=503)
    outage = command(server.url, cache, "-q", "analyze", REPO, "--json", tmp_path / "again.json")
    assert outage.returncode == 0, outage.stderr
    assert f"going on with the copy in {cache}" in outage.stderr.splitlines()[0] and len(outage.stderr.splitlines()) < 4
    nothing = command(server.url, tmp_path / "empty", "-q", "analyze", REPO)
    assert nothing.returncode == 3 and len(nothing.stderr.splitlines()) == 2, nothing.stderr
    for words, variables in ((["--offline"], {}), ([], {"HF_HUB_OFFLINE": "1"})):
        server.requests.clear()
        offline = command(server.url, cache, "analyze", REPO, "--json", tmp_path / "off.json", *words, **variables)
        assert offline.returncode == 0, offline.stderr
        assert server.requests == []


@pytest.mark.parametrize(
    ("names", "line", "hint"),
    [
        (["README.md", "b-Q4_K_M.gguf", "a-Q8_0.gguf"], "it holds 2 .gguf files", "hf download org/x a-Q8_0.gguf "),
        (
            ["a; touch b.gguf"],
            "it holds 1 .gguf file",
            "org/x 'a; touch b.gguf' --local-dir . && condense analyze './a; ",
        ),
        (["config.json", "consolidated.00.pth"], "it holds consolidated.00.pth", "hf download org/x --local-dir DIR"),
        (
            ["config.json", "pytorch_model.bin", "flax_model.msgpack"],
            "org/x has no safetensors weights",
            "--allow-pickle",
        ),
        (["config.json"], "org/x has no safetensors weights", "--allow-pickle"),
    ],
)
def test_a_repository_without_weights_says_what_it_holds(names: list[str], line: str, hint: str) -> None:
    with pytest.raises(UnavailableError) as caught:
        needed("org/x", names)
    assert line in str(caught.value) and hint in caught.value.hint


@pytest.mark.parametrize("index", [b"[" * 200_000, b"{}", b"[]", b"\xff", b'{"weight_map": 1}'])
def test_an_index_that_is_none_names_no_shards(index: bytes) -> None:
    assert shards_of(index) == ()
