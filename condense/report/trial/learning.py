"""How the arms learned: curves over tokens and over time, differences to the control, and when there is one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from condense.records.base import Estimate
from condense.records.learning import Learning, crossing_words, timing_sentence
from condense.records.trial import ArmResult, Trial, tolerated
from condense.report.charts import Axis, Chart, Figure, Look, Series, known_values, padded
from condense.report.tables import EMPTY, Cell, Column, Table, change_cell, digits_of
from condense.report.text import corpus_line, difference, in_words, interval, number, plural, times

KEY = "bits_per_byte"
MARKS, MOST_ARMS, MOST_RUNS = 4, 7, 40
UNIT, CHANGE = "bits per byte", "arm − control, bits per byte"
_HELD = "An arm that is done earlier is held at its end."


def learned(trial: Trial) -> list[tuple[ArmResult, Learning]]:
    """The arms that have a curve, the control among them."""
    return [(arm, arm.learning) for arm in trial.arms if arm.learning is not None]


def then_learned(trial: Trial) -> list[tuple[ArmResult, Learning]]:
    """The arms whose final models were trained on the next text."""
    return [(arm, arm.then) for arm in trial.arms if arm.then is not None]


def clock_words(trial: Trial) -> str:
    """What the seconds are; empty without curves."""
    arms = learned(trial)
    if not arms:
        return ""
    processor = any(one.clock == "processor" for _, one in arms)
    kind = "processor time of the training, over its threads" if processor else "wall clock of the training"
    return f"Seconds: {kind}, without evaluations and saving; in the control without reading the cosine"


# --- figures -------------------------------------------------------------------------------------------


def learning_figures(trial: Trial, looks: Mapping[str, Look]) -> list[Figure]:
    """Bits per byte of every arm and its difference to the control, over tokens and seconds; of the next text too."""
    arms, then, made = learned(trial), then_learned(trial), []
    if arms:
        made += [_own(arms, looks, "tokens"), _changes(trial, arms, looks, "tokens")]
        made += [_own(arms, looks, "seconds"), _changes(trial, arms, looks, "seconds")]
    if then:
        made += [_own(then, looks, "next"), _changes(trial, then, looks, "next")]
    return [figure for figure in made if figure is not None]


_OWN = {
    "tokens": ("How fast does each arm learn, per token?", "Validation text"),
    "seconds": ("And per second of training?", "Validation text"),
    "next": ("And the next text?", "Held-out windows of the next text, all arms trained alike from their final models"),
}


def _own(arms: Sequence[tuple[ArmResult, Learning]], looks: Mapping[str, Look], over: str) -> Figure:
    """Bits per byte of every arm; bands are over seeds."""
    series = []
    for arm, one in reversed(arms):  # the legend turns them round again
        at = tuple(map(float, one.own_seconds if over == "seconds" else one.tokens))
        series.append(looks[arm.spec.name].curve(one.own, digits_of(KEY), marks=MARKS, at=at))
    ends = ", ".join(f"{arm.spec.name} {number(one.own[-1].value, digits_of(KEY))}" for arm, one in arms)
    title, text = _OWN[over]
    words = f"{text}; mean over the seeds, bands are 95 % over seeds. At the end: {ends}."
    return Figure(
        _chart(f"learning-{over}", UNIT, series, over), title, words, over == "tokens", still=over != "tokens"
    )


def _changes(
    trial: Trial, arms: Sequence[tuple[ArmResult, Learning]], looks: Mapping[str, Look], over: str
) -> Figure | None:
    """Arm − control at equal tokens or after equal seconds, with the control as the line at 0."""
    series = []
    for arm, one in reversed(arms):
        values: Sequence[Estimate] = one.timed if over == "seconds" else one.changes
        if any(value.value is not None for value in values):
            at = tuple(map(float, one.seconds if over == "seconds" else one.tokens))
            series.append(looks[arm.spec.name].curve(values, digits_of(KEY), marks=MARKS, at=at))
    if not series:
        return None
    least = round(tolerated(trial) or 0.0, digits_of(KEY))
    zone = (-least, least) if least and over != "next" else None
    chart = _chart(f"changes-{over}", CHANGE, series, over, edges=((0.0, "control"),), zone=zone)
    if over != "seconds":
        ends = [f"{arm.spec.name} {difference(one.changes[-1], digits_of(KEY))}" for arm, one in arms if one.changes]
        words = "Below 0 an arm is ahead of the control after as many tokens; bands are 95 % over seeds and documents. "
        title = "Early or final effect?" if over == "tokens" else "The next text, against the control"
        return Figure(chart, title, f"{words}At the end: {'; '.join(ends)}.", over == "tokens", _is_still(arms, over))
    ends = [f"{arm.spec.name} {difference(one.timed[-1], digits_of(KEY))}" for arm, one in arms if one.timed]
    words = f"After as many seconds as the control had, at its end: {'; '.join(ends)}. {_HELD}"
    return Figure(chart, "The same, after equal time", words, wide=False, still=True)


def _is_still(arms: Sequence[tuple[ArmResult, Learning]], over: str) -> bool:
    """Whether a static drawing has to do, so that the page stays below 2.3 MB: the smaller ones, and many arms."""
    runs = sum(len(arm.runs) for arm, _ in arms)  # each has a row in a table of its own
    return over != "tokens" or len(arms) > MOST_ARMS or runs > MOST_RUNS


def _chart(
    name: str,
    unit: str,
    series: Sequence[Series],
    over: str,
    *,
    edges: tuple[tuple[float, str], ...] = (),
    zone: tuple[float, float] | None = None,
) -> Chart:
    last = max(position for one in series for position in one.at)
    axis = Axis(title="seconds of training" if over == "seconds" else "tokens trained on", at=series[0].at)
    axis = Axis(title=axis.title, at=axis.at, span=(0.0, 1.025 * last))
    span = padded([*known_values(series), *([0.0, *zone] if zone else [0.0] if edges else [])])
    height, width = (420, 1000) if over == "tokens" else (340, 520)
    return Chart(
        f"chart-{name}", axis, unit, tuple(series), y_range=span, edges=edges, zone=zone, height=height, width=width
    )


def tuning_table(trial: Trial) -> Table | None:
    """A setting a row, an arm a column: bits per byte of the tuning text, the chosen bold; None without a search."""
    arms = [arm for arm in trial.arms if arm.tuning]
    if not arms:
        return None
    rows = []
    for at, setting in enumerate(arms[0].tuning):
        cells = []
        for arm in arms:
            tried = arm.tuning[at] if at < len(arm.tuning) else None
            value = None if tried is None else tried.loss if tried.bits_per_byte is None else tried.bits_per_byte
            if tried is None or value is None:
                cells.append(Cell("failed", notes=((tried.reason or "") if tried else "",)))
            else:
                edge = (f"edge: {' and '.join(tried.edge)}",) if tried.edge else ()
                notes = (in_words(tried.seconds), *edge)
                cells.append(Cell(number(value, digits_of(KEY)), notes=notes, strong=tried.chosen))
        rows.append((setting.words, tuple(cells)))
    seconds = trial.timing.get("tuning_seconds", 0.0)
    runs = sum(len(arm.tuning) for arm in arms)
    unit = "bits per byte" if arms[0].tuning[0].bits_per_byte is not None else "loss"
    note = (
        f"{unit.capitalize()} of the tuning text after the last step, seed {trial.plan.tuning_seed}, which is none of "
        f"the trial’s; bold is chosen. {plural(runs, 'run')}, {in_words(seconds)} of training."
    )
    return Table(tuple(Column(arm.spec.name) for arm in arms), tuple(rows), "Settings tried", note, "setting")


# --- the table and the words ---------------------------------------------------------------------------


def learning_table(trial: Trial) -> Table | None:
    """An arm a row: its difference in each quarter and at the end, after equal time, and how soon it is there."""
    arms = [(arm, one) for arm, one in learned(trial) if one.looks]
    if not arms:
        return None
    names = list(dict.fromkeys(look.name for _, one in arms for look in one.looks))
    heads = [Column(name) for name in names] + [Column("equal time", full="end, after equal time")]
    heads += [Column("to its end ÷ control", full="to the control’s final value ÷ control")]
    rows = []
    for arm, one in arms:
        by_name = {look.name: look for look in one.looks}
        cells = [_look(by_name[name].change, by_name[name].word) if name in by_name else EMPTY for name in names]
        cells.append(_look(one.timed[-1], one.timed_word))
        rows.append((arm.spec.name, (*cells, _reach(one))))
    note = (
        "Bits per byte, arm − control, mean over the seeds, 95 % interval. A quarter is the mean over its evaluated "
        "steps; a word before the end needs an interval at .05 over arms and looks. Last: tokens and seconds "
        "to the control’s final value, over the control’s own."
    )
    return Table(tuple(heads), tuple(rows), "When, and how soon", note, "arm")


def _look(change: Estimate, word: str | None) -> Cell:
    return change_cell(change, digits_of(KEY), (word.replace("not shown to be held", "not shown"),) if word else ())


def _reach(one: Learning) -> Cell:
    """Tokens and seconds to the control's final value over the control's own, or how often it is not reached."""
    reach = one.reach
    if reach is None:
        return EMPTY
    if reach.token_ratio.value is None and reach.reached == reach.seeds:
        return Cell("–", notes=(reach.token_ratio.reason or "",))
    if reach.token_ratio.value is None:
        said = f"{reach.reached} of {plural(reach.seeds, 'seed')}"
        return Cell(said if reach.reached else "not reached")
    bounds = [
        "one seed" if ratio.low is None else interval(ratio, 2) for ratio in (reach.token_ratio, reach.second_ratio)
    ]
    tokens, seconds = times(reach.token_ratio.value), times(reach.second_ratio.value)
    return Cell(f"{tokens} tokens", notes=(bounds[0], f"{seconds} seconds", bounds[1]))


def learning_lines(trial: Trial) -> list[str]:
    """What the curves come to, in sentences: when there is an effect, and whether it is there after equal time."""
    lines = []
    for arm, one in learned(trial):
        words = timing_sentence(arm.spec.name, one)
        if not words:
            continue
        some = "" if one.seeds == len(arm.runs) else f" (curves of {one.seeds} of {plural(len(arm.runs), 'seed')})"
        lines.append(words + _crossing(one) + _time_words(one) + some)
    for arm, one in then_learned(trial):
        if words := timing_sentence(arm.spec.name, one):
            lines.append(f"the next text: {words}{_crossing(one)}{_soon(one)}")
    return [*lines, *other_lines(trial)]


def _crossing(one: Learning) -> str:
    words = crossing_words(one)
    return f"; {words}" if words else ""


def _soon(one: Learning) -> str:
    """How soon an arm is where the control ends on the next text; empty where it is not always."""
    ratio = one.reach.token_ratio if one.reach else Estimate(None)
    if ratio.value is None:
        return ""
    bounds = f" [{interval(ratio, 2).replace(' to ', ', ')}]" if ratio.low is not None else ""
    return f"; it is at the control’s final value after {times(ratio.value)}{bounds} of the control’s tokens"


def other_lines(trial: Trial) -> list[str]:
    """What the text of another domain comes to, an arm a sentence; nothing without one or without words."""
    lines = []
    for arm in trial.arms:
        if arm.other is not None and arm.other.word is not None:
            words = arm.other.word.replace("not shown to be held", "not shown")
            lines.append(f"another domain: {arm.spec.name}: {words} ({difference(arm.other.change, digits_of(KEY))})")
    return lines


def other_table(trial: Trial) -> Table | None:
    """An arm a row: bits per byte on the text of another domain beside the validation text; None without one."""
    if trial.other is None:
        return None
    rows = []
    for arm in trial.arms:
        one = arm.other
        validation = arm.effect.metrics.get(KEY, Estimate(None)) if arm.effect else Estimate(None)
        if one is None:
            rows.append((arm.spec.name, (EMPTY, Cell("not measured"), EMPTY)))
        else:
            own = Cell(number(one.own.value, digits_of(KEY)), notes=(plural(one.seeds, "seed"),))
            cells = (_look(one.change, one.word), change_cell(validation, digits_of(KEY)))
            rows.append((arm.spec.name, (own, *cells)))
    heads = (Column("own"), Column("arm − control"), Column("on the validation text"))
    note = (
        f"Bits per byte of {corpus_line(trial.other)}, which chooses nothing; 95 % interval over seeds and documents."
    )
    return Table(heads, tuple(rows), "On text of another domain", note, "arm")


def _time_words(one: Learning) -> str:
    """What is left of a final gain or loss after equal time; empty where there is none."""
    end = one.looks[-1].word
    if end not in ("improved", "worse") or one.timed_word is None:
        return ""
    known = {"improved": "better", "worse": "worse"}
    if one.timed_word == end:
        return f"; {known[end]} after equal time too ({difference(one.timed[-1], digits_of(KEY))})"
    gone = "gone" if one.is_gone and end == "improved" else "not shown"
    return f"; after equal time that is {gone} ({difference(one.timed[-1], digits_of(KEY))})"
