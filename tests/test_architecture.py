"""The floor plan as data, compared with the imports that are really there; and what must never be loaded."""

import ast
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PACKAGE = Path(__file__).parents[1] / "condense"

# Each floor may import from the floors above it in this list (that is: from below it in the house), and within
# a floor only what is named. A room that is not here fails the test: give it a floor.
FLOORS: list[set[str]] = [
    {"version", "errors", "metrics"},
    {"serial", "cache", "schema", "dispersion", "geometry", "intervals", "documents", "inspection", "merges"},
    {"records", "tasks", "outcomes", "trials", "comparisons"},
    {"capture", "corpus", "gguf", "hub", "verdict", "effects", "arm_names", "vocabulary", "seeds", "installation"},
    {"soundness", "spans", "contrasts", "assertions", "comparability", "candidates"},
    {"location"},
    {"checkpoint", "quality", "disperser", "training_text", "assessment", "readings", "trajectory"},
    {"interventions", "rescoring", "conclusions", "remedies"},
    {"measuring", "overhead", "trainer", "training", "saving", "estimate", "harness", "evaluation"},
    {"tally", "journal", "cloud", "advice"},
    {"ranks", "gate"},
    {"diagnosis"},
    {"diagnosis_cache", "remarks"},
    {"preparation", "arms"},
    {"footprint"},
    {"costs", "results", "runs"},
    {"treatment", "experiment", "comparison"},
    {"page"},
    {"cli", "__init__", "__main__"},
]
SAME_FLOOR = {
    ("serial", "errors"), ("outcomes", "records"), ("tasks", "records"), ("trials", "records"), ("trials", "tasks"),
    ("trials", "outcomes"), ("comparisons", "records"), ("comparisons", "outcomes"), ("gguf", "inspection"),
    ("training", "trainer"), ("verdict", "records"), ("inspection", "serial"), ("__main__", "cli"),
    ("outcomes", "tasks"), ("evaluation", "harness"),
}  # fmt: skip
# Imports inside functions, upwards: a record that draws itself, a result that is written with its pages.
LAZY_UPWARDS = {
    ("records", "page"), ("outcomes", "page"), ("trials", "page"), ("comparisons", "page"), ("saving", "page"),
    ("__init__", "*"),
}  # fmt: skip
HEAVY = {
    "torch", "transformers", "pandas", "sklearn", "scipy", "plotly", "datasets", "peft", "accelerate", "trl", "lm_eval",
}  # fmt: skip
# Which heavy packages a room may import when it is loaded; inside functions they are free.
MAY_LOAD = {
    "torch": {
        "dispersion", "geometry", "capture", "corpus", "soundness", "spans", "checkpoint", "quality", "disperser",
        "training_text", "measuring", "overhead", "trainer", "cloud", "training", "saving", "tally", "diagnosis",
        "treatment", "interventions", "rescoring", "preparation", "arms", "footprint", "costs", "results", "experiment",
        "journal", "ranks", "vocabulary", "remedies", "runs", "location", "diagnosis_cache",
    },
    "transformers": {"trainer", "training", "remedies"},
}  # fmt: skip
WITH_TORCH = set().union(*MAY_LOAD.values())


def rooms() -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        found.setdefault(name, []).append(path)
    return found


def imports(path: Path) -> list[tuple[str, bool]]:
    """(module, at the top level) of every import that runs; those under TYPE_CHECKING do not."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    hidden = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for part in node.body
        for inner in ast.walk(part)
    }
    inside = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for inner in ast.walk(node)
    }
    found = []
    for node in ast.walk(tree):
        if id(node) in hidden:
            continue
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) not in inside) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [f"condense.{alias.name}" for alias in node.names] if node.module == "condense" else [node.module]
            found += [(name, id(node) not in inside) for name in names]
    return found


def floor(room: str) -> int:
    return next(level for level, names in enumerate(FLOORS) if room in names)


def violations(room: str, path: Path) -> list[str]:
    wrong = []
    for module, top in imports(path):
        head, _, rest = module.partition(".")
        if head == "condense" and rest:
            other = rest.partition(".")[0]
            if other == room or other == "__version__":
                continue
            allowed = floor(other) < floor(room) or (room, other) in SAME_FLOOR
            lazily = not top and ({(room, other), (room, "*")} & LAZY_UPWARDS)
            if not allowed and not lazily:
                wrong.append(f"{room} imports {other}")
            elif top and other in WITH_TORCH and room not in WITH_TORCH:
                wrong.append(f"{room} loads torch through {other}")
        elif head in HEAVY and top and room not in MAY_LOAD.get(head, set()):
            wrong.append(f"{room} loads {head} at import")
    return wrong


def test_every_room_has_one_floor() -> None:
    placed = [room for names in FLOORS for room in names]
    assert len(placed) == len(set(placed))
    assert set(rooms()) - {"data"} <= set(placed)


def test_imports_point_downwards() -> None:
    assert [w for room, paths in rooms().items() for path in paths for w in violations(room, path)] == []


@pytest.mark.parametrize(
    ("room", "code"),
    [
        ("geometry", "import transformers"),
        ("records", "from condense.geometry import measure"),
        ("verdict", "import torch"),
        ("diagnosis", "from condense.page.html import diagnosis_page"),
        ("cli", "import torch"),
        ("capture", "from condense import diagnosis"),
        ("geometry", "def f():\n    from condense.diagnosis import analyze"),
    ],
)
def test_a_violation_is_seen(room: str, code: str, tmp_path: Path) -> None:
    path = tmp_path / f"{room}.py"
    path.write_text(code)
    assert violations(room, path)


@pytest.fixture(scope="module")
def saved_run(diagnosed: Callable[[str], Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "run.json"
    diagnosed("llama").to_json(path)
    return path


FORBIDDEN = ("torch", "transformers", "pandas", "sklearn", "accelerate", "datasets")
LIGHT = [
    ["--help"], ["analyze", "--help"], ["treat", "--help"], ["trial", "--help"], ["doctor", "--help"], ["init", "OUT"],
    ["report", "RUN"], ["report", "RUN", "--md", "OUT"],
    ["check", "RUN"], ["check", "RUN", "--baseline", "RUN", "--junit", "OUT"],
    ["compare", "--help"], ["compare", "RUN", "RUN"],
    ["compare", "RUN", "RUN", "--html", "OUT.html", "--md", "OUT", "--csv", "OUT.csv", "--json", "OUT.json"],
    ["report", "COMPARISON"], ["report", "COMPARISON", "--html", "OUT.html"],
]  # fmt: skip


def loaded_by(code: str) -> list[str]:
    check = f"{code}\nimport sys, json; print(); print(json.dumps([m for m in {FORBIDDEN!r} if m in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("arguments", LIGHT, ids=" ".join)
def test_light_commands_load_nothing_heavy(arguments: list[str], saved_run: Path, tmp_path: Path) -> None:
    from condense.comparison import compare
    from condense.records import Diagnosis

    run, both = Diagnosis.from_json(saved_run), tmp_path / "both.json"
    compare(run, run).to_json(both)
    named = {"RUN": str(saved_run), "OUT": str(tmp_path / "out.md"), "COMPARISON": str(both)}
    named |= {f"OUT.{kind}": str(tmp_path / f"out.{kind}") for kind in ("html", "csv", "json")}
    words = [named.get(word, word) for word in arguments]
    call = f"try:\n    app({words!r})\nexcept SystemExit as end:\n    assert not end.code"
    code = f"from condense.cli.app import app\n{call}"
    assert loaded_by(code) == []


def test_importing_condense_loads_nothing_heavy() -> None:
    assert loaded_by("import condense; condense.__version__") == []


def test_the_check_on_loading_can_fail() -> None:
    assert loaded_by("import torch") == ["torch"]


def test_public_names_are_really_there() -> None:
    import condense

    assert set(condense.__all__) <= set(dir(condense))
    for name in condense.__all__:
        assert getattr(condense, name) is not None
    with pytest.raises(AttributeError):
        _ = condense.nothing
