"""The tables of docs/study/results.md, from the committed records: python docs/study/tables.py [--write].

Prints every table; with --write it puts each between its marks in results.md instead. Needs condense
alone.
"""

import re
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from condense.comparison.verdict import signed
from condense.records.base import Estimate
from condense.records.learning import Tried
from condense.records.monitor import MonitorRun
from condense.records.trial import ArmResult, Trial, mean
from condense.report.tables import markdown_rows

STUDY = Path(__file__).parent
RUNS, RESULTS = STUDY / "runs", STUDY / "results.md"
MARKED = re.compile(r"(<!-- table: (\S+) -->\n).*?(\n<!-- end -->)", re.DOTALL)
GEOMETRY = {
    "mean_cosine": "deep mean cosine",
    "mean_cosine_without_top_dimensions": "without top 3 dimensions",
    "effective_rank": "effective rank",
    "dimension": "dimension",
}
QUARTERS = (0.0625, 0.125, 0.25, 0.5, 0.75, 1.0)


def change(estimate: Estimate | None, digits: int = 4) -> str:
    """A difference with its interval."""
    return "–" if estimate is None or estimate.value is None else signed(estimate, digits).replace("-", "−")


def ratio(estimate: Estimate | None) -> str:
    """A ratio with its interval."""
    if estimate is None or estimate.value is None:
        return "–"
    return f"{estimate.value:.2f}" + ("" if estimate.low is None else f" [{estimate.low:.2f}, {estimate.high:.2f}]")


def rows(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join(markdown_rows(head, body))


def rates(trial: Trial) -> str:
    """What the search tried: bits per byte of the tuning text after the last step, the chosen setting in bold."""
    tried = sorted({setting(item) for arm in trial.arms for item in arm.tuning})
    body = []
    for arm in trial.arms:
        values = {setting(item): item for item in arm.tuning}
        cells = [f"{values[key].bits_per_byte:.4f}" if key in values else "–" for key in tried]
        body.append(
            [f"`{arm.spec.name}`"]
            + [
                f"**{cell}**" if key in values and values[key].chosen else cell
                for key, cell in zip(tried, cells, strict=True)
            ]
        )
    return rows(["arm", *(f"{rate:g}" + (f", {warmup}" if warmup else "") for warmup, rate in tried)], body)


def setting(item: Tried) -> tuple[int, float]:
    """Warm-up steps and peak rate that were tried; 0 steps where the warm-up was not searched."""
    return int(item.warmup_steps or 0), item.learning_rate or 0.0


def controls(batches: Sequence[str] = ("D-1e-3", "D", "D3-4e-3", "D3-8e-3")) -> str:
    """The control after 1,600 steps under seed 0, by the setting of its batch."""
    body = []
    for batch in batches:
        path = RUNS / batch / "trial.json"
        if not path.exists():
            continue
        trial = Trial.from_json(path)
        value = trial.control.runs[0].quality.bits_per_byte.value
        training = trial.plan.training
        body.append(
            [batch, f"{training.learning_rate:g}", f"{training.warmup:g}", "–" if value is None else f"{value:.4f}"]
        )
    return rows(["batch", "peak rate", "warm-up steps", "bits per byte, seed 0"], body)


def ends(trial: Trial) -> str:
    """Every arm after the last step: own bits per byte, the difference with its word, and that on the other text."""
    body = []
    for arm in trial.arms:
        own = f"{mean(arm, 'bits_per_byte'):.4f}" if arm.runs else "–"
        if arm.effect is None:
            body.append([f"`{arm.spec.name}`", str(len(arm.runs)), own, "reference", "–", "–", "–"])
            continue
        below = sum((run.metrics["bits_per_byte"].value or 0) < 0 for run in arm.effect.by_seed)
        body.append(
            [
                f"`{arm.spec.name}`",
                str(len(arm.runs)),
                own,
                change(arm.effect.metrics["bits_per_byte"]),
                f"{below} of {len(arm.effect.by_seed)}",
                arm.quality or "–",
                change(arm.other.change if arm.other else None),
            ]
        )
    return rows(
        ["arm", "seeds", "bits per byte", "difference", "seeds below", "word", "difference on the other text"], body
    )


def curves(trial: Trial) -> str:
    """The difference over the steps, when it shows, and where its sign turns."""
    steps = trial.control.learning.step if trial.control.learning else ()
    wanted = [min(steps, key=lambda step: abs(step - share * steps[-1])) for share in QUARTERS] if steps else []
    body = []
    for arm in trial.arms:
        learning = arm.learning
        if learning is None or not learning.changes:
            continue
        at = dict(zip(learning.step, learning.changes, strict=True))
        turn = "–" if learning.turn is None else f"{learning.turn:.0f}"
        body.append([f"`{arm.spec.name}`", *(change(at[step], 3) for step in wanted), learning.timing or "–", turn])
    return rows(["arm", *(f"step {step}" for step in wanted), "when", "sign turns at"], body)


def times(trial: Trial) -> str:
    """At equal training time, and how soon an arm has the control's final value."""
    body = []
    for arm in trial.arms:
        learning = arm.learning
        if learning is None or not learning.timed:
            continue
        reach = learning.reach
        body.append(
            [
                f"`{arm.spec.name}`",
                ratio(learning.second_ratio),
                change(learning.timed[-1]),
                "–" if reach is None else f"{reach.reached} of {reach.seeds}",
                ratio(reach.token_ratio if reach else None),
                ratio(reach.second_ratio if reach else None),
            ]
        )
    head = ["arm", "time ÷ control", "difference at equal time", "reach the control's end", "tokens ÷", "time ÷"]
    return rows(head, body)


def geometry(trial: Trial) -> str:
    """What the arms did to the geometry of the validation text."""
    body = [[f"`{arm.spec.name}`", *(own(arm, key) for key in GEOMETRY)] for arm in trial.arms if arm.runs]
    return rows(["arm", *GEOMETRY.values()], body)


def spread(trial: Trial) -> str:
    """What every arm did to the cone of the validation text, arm − control, and the verdict's words."""
    body = []
    for arm in trial.arms:
        if arm.effect is None:
            continue
        cells = [change(arm.effect.metrics.get(key), 3 if "cosine" in key else 1) for key in GEOMETRY]
        body.append([f"`{arm.spec.name}`", *cells, arm.verdict or "–", arm.opened or "–"])
    return rows(["arm", *GEOMETRY.values(), "verdict", "what opened"], body)


def own(arm: ArmResult, key: str) -> str:
    """The mean over seeds."""
    value = mean(arm, key)
    return "–" if value is None else f"{value:.{3 if 'cosine' in key else 1}f}"


def pairs(trial: Trial) -> str:
    """Arms against each other in bits per byte, Holm-adjusted over all pairs."""
    body = []
    for pair in trial.pairs:
        if "control" in (pair.first, pair.second) or "bits_per_byte" not in pair.differences:
            continue
        p = pair.p.get("bits_per_byte")
        value = change(pair.differences["bits_per_byte"])
        body.append(
            [f"`{pair.first}` − `{pair.second}`", value, "–" if p is None else "< .001" if p < 0.001 else f"{p:.3f}"]
        )
    return rows(["pair", "difference in bits per byte", "p (Holm)"], body)


def peaks() -> str:
    """The deep mean cosine over the first steps: mean over seeds, its peak per seed, and how long it stays above .9."""
    body = []
    for model in ("gpt2", "llama"):
        for arm in ("control", "dispersion"):
            runs = [MonitorRun.from_lines(path) for path in sorted((RUNS / "peak").glob(f"{model}-{arm}-*.jsonl"))]
            if not runs:
                continue
            body.append([f"{model}, {arm}", *peak_cells(runs)])
    return rows(
        ["model, arm", "seeds", "step 0", "peak, lowest and highest seed", "at step", "steps above .9", "step 160"],
        body,
    )


def peak_cells(runs: Sequence[MonitorRun]) -> Iterator[str]:
    """The cells of one model and arm."""
    curves = [curve_of(run) for run in runs]
    tops = [max(curve.values()) for curve in curves]
    steps = [
        next(step for step, value in curve.items() if value == top) for curve, top in zip(curves, tops, strict=True)
    ]
    high = [above(curve, 0.9) for curve in curves]
    yield str(len(runs))
    yield f"{statistics.mean(curve[0] for curve in curves):.3f}"
    yield f"{min(tops):.3f} to {max(tops):.3f}"
    yield f"{min(steps)} to {max(steps)}"
    yield f"{statistics.mean(high):.0f} ({min(high):.0f} to {max(high):.0f})"
    yield f"{statistics.mean(curve[max(curve)] for curve in curves):.3f}"


def curve_of(run: MonitorRun) -> dict[int, float]:
    """The deep mean cosine by step."""
    return {point.step: point.deep["mean_cosine"] for point in run.measurements}


def above(curve: dict[int, float], level: float) -> float:
    """For how many steps a curve lies above a level, by straight lines between its points."""
    total, points = 0.0, sorted(curve.items())
    for (left, a), (right, b) in zip(points, points[1:], strict=False):
        share = 1.0 if min(a, b) >= level else 0.0 if max(a, b) < level else (max(a, b) - level) / abs(a - b)
        total += share * (right - left)
    return total


TABLES: dict[str, Callable[[Trial], str]] = {
    "rates": rates,
    "ends": ends,
    "curves": curves,
    "times": times,
    "geometry": geometry,
    "spread": spread,
    "pairs": pairs,
}
ACROSS: dict[str, Callable[[], str]] = {"peaks": peaks, "controls": controls}


def table(name: str) -> str:
    """A table by its name: one over several batches, or BATCH-KIND."""
    if name in ACROSS:
        return ACROSS[name]()
    batch, _, kind = name.rpartition("-")
    return TABLES[kind](Trial.from_json(RUNS / batch / "trial.json"))


def written(text: str) -> str:
    """The text with every table between its marks made anew."""
    return MARKED.sub(lambda match: f"{match[1]}{table(match[2])}{match[3]}", text)


def main() -> None:
    """Print all tables, or write them."""
    if sys.argv[1:] == ["--write"]:
        RESULTS.write_text(written(RESULTS.read_text(encoding="utf-8")), encoding="utf-8")
        return
    batches = sorted(path.parent.name for path in RUNS.glob("*/trial.json"))
    for name in [*(f"{batch}-{kind}" for batch in batches for kind in TABLES), *ACROSS]:
        print(f"{name}\n\n{table(name)}\n")


if __name__ == "__main__":
    main()
