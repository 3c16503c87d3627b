"""Markdown and CSV of every kind of saved run, all of whose words come from somebody else."""

import csv
import functools
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from condense.errors import UnavailableError
from condense.gate.assertions import parse_inline
from condense.gate.run import Names, evaluate, subject_of
from condense.records.base import Saved
from condense.records.diagnosis import Diagnosis
from condense.records.treatment import Treatment
from condense.report.gate.text import gate_annotations, gate_junit, gate_markdown
from condense.report.tables import rows_csv
from condense.report.treatment.text import model_card
from tests.generated import SAVED

PAYLOAD = "=cmd()|x`<script>alert(1)</script>[a](javascript:x)\n# heading\n::error::gotcha\n=2+5\u202e\x1b[31m"
KINDS = sorted(SAVED)


def words_of(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths to all texts of a saved run; those that differ in a number only count as one kind of place."""
    inner = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in inner:
        if isinstance(value, str):
            yield (*path, key)
        yield from words_of(value, (*path, key))


def holder_of(data: Any, path: tuple[Any, ...]) -> Any:
    for key in path[:-1]:
        data = data[key]
    return data


def named(path: tuple[Any, ...]) -> str:
    """A place as the reader names it in its refusals, whichever of several it is."""
    return "".join("[*]" if isinstance(part, int) else f".{part}" for part in path)[1:]


@functools.cache
def poisoned(kind: str) -> tuple[Saved, int]:
    """A saved run with the payload wherever the reader takes it, and at how many kinds of places that is."""
    record = SAVED[kind]
    file = Path(__file__).parents[1] / "saved" / f"{kind}-0.1.0.json"
    data = json.loads(file.read_text(encoding="utf-8"))
    places: dict[str, dict[tuple[Any, ...], str]] = {}
    for path in words_of(data):
        places.setdefault(named(path), {})[path] = holder_of(data, path)[path[-1]]
    schema = places.pop("schema")
    for path in (path for paths in places.values() for path in paths):
        holder_of(data, path)[path[-1]] = PAYLOAD
    assert schema
    while True:
        try:
            return record.from_json(data), len(places)
        except UnavailableError as error:  # one of the words that there are: the reader names the place
            place = re.search(r": (\S+) (is|has|holds) ", str(error))
            assert place, error
            for path, word in places.pop(re.sub(r"\[\d+\]", "[*]", place[1])).items():
                holder_of(data, path)[path[-1]] = word


@pytest.fixture(scope="module", params=KINDS)
def run(request: pytest.FixtureRequest) -> Saved:
    record, taken = poisoned(request.param)
    assert taken >= 8
    return record


def test_markdown_is_escaped(run: Saved) -> None:
    assert_harmless(run.to_markdown())


def assert_harmless(text: str) -> None:
    """No markup, link, heading or command of the payload's, outside of code."""
    assert "\u202e" not in text and "\x1b" not in text
    plain = re.sub(r"(?<!\\)`[^`\n]*`", "", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S))
    assert "gotcha" in text and "<script" not in plain
    assert not re.search(r"(?<!\\)\]\(javascript", plain)
    for line in text.splitlines():
        assert not re.match(r"\s*(# heading|::|=2)", line), line
        assert "##[" not in line


def test_rows_of_tables_keep_their_columns(run: Saved) -> None:
    width = None
    for line in run.to_markdown().splitlines():
        if not line.startswith("|"):
            width = None
            continue
        columns = len(re.findall(r"(?<!\\)\|", line))
        assert columns == (width or columns), line
        width = columns


def test_csv_has_no_formula(run: Saved) -> None:
    rows = list(csv.reader(io.StringIO(rows_csv(run.rows()))))
    assert len(rows) > 1 and len({len(row) for row in rows}) == 1
    for cell in (cell for row in rows for cell in row):
        number = re.fullmatch(r"[+-]?(\d|\.|e|inf|nan)+.*", cell) and _is_number(cell)
        assert number or not cell.startswith(("=", "+", "-", "@", "\t", "\r")), cell
        assert "\x1b" not in cell and "\u202e" not in cell


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def test_a_key_from_outside_is_no_formula_either() -> None:
    rows = list(csv.reader(io.StringIO(rows_csv([{"=cmd()": 1, "@a": "=b", "c": "\n=d"}]))))
    assert rows == [["'=cmd()", "'@a", "c"], ["1", "'=b", "'\n=d"]]


def test_html_is_escaped(run: Saved) -> None:
    page = run.to_html(plotlyjs="none")
    assert "gotcha" in page and "<script>alert(1)" not in page and "\u202e" not in page


@pytest.mark.parametrize("kind", ["diagnosis", "treatment"])
def test_a_gate_is_escaped(kind: str) -> None:
    """Its summary is shown on the page of a CI run, its JUnit by a server, its annotations are commands to a runner."""
    saved, _ = poisoned(kind)
    assert isinstance(saved, Diagnosis | Treatment)
    tests = (parse_inline("deep.mean_cosine <= -0.9"), parse_inline("warn: quality.loss <= 0"))
    gate = evaluate(saved, tests, subject_of(saved), names=Names(PAYLOAD, PAYLOAD))
    assert_harmless(gate_markdown(gate))
    ElementTree.fromstring(gate_junit(gate))
    lines = gate_annotations(gate)
    assert lines and all(line.startswith("::") and "\n" not in line and "::error::gotcha" not in line for line in lines)


def test_a_model_card_is_escaped() -> None:
    saved, _ = poisoned("treatment")
    assert isinstance(saved, Treatment)
    head, _, body = model_card(saved).removeprefix("---\n").partition("\n---\n")
    assert all(re.match(r"\w+: ", line) for line in head.splitlines()) and "\u202e" not in head
    assert_harmless(body)
