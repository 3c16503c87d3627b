"""The gate at the door, for `check` and for `analyze --check`: settings in, results out, exit code 1 if it fails."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import typer

from condense.cli.outputs import check_file
from condense.cli.running import console, say
from condense.errors import UnavailableError
from condense.files import write_text
from condense.gate.assertions import Assertion, parse_inline, parse_tables, unknown
from condense.gate.run import Gate, Names, Policy, evaluate, subject_of
from condense.records.diagnosis import DIAGNOSIS_SCHEMA, Diagnosis
from condense.records.serial import read_json
from condense.records.treatment import TREATMENT_SCHEMA, Treatment

FAILED = 1


@dataclass(frozen=True)
class Asked:
    """What was asked of the gate, by flags, environment and file; `tables` is the file's [check] section."""

    baseline: Path | None = None
    asserted: tuple[str, ...] = ()
    policy: Policy = field(default_factory=Policy)
    junit: Path | None = None
    md: Path | None = None
    force: bool = False
    tables: Mapping[str, Any] = field(default_factory=dict)


def asked(
    context: typer.Context,
    *,
    baseline: Path | None,
    asserted: list[str] | None,
    informational: bool,
    strict: bool,
    inconclusive: Literal["warn", "fail"],
    junit: Path | None,
    md: Path | None,
    force: bool,
) -> Asked:
    """Join the options of `check` with the tables of the settings file."""
    policy = Policy(informational, strict, inconclusive)
    section = (context.find_root().obj or {}).get("check", {})
    return Asked(baseline, tuple(asserted or ()), policy, junit, md, force, section)


def asked_beside(context: typer.Context, baseline: Path | None, asserted: list[str] | None) -> Asked:
    """What another command asks for: its own flags, and for the rest what is set for `check`."""
    root: Any = context.find_root()
    words = [f"--baseline={baseline}"] if baseline else []
    words += [f"--assert={text}" for text in asserted or ()]
    set_for_check = root.command.commands["check"].make_context("check", ["RUN.json", *words], parent=root)
    chosen = {name: value for name, value in set_for_check.params.items() if name != "run"}
    return asked(context, **chosen)


@dataclass(frozen=True)
class Planned:
    """A gate that can be held: everything that was asked has been read and understood."""

    asked: Asked
    assertions: tuple[Assertion, ...] | None
    baseline: Diagnosis | None

    def conclude(self, run: Diagnosis | Treatment, path: Path) -> None:
        """Hold the run against the gate, show and write what came of it; typer.Exit(1) if it fails."""
        names = Names(str(path), str(self.asked.baseline or ""))
        gate = evaluate(
            run, self.assertions, self.baseline, policy=self.asked.policy, names=names, force=self.asked.force
        )
        _write(gate, self.asked)
        _show(gate)
        if gate.failed:
            raise typer.Exit(FAILED)


def plan_gate(asked: Asked) -> Planned:
    """Read the assertions and the baseline before any work; UsageError or UnavailableError if that fails."""
    for path in (asked.junit, asked.md):
        if path is not None:
            check_file(path, force=asked.force)
    return Planned(asked, _assertions(asked), subject_of(read_run(asked.baseline)) if asked.baseline else None)


def _assertions(asked: Asked) -> tuple[Assertion, ...] | None:
    """Those of the flags, else those of the file, else None: the default gate."""
    tables = {name: table for name, table in asked.tables.items() if isinstance(table, Mapping)}
    for name in tables:
        if name != "assertions":
            raise unknown(f"table [check.{name}]", name, ("assertions",), "assertions go into [check.assertions]")
    from_file = parse_tables(tables.get("assertions", {}))
    if asked.asserted:
        return tuple(parse_inline(text) for text in asked.asserted)
    return from_file if "assertions" in tables else None


def read_run(path: Path) -> Diagnosis | Treatment:
    """A saved diagnosis or treatment; UnavailableError for anything else."""
    data = read_json(path)
    kinds: dict[str, type[Diagnosis] | type[Treatment]] = {DIAGNOSIS_SCHEMA: Diagnosis, TREATMENT_SCHEMA: Treatment}
    if data["schema"] not in kinds:
        raise UnavailableError(
            f"{path} is of another kind ({data['schema']})", "a gate reads what analyze and treat write"
        )
    try:
        return kinds[data["schema"]].from_json(data)
    except UnavailableError as error:
        raise UnavailableError(f"{path}: {error}", "was it written by another version of condense?") from None


def _write(gate: Gate, asked: Asked) -> None:
    from condense.report.gate.markdown import gate_markdown

    if asked.junit:
        from condense.report.gate.junit import gate_junit

        write_text(asked.junit, gate_junit(gate))
    if asked.md:
        write_text(asked.md, gate_markdown(gate))
    summary = os.environ.get("GITHUB_STEP_SUMMARY")
    if summary:
        try:
            with Path(summary).open("a", encoding="utf-8") as file:
                file.write(gate_markdown(gate) + "\n")
        except OSError as error:  # the runner's affair: it must not change what the gate says
            say(f"cannot write the step summary: {error.strerror or error}")


def _show(gate: Gate) -> None:
    from condense.report.gate.annotations import gate_annotations
    from condense.report.gate.terminal import show_gate

    show_gate(gate, console())
    if os.environ.get("GITHUB_ACTIONS") == "true":
        sys.stdout.write("".join(f"{line}\n" for line in gate_annotations(gate)))
