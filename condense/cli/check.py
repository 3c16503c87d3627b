"""`condense check RUN.json`, and the gate of `analyze --check`: options in, results out, exit codes 0, 1 and 5.

Neither a model nor torch is loaded.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from condense.cli.console import console, say, show_line
from condense.cli.groups import command, group_from_settings
from condense.cli.outputs import check_file
from condense.errors import UnavailableError, UsageError
from condense.files import write_text
from condense.records.comparison import COMPARISON_SCHEMA, Comparison
from condense.records.diagnosis import DIAGNOSIS_SCHEMA, Diagnosis
from condense.records.options import GateOptions
from condense.records.serial import other_schema, parse_json, read_file, read_json
from condense.records.treatment import TREATMENT_SCHEMA, Treatment

if TYPE_CHECKING:  # the gate loads numpy, which no other command that only reads needs
    from condense.comparison.comparability import Conditions
    from condense.gate.assertions import Assertion
    from condense.gate.run import Gate, Policy

Run = TypeVar("Run", Diagnosis, Treatment, Comparison)


@command
def check(
    context: typer.Context,
    run: Annotated[Path, typer.Argument(metavar="RUN.json", help="A run that condense saved.", show_default=False)],
    gate: GateOptions,
) -> None:
    """Hold a saved run against thresholds and a baseline: 0 if it passes, 1 if it fails, 5 if nothing is decided."""
    if gate.accept:
        accept(run, gate, _section(context))
        return
    asked, data = Asked(gate, _section(context)), read_json(run)
    if data["schema"] == COMPARISON_SCHEMA:
        _check_comparison(asked, data, run)
        return
    plan_gate(asked).conclude(run_of(data, run), run)


def _check_comparison(asked: Asked, data: dict[str, Any], path: Path) -> None:
    """Hold what a comparison found of its members: are they the same model as the first?"""
    if asked.options.baseline is not None:
        raise UsageError("a comparison is checked without a baseline", "its first model is what the others are held to")
    from condense.gate.readings import Names
    from condense.gate.same import evaluate_comparison

    planned = plan_gate(asked)
    comparison = _decoded(Comparison, data, path)
    planned.show(evaluate_comparison(comparison, planned.assertions, policy=planned.policy, names=Names(str(path))))


@dataclass(frozen=True)
class Asked:
    """What was asked of the gate; `tables` is the [check] section of the settings file, with its assertions."""

    options: GateOptions
    tables: Mapping[str, Any]


def gate_options(context: typer.Context, gate: GateOptions) -> Asked:
    """What `analyze` asks for: its own flags, and for the rest what is set for `check`."""
    settings = group_from_settings(context, "check", GateOptions)
    own = {name: getattr(gate, name) for name in ("baseline", "asserted") if getattr(gate, name)}
    return Asked(replace(settings, **own), _section(context))


def _section(context: typer.Context) -> Mapping[str, Any]:
    section: Mapping[str, Any] = (context.find_root().obj or {}).get("check", {})
    return section


@dataclass(frozen=True)
class Planned:
    """A gate that can be held: everything that was asked has been read and understood."""

    options: GateOptions
    assertions: tuple[Assertion, ...] | None
    baseline: Diagnosis | None

    def refuse_unlike(self, conditions: Conditions) -> None:
        """UsageError before measuring, where what will be measured could not be compared with the baseline."""
        from condense.gate.run import refuse_unlike

        if self.baseline is not None:
            refuse_unlike(conditions, self.baseline, self.assertions, force=self.options.force)

    def conclude(self, run: Diagnosis | Treatment, path: Path) -> None:
        """Hold the run against the gate, show and write what came of it; typer.Exit with 1 or 5 unless it passes."""
        from condense.gate.readings import Names
        from condense.gate.run import evaluate

        options = self.options
        names = Names(str(path), str(options.baseline or ""))
        self.show(evaluate(run, self.assertions, self.baseline, policy=self.policy, names=names, force=options.force))

    @property
    def policy(self) -> Policy:
        """What ends a build."""
        from condense.gate.run import Policy

        options = self.options
        return Policy(options.informational, options.strict, options.inconclusive, options.not_run)

    def show(self, gate: Gate) -> None:
        """Show and write what came of a gate; typer.Exit with 1 or 5 unless it passes."""
        _write_outputs(gate, self.options)
        _show_gate(gate)
        if gate.exit_code:
            raise typer.Exit(gate.exit_code)


def accept(run: Path, options: GateOptions, tables: Mapping[str, Any]) -> None:
    """Show how a run differs from a baseline, then write it in its place; the first baseline is only written.

    Nothing fails: what changed is shown so that a person accepts it.
    """
    from condense.gate.run import subject_of

    path = options.accept or run
    text = read_file(run)
    record = run_of(parse_json(text, run), run)
    if path.exists():
        check_file(path)
        shown = replace(options, baseline=path, informational=True, force=True)
        plan_gate(Asked(shown, tables)).conclude(record, run)
    write_text(path, text)
    say(f"wrote {path}: the baseline is now what condense {subject_of(record).condense} measured of {run}")


def plan_gate(asked: Asked) -> Planned:
    """Read the assertions and the baseline before any work; UsageError or UnavailableError if that fails."""
    from condense.gate.run import subject_of

    options = asked.options
    for path in (options.junit, options.md):
        if path is not None:
            check_file(path)
    baseline = subject_of(run_of(read_json(options.baseline), options.baseline)) if options.baseline else None
    return Planned(options, _assertions(asked), baseline)


def _assertions(asked: Asked) -> tuple[Assertion, ...] | None:
    """Those of the flags, else those of the file, else None: the default gate."""
    from condense.gate.assertions import parse_inline, parse_tables, unknown

    tables = {name: table for name, table in asked.tables.items() if isinstance(table, Mapping)}
    for name in tables:
        if name != "assertions":
            raise unknown(f"table [check.{name}]", name, ("assertions",), "assertions go into [check.assertions]")
    from_file = parse_tables(tables.get("assertions", {}))
    if asked.options.asserted:
        return tuple(parse_inline(text) for text in asked.options.asserted)
    return from_file if "assertions" in tables else None


def run_of(data: dict[str, Any], path: Path) -> Diagnosis | Treatment:
    """The diagnosis or treatment that a file holds; UnavailableError for anything else."""
    kinds = (DIAGNOSIS_SCHEMA, TREATMENT_SCHEMA)
    if data["schema"] not in kinds:
        error = other_schema(data["schema"], *kinds)
        other = f"{path} is of another kind ({data['schema']})"
        raise UnavailableError(
            f"{path}: {error}" if error.hint else other, error.hint or "a gate reads what analyze and treat write"
        )
    is_treatment = data["schema"] == TREATMENT_SCHEMA
    return _decoded(Treatment, data, path) if is_treatment else _decoded(Diagnosis, data, path)


def _decoded(kind: type[Run], data: dict[str, Any], path: Path) -> Run:
    """A saved run of this kind; UnavailableError with the file's name for a damaged one."""
    try:
        return kind.from_json(data)
    except UnavailableError as error:
        raise UnavailableError(f"{path}: {error}", "was it written by another version of condense?") from None


def _write_outputs(gate: Gate, options: GateOptions) -> None:
    from condense.report.gate.text import gate_markdown

    if options.junit:
        from condense.report.gate.text import gate_junit

        write_text(options.junit, gate_junit(gate))
    if options.md:
        write_text(options.md, gate_markdown(gate))
    summary = os.environ.get("GITHUB_STEP_SUMMARY")
    if summary:
        try:
            with Path(summary).open("a", encoding="utf-8") as file:
                file.write(gate_markdown(gate) + "\n")
        except OSError as error:  # a fault of the CI runner: it must not change the outcome of the gate
            say(f"cannot write the step summary: {error.strerror or error}")


def _show_gate(gate: Gate) -> None:
    from condense.report.gate.text import gate_annotations, show_gate

    show_gate(gate, console())
    if os.environ.get("GITHUB_ACTIONS") == "true":
        for line in gate_annotations(gate):
            show_line(line, command=True)
