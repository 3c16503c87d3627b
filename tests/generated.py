"""What is made from the code and committed: docs/cli.md, the JSON Schema. `python -m tests.generated` writes them."""

import json
import os
import subprocess
import sys
from pathlib import Path

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


def diagnosis_schema() -> str:
    """condense/data/diagnosis.schema.json: what `condense analyze --json` writes."""
    from condense.records import DIAGNOSIS_SCHEMA, Diagnosis
    from condense.schema import schema_of

    schema = schema_of(Diagnosis)
    schema["$defs"]["Diagnosis"]["properties"]["schema"] = {"const": DIAGNOSIS_SCHEMA}
    return json.dumps({"title": DIAGNOSIS_SCHEMA, **schema}, indent=2, ensure_ascii=False) + "\n"


FILES = {
    ROOT / "docs" / "cli.md": cli_markdown,
    ROOT / "condense" / "data" / "diagnosis.schema.json": diagnosis_schema,
}


def main() -> None:
    """Write all of them."""
    for path, make in FILES.items():
        path.write_text(make(), encoding="utf-8")
        sys.stdout.write(f"wrote {path.relative_to(ROOT)}\n")


if __name__ == "__main__":
    main()
