"""Where outputs go: odd names and links are found before anything is measured."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from condense.cli.app import app
from condense.cli.outputs import NAMES, Outputs, check_file, check_folder, is_written_by_condense, plan_outputs
from condense.errors import UsageError
from condense.files import write_text
from condense.records.diagnosis import Diagnosis
from condense.records.options import OutputOptions
from tests.browser import test_treatment_page as treatment_page
from tests.report.test_one_verdict import MADE


def test_a_link_stays_and_its_target_is_written(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    link, target = tmp_path / "run.json", tmp_path / "kept" / "real.json"
    link.symlink_to(target)
    for text in ("", '{"schema":"condense.diagnosis/1"}', "mine"):
        check_file(link)
        write_text(link, text)
        assert link.is_symlink() and target.read_text() == text
    with pytest.raises(UsageError, match="real.json exists and was not written by condense"):
        check_file(link)
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["real.json"]


def test_links_that_lead_nowhere_are_refused(tmp_path: Path) -> None:
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    (tmp_path / "gone").symlink_to(tmp_path / "no" / "folder" / "x.json")
    (tmp_path / "folder").symlink_to(tmp_path / "missing")
    for force in (True, False):
        with pytest.raises(UsageError, match="leads in a circle"):
            check_file(tmp_path / "circle")
        with pytest.raises(UsageError, match="leads in a circle"):
            check_folder(tmp_path / "circle", force=force)
        with pytest.raises(UsageError, match="whose folder is not there"):
            check_file(tmp_path / "gone")
        with pytest.raises(UsageError, match="which is not there"):
            check_folder(tmp_path / "folder", force=force)


def test_a_folder_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    check_folder(tmp_path / "link", force=False)
    check_file(tmp_path / "link" / "run.json")
    write_text(tmp_path / "link" / "run.json", "text")
    assert (tmp_path / "real" / "run.json").read_text() == "text"


@pytest.mark.parametrize("name", ["x" * 250 + ".json", "é" * 125 + ".json", "x" * 255])
def test_the_longest_names_are_written(tmp_path: Path, name: str) -> None:
    check_file(tmp_path / name)
    write_text(tmp_path / name, "text")
    assert (tmp_path / name).read_text() == "text" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("name", ["x" * 256, "é" * 130, "x" * 5000])
def test_longer_names_are_refused_at_once(tmp_path: Path, name: str) -> None:
    with pytest.raises((UsageError, OSError), match="(?i)name"):
        check_file(tmp_path / name)


def test_a_name_that_is_no_utf8_is_written(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.json")
    check_file(path)
    write_text(path, "text of caf\udce9")
    assert os.listdir(os.fsencode(str(tmp_path))) == [b"caf\xe9.json"] and path.read_text().startswith("text of caf")


SAVED = Path(__file__).parents[1] / "saved" / "diagnosis-metrics-2.json"


def test_a_single_file_is_written_beside_those_of_the_folder(tmp_path: Path) -> None:
    run = Diagnosis.from_json(SAVED)
    for kind, name in NAMES.items():
        single = tmp_path / f"single.{kind}"
        outputs = plan_outputs(OutputOptions(output=tmp_path / kind, plotlyjs="none", **{kind: single}))
        assert set(outputs.write(run)) == {single, *(tmp_path / kind / file for file in NAMES.values())}
        assert single.read_bytes() == (tmp_path / kind / name).read_bytes()


def test_the_same_file_is_written_once_and_never_as_two_kinds(tmp_path: Path) -> None:
    outputs = plan_outputs(OutputOptions(output=tmp_path / "out", json=tmp_path / "out" / ".." / "out" / NAMES["json"]))
    assert outputs.json == (tmp_path / "out" / NAMES["json"],)
    (tmp_path / "out").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "out")
    with pytest.raises(UsageError, match="would be written as html and as md"):
        plan_outputs(OutputOptions(html=tmp_path / "out" / "x", md=tmp_path / "link" / "x"))
    with pytest.raises(UsageError, match="would be written as json and as csv"):
        plan_outputs(OutputOptions(output=tmp_path / "out", csv=tmp_path / "out" / NAMES["json"]))


# --- what condense wrote ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(MADE))
def test_every_file_of_condense_is_known(kind: str, tmp_path: Path) -> None:
    record = MADE[kind]()
    outputs = Outputs(**{name: (tmp_path / file,) for name, file in NAMES.items()}, plotlyjs="none")
    for path in outputs.write(record):
        assert is_written_by_condense(path), path.name
        check_file(path)


def test_reports_of_other_kinds_are_known_too(tmp_path: Path) -> None:
    from condense.gate.assertions import parse_inline
    from condense.gate.run import evaluate, subject_of
    from condense.report.gate.text import gate_junit, gate_markdown
    from condense.report.treatment.text import model_card

    run = treatment_page.treatment()
    gate = evaluate(run, (parse_inline("deep.mean_cosine <= -0.9"),), subject_of(run))
    texts = [gate_junit(gate), gate_markdown(gate), model_card(run)]
    texts += ["", '{"schema":"condense.installation/1"}', "arm,status,reason\ncosreg=1,failed,boom\n"]
    for text in texts:
        (tmp_path / "file").write_text(text)
        assert is_written_by_condense(tmp_path / "file"), text[:80]


META = '<meta name="generator" content="{}">'
OURS = META.format("condense 0.1.0")
PAGE = "<!DOCTYPE html>\n<html><head>{}</head><body>{}</body></html>"
FOREIGN = {
    "prose that quotes a mark": "My thesis\n# condense: a chapter\n",
    "a heading like ours": "# condense: notes\n",
    "a mark in the second line": "notes\n<!-- condense 0.1.0 -->\n",
    "a mark that goes on": "<!-- condense 0.1.0 --> and my notes\n",
    "JSON of another schema": '{"schema": "something else"}',
    "JSON with our schema inside": '{"mine": {"schema": "condense.diagnosis/1"}}',
    "JSON with our schema as text": '{"mine": "{\\"schema\\":\\"condense.diagnosis/1\\"}"}',
    "JSON that ends early": '{"schema":"condense.diagnosis/1"',
    "JSON that is nested deeply": "{" + '"a":{' * 5000,
    "a page of another generator": PAGE.format(META.format("Hugo 0.1"), ""),
    "a page of another one first": PAGE.format(META.format("Hugo 0.1") + OURS, ""),
    "a page with our mark in its body": PAGE.format("", OURS),
    "a page with our mark in a comment": PAGE.format(f"<!-- {OURS} -->", ""),
    "a page with our mark in a script": PAGE.format(f"<script>'{OURS}'</script>", ""),
    "a piece of a page": '<meta name="generator" content="condense 0.1.0">',
    "XML of another root": '<?xml version="1.0"?><suite><testsuites name="condense"/></suite>',
    "XML of another program": '<?xml version="1.0"?><testsuites name="pytest"/>',
    "XML that is none": "<testsuites name=",
    "front matter of another card": "---\nlicense: mit\n---\ngenerator: \"condense 0.1.0\"\n",
    "front matter that quotes": "---\nnote: 'generator: \"condense 0.1.0\"'\n---\n",
    "a table with a column of its own": "site,stack,index,depth,mean_cosine,price\n",
    "a table with fewer columns": "site,stack,index\n",
    "a table in the second line": "mine\nsite,stack,index,depth,mean_cosine\n",
    "a table of steps": "step,price,seconds\n",
}  # fmt: skip


@pytest.mark.parametrize("text", FOREIGN.values(), ids=FOREIGN)
def test_what_somebody_else_wrote_is_never_written_over(text: str, tmp_path: Path) -> None:
    path = tmp_path / "mine"
    path.write_text(text)
    assert not is_written_by_condense(path)
    with pytest.raises(UsageError, match="was not written by condense"):
        check_file(path)


def test_bytes_that_are_no_text_are_somebody_elses(tmp_path: Path) -> None:
    (tmp_path / "mine").write_bytes(b"\xff\xfe<!-- condense 0.1.0 -->")
    assert not is_written_by_condense(tmp_path / "mine")


def test_force_writes_over_nothing_of_somebody_else(tmp_path: Path) -> None:
    """It lets a command write into a folder that is not empty, but not over a file there that is not condense's."""
    run = tmp_path / "run.json"
    MADE["diagnosis"]().to_json(run)
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "thesis.txt").write_text("mine")
    command = ["compare", str(run), str(run), "-o", str(folder), "--force"]
    assert CliRunner().invoke(app, command).exit_code == 0
    (folder / "report.md").write_text("mine")
    refused = CliRunner().invoke(app, command)
    assert refused.exit_code == 2 and "report.md exists and was not written by condense" in refused.output
    assert {(folder / name).read_text() for name in ("thesis.txt", "report.md")} == {"mine"}


def test_members_of_a_comparison_are_not_written_over_files_of_somebody_else(
    tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    """With --force too, nor through a link; it is told before the member is measured."""
    members, mine = tmp_path / "out" / "members", tmp_path / "mine.json"
    members.mkdir(parents=True)
    mine.write_text("mine")
    (members / "llama.json").write_text("mine")
    (members / "gpt2.json").symlink_to(mine)
    words = ["compare", str(tiny("llama")), str(tiny("gpt2")), "-o", str(tmp_path / "out"), "--force"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2 and "was not written by condense" in result.stderr, result.output
    assert mine.read_text() == (members / "llama.json").read_text() == "mine"
