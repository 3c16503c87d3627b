"""The list of packages, compared with the imports that are really there; and what must never be loaded."""

import ast
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

PACKAGE = Path(__file__).parents[1] / "condense"

# Each package or single file may import what stands before it here, and itself. One that is missing fails the test.
ORDER = (
    "version", "errors", "metrics", "geometry", "intervals", "files", "lock", "folders", "records", "texts", "models",
    "dispersion",
    "diagnosis", "evaluation", "comparison", "gate", "doctor", "training", "report", "trials", "treatment",
    "cli",
    "__init__", "__main__",
)  # fmt: skip
# The one import upwards: a record draws itself, by name, when it is asked to.
UPWARDS = {("records/base.py", "report")}
HEAVY = (
    "torch", "transformers", "pandas", "sklearn", "scipy", "plotly", "datasets", "peft", "accelerate", "trl", "lm_eval",
)  # fmt: skip
HEAVY_TRAINING = [  # all but remedies.py, which the grammar of --arms and the reports read, and bpe.py
    f"training/{name}.py"
    for name in (
        "arm_trainer",
        "costs",
        "interventions",
        "learning",
        "loop",
        "prepare",
        "pretraining",
        "rows",
        "vocabulary",
    )
]
# Files that may import a heavy package when they are loaded; inside functions every file may.
LOADS: dict[str, set[str]] = {
    "torch": {
        "geometry/*", "texts/windows.py", "models/adapt.py", "models/adapters.py", "models/checkpoint.py",
        "models/checks.py", "models/custom.py", "models/dequantise.py", "models/layers.py", "models/locate.py",
        "models/tokenizer.py",
        "dispersion/*", "diagnosis/cache.py", "diagnosis/distributed.py", "diagnosis/forward.py",
        "diagnosis/lens.py", "diagnosis/matrices.py", "diagnosis/pooled.py", "diagnosis/quality.py",
        "diagnosis/resume.py", "diagnosis/run.py", "diagnosis/summary.py",
        "diagnosis/transfer.py", "diagnosis/twin.py", "diagnosis/workers.py",
        "comparison/pair.py", *HEAVY_TRAINING,
        "trials/arm_run.py", "trials/estimate.py", "trials/folder.py", "trials/learning.py", "trials/pool.py",
        "trials/ray_session.py", "trials/refusals.py", "trials/run.py", "trials/runs.py", "trials/search.py",
        "trials/tuning.py",
        "treatment/*",
    },
    "accelerate": {"training/arm_trainer.py"},
    "transformers": {
        "dispersion/callback.py", "dispersion/trainer.py", "training/learning.py", "training/loop.py",
        "training/interventions.py",
        "training/pretraining.py", "trials/refusals.py",
    },
}  # fmt: skip


def sources() -> dict[str, Path]:
    """Every file of the package by its path below condense/."""
    return {str(path.relative_to(PACKAGE)): path for path in sorted(PACKAGE.rglob("*.py"))}


def may_load(file: str, package: str) -> bool:
    return any(fnmatch(file, pattern) for pattern in LOADS.get(package, ()))


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
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [(name, id(node) not in inside) for name in names]
    return found


def part(module: str) -> str:
    """The package or single file at the top of condense/ that a module belongs to."""
    head = module.split(".")[1]
    return head if head in ORDER else "__init__"


def file_of(module: str) -> str:
    """The file that an imported name comes from: condense.a.b.name or condense.a.b."""
    path = "/".join(module.split(".")[1:])
    parent = path.rpartition("/")[0]
    for guess in (f"{path}.py", f"{path}/__init__.py", f"{parent}.py", f"{parent}/__init__.py"):
        if (PACKAGE / guess).exists():
            return guess
    return "__init__.py"


def violations(file: str, path: Path) -> list[str]:
    own = file.split("/")[0].removesuffix(".py")
    wrong = []
    for module, top in imports(path):
        head = module.split(".")[0]
        if head == "condense" and module != "condense":
            other = part(module)
            version = module == "condense.__version__"
            exception = not top and ((file, other) in UPWARDS or own == "__init__")
            if other != own and not version and ORDER.index(other) > ORDER.index(own) and not exception:
                wrong.append(f"{file} imports {other}")
            elif top and may_load(file_of(module), "torch") and not may_load(file, "torch"):
                wrong.append(f"{file} loads torch through {module}")
        elif head in HEAVY and top and not may_load(file, head):
            wrong.append(f"{file} loads {head} at import")
    return wrong


def circles(graph: dict[str, set[str]]) -> list[str]:
    """Files that can be reached from themselves along imports at the top level."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        waiting = list(graph[start])
        while waiting:
            file = waiting.pop()
            if file not in seen:
                seen.add(file)
                waiting += graph.get(file, ())
        return seen

    return [file for file in graph if file in reached(file)]


def test_every_package_has_its_place() -> None:
    assert len(ORDER) == len(set(ORDER))
    there = {file.split("/")[0].removesuffix(".py") for file in sources()}
    assert there == set(ORDER)


def test_every_package_says_what_it_is_for() -> None:
    for folder in [path.parent for name, path in sources().items() if name.endswith("/__init__.py")]:
        text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))) or ""
        assert len(text) > 40, folder


def test_imports_point_downwards() -> None:
    assert [line for file, path in sources().items() for line in violations(file, path)] == []


def test_no_file_imports_itself_through_others() -> None:
    graph = {
        file: {file_of(module) for module, _ in imports(path) if module.startswith("condense.")} - {file}
        for file, path in sources().items()
        if file != "__init__.py"
    }
    graph["records/base.py"] = {file for file in graph.get("records/base.py", set()) if not file.startswith("report")}
    assert circles(graph) == []


def test_a_circle_is_seen() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("file", "code"),
    [
        ("geometry/rows.py", "import transformers"),
        ("records/diagnosis.py", "from condense.geometry import measure"),
        ("diagnosis/verdict.py", "import torch"),
        ("diagnosis/verdict.py", "from condense.models.layers import find_sites"),
        ("diagnosis/run.py", "from condense.report.html import diagnosis_page"),
        ("cli/app.py", "import torch"),
        ("models/layers.py", "from condense import diagnosis"),
        ("geometry/rows.py", "def f():\n    from condense.diagnosis.run import analyze"),
        ("records/diagnosis.py", "def f():\n    from condense.report import html"),
    ],
)
def test_a_violation_is_seen(file: str, code: str, tmp_path: Path) -> None:
    path = tmp_path / "file.py"
    path.write_text(code)
    assert violations(file, path)


@pytest.fixture(scope="module")
def saved_run(diagnosed: Callable[[str], Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "run.json"
    diagnosed("llama").to_json(path)
    return path


FORBIDDEN = ("torch", "transformers", "pandas", "sklearn", "accelerate", "datasets")
NOT_IN_LIGHT = (*FORBIDDEN, "huggingface_hub", "safetensors", "gguf", "peft", "pyarrow")
LIGHT = [
    ["--help"], ["analyze", "--help"], ["treat", "--help"], ["trial", "--help"], ["doctor", "--help"], ["init", "OUT"],
    ["report", "RUN"], ["report", "RUN", "--md", "OUT"],
    ["check", "RUN"], ["check", "RUN", "--baseline", "RUN", "--junit", "OUT"],
    ["compare", "--help"], ["compare", "RUN", "RUN"],
    ["compare", "RUN", "RUN", "--html", "OUT.html", "--md", "OUT", "--csv", "OUT.csv", "--json", "OUT.json"],
    ["atlas"], ["atlas", "add", "RUN"],
    ["report", "COMPARISON"], ["report", "COMPARISON", "--html", "OUT.html"],
]  # fmt: skip


def loaded_by(code: str) -> list[str]:
    check = f"{code}\nimport sys, json; print(); print(json.dumps([m for m in {FORBIDDEN!r} if sys.modules.get(m)]))"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("arguments", LIGHT, ids=" ".join)
def test_light_commands_load_nothing_heavy(arguments: list[str], saved_run: Path, tmp_path: Path) -> None:
    from condense.comparison.run import compare
    from condense.records.diagnosis import Diagnosis

    run, both = Diagnosis.from_json(saved_run), tmp_path / "both.json"
    compare(run, run).to_json(both)
    named = {"RUN": str(saved_run), "OUT": str(tmp_path / "out.md"), "COMPARISON": str(both)}
    named |= {f"OUT.{kind}": str(tmp_path / f"out.{kind}") for kind in ("html", "csv", "json")}
    words = [named.get(word, word) for word in arguments]
    call = f"try:\n    app({words!r})\nexcept SystemExit as end:\n    assert not end.code"
    code = f"from condense.cli.app import app\n{call}"
    assert loaded_by(code) == []
    shutil.rmtree(tmp_path)  # `init` writes over nothing
    tmp_path.mkdir()
    compare(run, run).to_json(both)
    absent = f"import sys\nsys.modules.update(dict.fromkeys({NOT_IN_LIGHT!r}))\n"  # as in a light install
    assert loaded_by(absent + code) == []


def test_importing_condense_loads_nothing_heavy() -> None:
    assert loaded_by("import condense; condense.__version__") == []


def test_the_check_on_loading_can_fail() -> None:
    assert loaded_by("import torch") == ["torch"]


PUBLIC = (
    "Checkpoint", "Comparison", "CondensationMonitor", "CondenseError", "Diagnosis", "Disperser", "DispersionConfig",
    "DispersionMixin", "DispersionTrainer", "JobOptions", "ModelOptions", "Monitor", "MonitorRun", "Plan", "Treatment",
    "Trial", "TrialPlan", "Windows", "__version__", "adapt", "analyze", "compare", "dispersion", "evaluate", "geometry",
    "load", "parse_arms", "task_effects", "treat", "trial", "windows",
)  # fmt: skip


def test_public_names_are_these() -> None:
    """A name that goes breaks somebody's code; one that comes has to be documented in docs/python.md."""
    import condense

    assert sorted(condense.__all__) == list(PUBLIC)


def test_public_names_are_really_there() -> None:
    import condense

    assert set(condense.__all__) <= set(dir(condense))
    for name in condense.__all__:
        assert getattr(condense, name) is not None
    with pytest.raises(AttributeError):
        _ = condense.nothing
