"""The documentation against the code: snippets run, commands parse, links resolve, generated files are fresh."""

import functools
import inspect
import json
import re
import runpy
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import jsonschema
import pytest

import condense
from condense.dispersion.variants import PENALTIES
from condense.metrics import LENS, MATRIX, METRICS, PAIR, POOLED, QUALITY
from condense.records import serial
from condense.records.diagnosis import Diagnosis
from condense.records.plans import LossName, Plan
from condense.records.serial import schema_of
from tests import generated

ROOT = generated.ROOT
STUDY = ROOT / "docs" / "study"
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *STUDY.glob("*.md")])
SCHEMA = ROOT / "condense" / "data" / "diagnosis.schema.json"
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


# --- snippets ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Block:
    """A fenced block of a page: its language, where it is, and whether `<!-- run -->` stands before it."""

    page: str
    line: int
    language: str
    text: str
    run: bool

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


_FENCE = re.compile(r"^(?P<mark><!-- run -->\n)?```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^```$", re.M | re.S)


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for match in _FENCE.finditer(text):
        line = text.count("\n", 0, match.start("text"))
        yield Block(page.name, line, match["language"], match["text"], bool(match["mark"]))


ALL = [block for page in PAGES for block in blocks(page)]
PYTHON = [block for block in ALL if block.language == "python"]
SHELL = [block for block in ALL if block.language in ("bash", "sh", "console")]


def test_there_are_snippets_to_test() -> None:
    assert sum(block.run for block in PYTHON) >= 6
    assert len(SHELL) >= 4


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_python_compiles(block: Block) -> None:
    compile(block.text, str(block), "exec")


@pytest.mark.parametrize("block", [block for block in PYTHON if block.run], ids=str)
def test_python_runs(
    block: Block, copy_of: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Marked blocks run as they stand, beside a tiny checkpoint that is called my-model."""
    copy_of("llama").rename(tmp_path / "my-model")
    monkeypatch.chdir(tmp_path)
    exec(compile(block.text, str(block), "exec"), {"__name__": "__main__"})


def shell_commands() -> Iterator[tuple[Block, list[str]]]:
    """Every `condense …` of a shell block, without what is piped in or set before it."""
    for block in SHELL:
        for line in block.text.replace("\\\n", " ").splitlines():
            for part in re.split(r"[|;]|&&", line.removeprefix("$ ")):
                words = shlex.split(part, comments=True)
                while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                    words.pop(0)
                if words[:1] == ["condense"]:
                    yield block, words[1:]


def questions() -> list[str]:
    """The questions of docs/questions.md with their answers."""
    text = (ROOT / "docs" / "questions.md").read_text(encoding="utf-8")
    return [part for part in text.split("\n\n") if part.startswith("**")]


def inline_commands() -> Iterator[tuple[Block, list[str]]]:
    """Every `condense …` in the answers."""
    for part in questions():
        for command in re.findall(r"`condense ([^`]+)`", part):
            number = int(part[2:].partition(".")[0])
            yield Block("questions.md", number, "bash", command, run=False), shlex.split(command)


def test_thirty_questions_are_answered_in_two_lines_with_a_command() -> None:
    numbers = sorted(int(part[2:].partition(".")[0]) for part in questions())
    assert numbers == list(range(1, 31))
    assert {block.line for block, _ in inline_commands()} == set(numbers)
    for part in questions():
        assert len(part.splitlines()) == 3 and max(map(len, part.splitlines())) <= 136, part


COMMANDS = [*shell_commands(), *inline_commands()]
help_text = functools.cache(generated.help_text)


@pytest.mark.parametrize(("block", "words"), COMMANDS, ids=[f"{b}-{' '.join(w)[:40]}" for b, w in COMMANDS])
def test_shell_commands_exist(block: Block, words: list[str]) -> None:
    """The command is one of ours and knows every option that is used."""
    flags = [word.partition("=")[0] for word in words if word.startswith("-") and word != "-"]
    name = next((word for word in words if not word.startswith("-")), None)
    assert name is None or name in generated.commands()
    known = help_text() + (help_text(name) if name else "")
    for flag in flags:
        assert re.search(rf"(?<![\w-]){re.escape(flag)}(?![\w-])", known), flag


# --- words ------------------------------------------------------------------------------------------


NUMBERS = (*METRICS, *QUALITY, *PAIR, *MATRIX, *LENS, *(metric.key for metric in POOLED.values()))


@pytest.mark.parametrize("key", NUMBERS)
def test_every_number_is_explained(key: str) -> None:
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert re.search(rf"^\|.*`{key}`.*\|$", text, re.M), f"{key} has no row in docs/metrics.md"


def test_every_public_name_is_in_the_docs() -> None:
    text = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    missing = [name for name in condense.__all__ if not name.startswith("_") and not re.search(rf"\b{name}\b", text)]
    assert not missing


def test_every_loss_and_every_one_with_a_temperature_is_named() -> None:
    """`robust` could be chosen and was in no list of the losses."""
    section = (ROOT / "docs/treating.md").read_text(encoding="utf-8").split("## The losses")[1].split("\n## ")[0]
    assert [loss for loss in get_args(LossName) if f"`{loss}`" not in section] == []
    (flag,) = get_type_hints(Plan, include_extras=True)["tau"].__metadata__
    for name, penalty in PENALTIES.items():
        word = "placebos" if name.startswith("placebo-") else name
        has_one = "tau" in inspect.signature(penalty).parameters and name != "simreg"  # whose .1 is the paper's
        assert (word in re.findall(r"\w+", flag.help)) is has_one, name
        assert word in ("simreg", "placebos") or (f"`{word}`" in section.split("temperature of")[1][:60]) is has_one


def test_every_package_and_single_file_is_in_the_plan_of_the_packages() -> None:
    plan = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").partition("```text\n")[2].partition("```")[0]
    names = {path.stem for path in (ROOT / "condense").glob("*.py")} | {
        path.name for path in (ROOT / "condense").iterdir() if (path / "__init__.py").exists()
    }
    assert not names - set(re.findall(r"\w+", plan))


@every_page
def test_nobody_is_told_to_install_the_other_package(page: Path) -> None:
    """The name on PyPI is somebody else's: only the sentence that warns may show the line."""
    for paragraph in page.read_text(encoding="utf-8").split("\n\n"):
        if re.search(r"(pip3?|uv|pipx)( \w+)* install( -\S+)* ['\"]?condense\b(?!-lm)", paragraph):
            assert "somebody else" in paragraph, paragraph


def test_no_message_tells_to_install_the_other_package() -> None:
    for file in (ROOT / "condense").rglob("*.py"):
        assert not re.search(r"pip install ['\"]?condense\b(?!-lm)", file.read_text(encoding="utf-8")), file


@every_page
def test_links_resolve(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        place, _, anchor = target.partition("#")
        file = (page.parent / place).resolve() if place else page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file), target


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_page_is_on_the_map() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    site = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]
    for page in PAGES:
        if page.name == "README.md":
            continue
        name = page.relative_to(ROOT / "docs").as_posix()
        assert name == "index.md" or f"({name})" in index, name
        assert f"- {name}\n" in site, f"{name} is not in the nav of mkdocs.yml"


# --- generated files --------------------------------------------------------------------------------


@pytest.mark.parametrize("path", generated.FILES, ids=lambda path: path.name)
def test_generated_files_are_fresh(path: Path) -> None:
    assert path.read_text(encoding="utf-8") == generated.FILES[path](), "run: make docs"


def test_help_is_plain_whatever_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "40")
    text = generated.help_text("report")
    assert "\x1b" not in text and max(map(len, text.splitlines())) == generated.WIDTH


# --- the schema -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def validator() -> Any:
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.fixture
def saved(diagnosed: Callable[[str], Any]) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(diagnosed("gpt2").to_json())
    return data


@pytest.mark.parametrize("name", ["gpt2", "bert", "t5"])
def test_a_diagnosis_is_valid(name: str, diagnosed: Callable[[str], Any], validator: Any) -> None:
    """Causal, masked (null with a reason) and two stacks."""
    validator.validate(json.loads(diagnosed(name).to_json()))


def test_a_twin_is_valid_and_checked(saved: dict[str, Any], validator: Any) -> None:
    saved["twin"] = json.loads(json.dumps(saved))
    validator.validate(saved)
    saved["twin"]["trend"] = "up"
    assert not validator.is_valid(saved)


def _without(data: dict[str, Any], *path: Any) -> None:
    *inner, last = path
    for key in inner:
        data = data[key]
    del data[last]


BREAKAGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "another schema": lambda d: d.update(schema="condense.diagnosis/2"),
    "no verdict": lambda d: _without(d, "verdict"),
    "no value": lambda d: _without(d, "deep", "mean_cosine", "value"),
    "unknown word": lambda d: d["verdict"].update(cone="narrow"),
    "unknown site": lambda d: d["sites"][0].update(site="attention"),
    "text for a number": lambda d: d["deep"]["mean_cosine"].update(value="0.5"),
    "text in a list of numbers": lambda d: d["paper"]["mean_cosine"].append("0.5"),
    "half a count": lambda d: d["corpus"].update(texts=1.5),
    "a list for an object": lambda d: d.update(stacks=[]),
    "null where none may be": lambda d: d["model"].update(id=None),
}


@pytest.mark.parametrize("breakage", BREAKAGES)
def test_a_broken_diagnosis_is_not_valid(breakage: str, saved: dict[str, Any], validator: Any) -> None:
    """What the schema refuses the reader refuses too."""
    BREAKAGES[breakage](saved)
    assert not validator.is_valid(saved)
    with pytest.raises(Exception, match="schema is|not a valid"):
        Diagnosis.from_json(saved)


def test_what_the_reader_takes_is_valid(saved: dict[str, Any], validator: Any) -> None:
    """Fields with a default may be missing, unknown ones may be there."""
    _without(saved, "stacks")
    _without(saved, "corpus", "requested")
    saved["colour"] = "blue"
    validator.validate(saved)
    assert Diagnosis.from_json(saved).stacks == {}


@dataclass(frozen=True)
class Leaf:
    """A leaf.

    More about it.
    """

    size: float


@dataclass(frozen=True)
class Tree:
    """A tree."""

    kind: Literal["oak", "elm"]
    leaves: tuple[Leaf, ...]
    notes: Mapping[str, Any]
    parent: "Tree | None" = None
    age: int | str = 0


def test_schema_of_every_kind_of_field() -> None:
    schema = schema_of(Tree)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["$ref"] == "#/$defs/Tree"
    assert schema["$defs"]["Leaf"] == {
        "description": "A leaf.", "type": "object", "properties": {"size": {"type": "number"}}, "required": ["size"],
    }  # fmt: skip
    tree = schema["$defs"]["Tree"]
    assert tree["required"] == ["kind", "leaves", "notes"]
    assert tree["properties"] == {
        "kind": {"enum": ["oak", "elm"]},
        "leaves": {"type": "array", "items": {"$ref": "#/$defs/Leaf"}},
        "notes": {"type": "object", "additionalProperties": {}},
        "parent": {"anyOf": [{"$ref": "#/$defs/Tree"}, {"type": "null"}]},
        "age": {"anyOf": [{"type": "integer"}, {"type": "string"}]},
    }
    record = Tree("oak", (Leaf(1.0),), {"a": [1]}, Tree("elm", (), {}))
    jsonschema.Draft202012Validator(schema).validate(serial.encode(record))


def test_schema_of_what_has_no_json_form() -> None:
    @dataclass
    class Odd:
        place: Path

    with pytest.raises(TypeError, match="no JSON form"):
        schema_of(Odd)
    with pytest.raises(ValueError, match="not a dataclass"):
        schema_of(dict)


def test_the_tables_of_the_study_are_those_of_its_records() -> None:
    made = runpy.run_path(str(STUDY / "tables.py"))
    text = (STUDY / "results.md").read_text(encoding="utf-8")
    assert text.count("<!-- table: ") >= 10 and made["written"](text) == text
    assert made["written"](text.replace("0.", "1.")) != text.replace("0.", "1."), "a wrong number is seen"
