"""What is made from the code and committed: docs/cli.md, the JSON Schemas. `python -m tests.generated` writes them."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from condense.records.atlas import AtlasModel
from condense.records.base import Saved
from condense.records.comparison import Comparison
from condense.records.diagnosis import Diagnosis
from condense.records.serial import schema_of
from condense.records.treatment import Treatment
from condense.records.trial import Trial

ROOT = Path(__file__).parent.parent
WIDTH = 100
_DOOR = "import sys; sys.argv[0] = 'condense'; from condense.cli.app import main; main()"
_INTRO = """\
# The command line

Generated from the `--help` texts by `make docs`; do not edit. `tests/test_docs.py` compares it with them.
Every option also takes underscores: `--max_length` is `--max-length`. See [quickstart](quickstart.md) for what the
commands write, settings files and exit codes.
"""


def help_text(*arguments: str) -> str:
    """`condense ARGUMENTS --help` as it prints at width 100, without ANSI, from a clean environment."""
    kept = ("PATH", "HOME", "SYSTEMROOT", "VIRTUAL_ENV")
    plain = {"NO_COLOR": "1", "COLUMNS": str(WIDTH), "TERM": "dumb", "PYTHONUTF8": "1"}
    done = subprocess.run(
        [sys.executable, "-c", _DOOR, *arguments, "--help"],
        env={key: os.environ[key] for key in kept if key in os.environ} | plain,
        cwd=ROOT, capture_output=True, encoding="utf-8", check=True,
    )  # fmt: skip
    return "\n".join(line.rstrip() for line in done.stdout.strip("\n").splitlines()).strip("\n")


def commands() -> list[str]:
    """Names of the commands in the order of the help."""
    from condense.cli.app import app

    return [info.name for info in app.registered_commands if info.name]


def cli_markdown() -> str:
    """docs/cli.md: a section per command."""
    parts = [("condense", ()), *((f"condense {name}", (name,)) for name in commands())]
    sections = [f"## {title}\n\n```text\n{help_text(*arguments)}\n```\n" for title, arguments in parts]
    return "\n".join([_INTRO, *sections])


def run_schema(kind: type[Saved]) -> str:
    """The JSON Schema of one kind of saved run, whose `schema` says which kind it is."""
    schema = schema_of(kind)
    schema["$defs"][kind.__name__]["properties"]["schema"] = {"const": kind.SCHEMA}
    return json.dumps({"title": kind.SCHEMA, **schema}, indent=2, ensure_ascii=False) + "\n"


SAVED: dict[str, type[Saved]] = {
    "diagnosis": Diagnosis,
    "treatment": Treatment,
    "trial": Trial,
    "comparison": Comparison,
}
"""Every kind of saved run by the name of its schema file, condense/data/NAME.schema.json."""

SCHEMAS: dict[str, type[Saved]] = {**SAVED, "atlas": AtlasModel}
"""Those, and what is saved but has no page."""

FILES: dict[Path, Callable[[], str]] = {
    ROOT / "docs" / "cli.md": cli_markdown,
    **{ROOT / "condense" / "data" / f"{name}.schema.json": partial(run_schema, kind) for name, kind in SCHEMAS.items()},
}


def main() -> None:
    """Write all of them."""
    for path, make in FILES.items():
        path.write_text(make(), encoding="utf-8")
        sys.stdout.write(f"wrote {path.relative_to(ROOT)}\n")


if __name__ == "__main__":
    main()
