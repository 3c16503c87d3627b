"""How far a run is: what is left of it, the rows of every screen, and what a terminal shows when it is interrupted."""

import itertools
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len

from condense.cli.progress import WIDEST, clock_time, fitted, rows
from condense.cli.timeline import OF_A_RUN, Timeline
from tests.terminal import CTRL_C, Terminal


class Clock:
    """Seconds that pass when told."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def timeline(clock: Clock) -> Timeline:
    return Timeline(clock)


def work(timeline: Timeline, clock: Clock, title: str, count: int, each: float, stop: int | None = None) -> None:
    """A phase of so many counts, of which `stop` are done."""
    timeline.enter(title)
    for number in range(1, (count if stop is None else stop) + 1):
        clock.now += each
        timeline.count(number, count)


def measure(timeline: Timeline, clock: Clock) -> None:
    """Measuring takes 14 s."""
    work(timeline, clock, "validation text", 10, 1.0)
    work(timeline, clock, "probe text", 4, 1.0)


# --- what is left ---------------------------------------------------------------------------------------


def test_until_something_is_measured_the_plan_counts(timeline: Timeline, clock: Clock) -> None:
    timeline.enter("loading")
    assert timeline.left() is None, "nothing is known of the time"
    timeline.plan(500, 3)
    clock.now = 60
    assert timeline.left() == 440
    clock.now = 600
    assert timeline.left() == 0


def test_the_time_left_includes_measuring_and_the_runs_that_wait(timeline: Timeline, clock: Clock) -> None:
    """Of three runs of 100 s of training and 14 s of measuring, the first is half trained."""
    timeline.plan(9999, 3)
    timeline.begin("before", 0, 0, 0)
    measure(timeline, clock)
    timeline.begin("control", 0, 0, 3)
    work(timeline, clock, "training", 100, 1.0, stop=50)
    assert timeline.left() == pytest.approx(50 + 14 + 2 * 114, abs=3)


def test_the_short_runs_of_a_search_do_not_calibrate_the_others(timeline: Timeline, clock: Clock) -> None:
    """A fifth of the steps: the plan's estimate counts until a run of the whole length is trained."""
    timeline.plan(500, 2)
    timeline.begin("search: control", 0, 0, 8)
    work(timeline, clock, "training", 10, 1.0, stop=5)
    assert timeline.left() == 495
    clock.now += 5
    timeline.begin("search: coefficient 0.1", 0, 1, 8)
    work(timeline, clock, "training", 10, 1.0)
    measure(timeline, clock)
    timeline.begin("control", 0, 0, 2)
    assert timeline.left() == 500 - clock.now
    work(timeline, clock, "training", 50, 1.0)
    measure(timeline, clock)
    timeline.begin("treated", 0, 1, 2)
    assert timeline.left() == pytest.approx(50 + 14)


def test_the_first_run_calibrates_the_others(timeline: Timeline, clock: Clock) -> None:
    """Saving and loading between the phases count too, and a run that fails tells nothing."""
    timeline.plan(9999, 4)
    timeline.begin("control", 0, 0, 4)
    work(timeline, clock, "training", 10, 1.0)
    clock.now += 30  # saving
    measure(timeline, clock)
    timeline.begin("dispersion", 0, 1, 4)
    assert timeline.left() == pytest.approx(3 * 54)
    work(timeline, clock, "training", 10, 1.0, stop=2)  # fails
    timeline.begin("cosreg", 0, 2, 4)
    assert timeline.left() == pytest.approx(2 * 54)
    timeline.enter("training")
    assert timeline.left() == pytest.approx(2 * 54)


def test_the_runs_of_a_search_say_nothing_of_how_long_the_arms_train(timeline: Timeline, clock: Clock) -> None:
    timeline.plan(1000, 2)
    for number in range(3):
        timeline.begin(f"search: {number}", 0, number, 3)
        work(timeline, clock, "training", 10, 0.1)
        work(timeline, clock, "validation text", 10, 1.0)
    timeline.enter("writing down the search")
    timeline.begin("control", 0, 0, 2)
    work(timeline, clock, "training", 100, 1.0, stop=50)
    assert timeline.left() == pytest.approx(50 + 10 + 110, abs=3)
    timeline.enter("text of another domain")
    assert timeline.phase is None, "still the run's"


def test_a_resumed_run_counts_from_where_it_goes_on(timeline: Timeline, clock: Clock) -> None:
    timeline.begin("control", 0, 0, 1)
    timeline.enter("training")
    clock.now = 5
    timeline.count(91, 100)
    clock.now = 6
    timeline.count(92, 100)
    assert timeline.left() == pytest.approx(8), "not what 92 steps in 6 s would say"


def test_runs_at_the_same_time_share_what_is_left(timeline: Timeline, clock: Clock) -> None:
    """Two workers, four runs of 100 s each: the last begins after the first has ended."""
    timeline.plan(9999, 4)
    for step in range(51):
        clock.now = float(step)
        timeline.workers([("control", 0, "training", step, 100), ("cosreg", 0, "training", step, 100)], 0, 4)
    assert timeline.left() == pytest.approx(150, abs=5)
    for step in range(51, 101):
        clock.now = float(step)
        timeline.workers([("control", 0, "training", step, 100), ("cosreg", 0, "training", step, 100)], 0, 4)
    ended = timeline.workers([("control", 1, "starting", 0, 0), ("cosreg", 1, "training", 1, 100)], 2, 4)
    assert ended == ["control, seed 0: training 2 min", "cosreg, seed 0: training 2 min"]
    assert timeline.left() == pytest.approx(100, abs=5)


def test_what_has_ended_is_one_line(timeline: Timeline, clock: Clock) -> None:
    timeline.enter("loading")
    clock.now = 3
    assert timeline.enter("reading text") == ["loading: 3 s"]
    assert timeline.enter("timing a step") == [], "too short to be told"
    timeline.begin("control", 0, 0, 1)
    work(timeline, clock, "training", 2, 50.0)
    measure(timeline, clock)
    assert timeline.enter("writing") == ["control, seed 0: training 2 min, validation text 10 s, probe text 4 s"]
    assert timeline.left() == 0


# --- rows -----------------------------------------------------------------------------------------------


def some_timelines(clock: Clock) -> list[Timeline]:
    """Nothing, a phase, a run, and twenty runs at once, of long and foreign names."""
    empty, phase, one, many = (Timeline(clock) for _ in range(4))
    phase.enter("loading " + "x" * 100)
    one.plan(86_400, 12)
    one.begin("dispersion=0.1", 0, 3, 12)
    work(one, clock, "training", 20_000, 1.0, stop=3)
    one.count(4, 20_000, "CE 3.123, cosine 0.512")
    many.workers([(f"模型\x1b[31m{i}" * 9, i, "training", i, 100) for i in range(20)], 0, 40)
    return [empty, phase, one, many]


@pytest.mark.parametrize("plain", [False, True])
def test_the_rows_fit_every_screen(plain: bool, clock: Clock) -> None:
    """Shorter than the screen by what a terminal echoes for Ctrl-C, and never all of its lines."""
    sizes = itertools.product((1, 20, 40, 80, 300), (1, 3, 10, 24))
    for (width, height), timeline in itertools.product(sizes, some_timelines(clock)):
        drawn = rows(timeline, width, height, plain=plain)
        assert len(drawn) <= max(1, height - 2)
        assert all(cell_len(row) <= max(10, min(WIDEST, width - 4)) for row in drawn), drawn
        assert not any("\x1b" in row or "\n" in row for row in drawn)
        assert not plain or all(row.isascii() or "模" in row for row in drawn)


def test_the_rows_are_drawn_while_runs_begin_and_end() -> None:
    """By another thread, which must not meet a table that changes under it."""
    timeline, wrong, done = Timeline(), list[BaseException](), threading.Event()

    def draw() -> None:
        while not done.is_set():
            try:
                rows(timeline, 80, 24)
            except BaseException as error:
                wrong.append(error)
                return

    before = sys.getswitchinterval()
    thread = threading.Thread(target=draw)
    try:
        sys.setswitchinterval(1e-6)
        thread.start()
        end = time.monotonic() + 0.3
        for number in itertools.count():
            timeline.workers([(f"arm {number + k}", 0, "training", 1, 9) for k in range(number % 7)], 0, 100)
            if number > 50 and time.monotonic() > end:
                break
    finally:
        sys.setswitchinterval(before)
        done.set()
        thread.join()
    assert not wrong


def test_an_unknown_length_shows_the_time_so_far(timeline: Timeline, clock: Clock) -> None:
    timeline.enter("loading")
    clock.now = 75
    assert rows(timeline, 80, 24) == ["loading · 1:15"]
    for timeline in some_timelines(clock):
        assert not any("0/?" in row or "? " in row for row in rows(timeline, 80, 24))


def test_what_is_most_needed_stays_in_a_narrow_window(clock: Clock) -> None:
    one = some_timelines(clock)[2]
    wide, narrow = rows(one, 100, 24), rows(one, 40, 10)
    assert "3 of 12 runs" in wide[0] and "left" in wide[0] and "so far" in wide[0] and "CE 3.123" in wide[1]
    assert narrow[0].startswith("3 of 12 runs · about") and narrow[1].endswith("4 of 20000")
    assert fitted(["abc", "d", "efghijkl", "m"], 10) == "abc · d", "what comes later is dropped, not cut"
    assert fitted(["abcdefghijklmnop"], 9, plain=True) == "abc...nop" and len(fitted(["x" * 99], 9)) == 9
    assert [clock_time(seconds) for seconds in (0, 59.9, 61, 3661)] == ["0:00", "0:59", "1:01", "1:01:01"]


# --- in a terminal --------------------------------------------------------------------------------------

DRAWN = """
import sys, time
from condense.cli.console import reported, say
from condense.cli.progress import display
from condense.cli.timeline import OF_A_RUN, Timeline
try:
    with reported(), display(Timeline(lambda: 2 * time.monotonic())) as shown:
        timeline = shown.timeline
        shown.enter("loading")
        time.sleep(0.6)
        timeline.plan(100, 4)
        shown.run("control", 0, 0, 4)
        shown.enter("training")
        for step in range(1, 2000):
            time.sleep(0.02)
            timeline.count(step, 2000, "CE 3.123, cosine 0.512")
            if step == 20:
                say("a note")
except BaseException as error:
    sys.exit(getattr(error, "exit_code", 1))
"""
ESCAPES = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]")


def drawn(**more: Any) -> Terminal:
    root = str(Path(__file__).parents[2])
    return Terminal([sys.executable, "-c", DRAWN], **{"PYTHONPATH": root, "PYTHONIOENCODING": "utf-8", **more})


def live(lines: list[str]) -> list[str]:
    return [line for line in lines if "training" in line or "of 4 runs" in line]


@pytest.mark.parametrize(("columns", "lines"), [(80, 24), (40, 10)])
def test_the_rows_are_always_there_and_gone_after_ctrl_c(columns: int, lines: int) -> None:
    with drawn(columns=columns, lines=lines) as terminal:
        terminal.until("a note")
        # a line that is interrupted while rich writes it is written twice, so wait for what comes after it
        terminal.until(
            lambda shown: len(live(shown)) == 2 and re.search(r"training (2[1-9]|[3-9]\d|\d{3,}) of", live(shown)[1])
        )
        begun = next(n for n, frame in enumerate(terminal.frames) if len(live(frame)) == 2)
        terminal.press(CTRL_C)
        assert terminal.finish() == 130
        assert terminal.shown == ["loading: 1 s", "a note", "interrupted"]
        assert not terminal.screen.cursor.hidden
        whole = [frame for frame in terminal.frames[begun:] if "^C" not in "".join(frame) and live(frame)]
        assert all(len(live(frame)) == 2 and len(frame) <= 5 for frame in whole), "a torn or a doubled row"


def test_another_size_of_the_window_changes_the_rows() -> None:
    with drawn() as terminal:
        terminal.until("cosine")
        terminal.resize(40, 10)
        terminal.until(lambda shown: bool(live(shown)) and "cosine" not in "".join(live(shown)))
        assert len(live(terminal.shown)) == 2 and max(map(len, live(terminal.shown))) <= 36
        terminal.resize(100, 30)
        terminal.until("cosine")
        terminal.press(CTRL_C)
        assert terminal.finish() == 130 and not live(terminal.shown)


def test_without_colour_there_is_none() -> None:
    with drawn(NO_COLOR="1") as terminal:
        terminal.until("cosine")
        terminal.press(CTRL_C)
        assert terminal.finish() == 130
        assert not re.search(rb"\x1b\[[0-9;]*[1-9][0-9]*m", terminal.raw), "a colour or a weight"


def test_a_terminal_that_cannot_move_its_cursor_gets_lines() -> None:
    with drawn(TERM="dumb") as terminal:
        terminal.until("a note")
        terminal.press(CTRL_C)
        assert terminal.finish() == 130
        shown = [line.replace("^C", "") for line in terminal.shown]
        assert shown[:3] == ["loading", "[1/4, about 2 min left] control, seed 0: training", "a note"]
        assert not ESCAPES.search(terminal.raw)


# --- real runs ------------------------------------------------------------------------------------------

SLOWED = """
import importlib, os, sys, time
module, names, seconds = os.environ["SLOWED"].split(":")
owner = importlib.import_module(module)
for name in names.split(".")[:-1]:
    owner = getattr(owner, name)
real = getattr(owner, names.split(".")[-1])
def slowed(*given, **more):
    time.sleep(float(seconds))
    return real(*given, **more)
setattr(owner, names.split(".")[-1], slowed)
from condense.cli.app import main
main()
"""
# Per phase what is made slow, so that it can be seen and interrupted, and what the row of the phase says.
PHASES = {
    "capture": ("condense.diagnosis.forward:_BatchReader.launch:0.3", "before: validation text"),
    "training": ("condense.training.loop:_Log.on_log:0.2", "control, seed 0: training"),
    "measuring": ("condense.diagnosis.forward:_BatchReader.launch:0.3", "control, seed 0: validation text"),
    "writing": ("condense.records.base:Saved.to_html:3", "writing"),
}
BUDGET = ("--max-steps", "12", "--max-length", "32", "--per-device-train-batch-size", "1", "--num-texts", "4")


def command(kind: str, model: Path, folder: Path) -> list[str]:
    (folder / "text.txt").write_text("\n\n".join(f"{n} small words of a text to learn from. " * 20 for n in range(40)))
    words = [kind, str(model), "--text", "text.txt", "-o", "out", "--device", "cpu", *BUDGET]
    return [
        sys.executable,
        "-c",
        SLOWED,
        *words,
        *(("--arms", "control,cosreg=0.1", "--seeds", "1") if kind == "trial" else ()),
    ]


def real(kind: str, phase: str, model: Path, folder: Path, **more: Any) -> Terminal:
    environment = {"PYTHONPATH": str(Path(__file__).parents[2]), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment |= {"SLOWED": PHASES[phase][0], "PYTHONIOENCODING": "utf-8", "CONDENSE_CACHE": str(folder / "cache")}
    return Terminal(command(kind, model, folder), cwd=folder, **{**environment, **more})


def no_rows(shown: list[str]) -> bool:
    """Whether nothing of the rows is left: neither the overall one nor one with a count."""
    return not any("so far" in line or re.search(r"\d of \d+( runs)?( ·|$)|[█░]", line) for line in shown)


@pytest.mark.slow
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize(("kind", "columns", "lines"), [("treat", 80, 24), ("trial", 40, 10)], ids=str)
def test_ctrl_c_leaves_no_torn_row(
    kind: str, columns: int, lines: int, phase: str, tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    """In every phase: the row is seen, Ctrl-C ends the command with 130, and no row remains."""
    name = PHASES[phase][1]
    with real(kind, phase, tiny("llama"), tmp_path, columns=columns, lines=lines) as terminal:
        seen = name if columns == 80 else name.rpartition(": ")[2]
        terminal.until(lambda shown: any(seen in line for line in shown[-3:]) and not no_rows(shown), 120)
        terminal.press(CTRL_C)
        assert terminal.finish(120) == 130
        assert no_rows(terminal.shown), "\n".join(terminal.shown)
        assert "interrupted" in " ".join(terminal.shown[-4:]) and not terminal.screen.cursor.hidden


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["treat", "trial"])
def test_a_log_has_one_line_per_phase(kind: str, tiny: Callable[[str], Path], tmp_path: Path) -> None:
    words = command(kind, tiny("llama"), tmp_path)
    environment = {**os.environ, "SLOWED": "condense.records.base:Saved.to_html:0", "CONDENSE_CACHE": str(tmp_path)}
    environment |= {"PYTHONPATH": str(Path(__file__).parents[2]), "FORCE_COLOR": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, timeout=200)
    told = done.stderr.decode().splitlines()
    assert done.returncode == 0, told
    assert b"\x1b" not in done.stderr and b"\r" not in done.stderr and b"\x1b" not in done.stdout
    other = {"treat": "treated", "trial": "cosreg=0.1"}[kind]
    phases = [line for line in told if re.search(r"(loading|text|step( costs)?|training|writing)$", line)]
    runs = [f"{arm}: {part}" for arm in ("control, seed 0", f"{other}, seed 0") for part in OF_A_RUN[1:4]]
    begins = ["loading", "reading text", "timing a step", *(["what a step costs"] if kind == "trial" else [])]
    expected = [*begins, "before: validation text", "before: probe text", *runs, "writing"]
    assert [line.partition("] ")[2] or line for line in phases] == expected
    assert phases[-2].startswith("[2/2, about ") and phases[-2].endswith(" s left] " + runs[-1])


@pytest.mark.slow
def test_the_time_left_is_right_within_a_third(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """Half-way through a slowed trial, measuring included, against the time that it then took."""
    with real("trial", "training", tiny("llama"), tmp_path) as terminal:
        terminal.until("1 of 2 runs", 120)
        shown = next(line for line in terminal.until("training 3 of", 120) if "1 of 2 runs" in line)
        begun, said = time.monotonic(), re.search(r"about (\d+) s left", shown)
        assert said, shown
        terminal.until("writing", 120)
        taken = time.monotonic() - begun
        assert terminal.finish(120) == 0
        assert 0.66 * taken - 1 <= int(said.group(1)) <= 1.34 * taken + 1, (said.group(1), taken)
        assert sum("so far" in line for line in terminal.shown) == 0
