"""The embedding and unembedding matrices of a diagnosis: a table, their spectrum, lines for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from condense.metrics import MATRIX
from condense.records.base import Estimate
from condense.records.diagnosis import Diagnosis, MatrixReading
from condense.report.charts import Axis, Chart, Figure, Look, Series
from condense.report.tables import Cell, Column, Table, value_cell
from condense.report.text import DASH, number, percent, thousands

CAUTION = (
    "Read with care: over 108 models the geometry of this matrix reflects batch size and weight decay and does not "
    "predict performance (arXiv:2602.20433); a common shift of its rows was held against models (Gao et al. 2019, "
    "arXiv:1907.12009) and removed with a small gain (Coupled Adam, arXiv:2502.08441). Each number is of the whole "
    "matrix, which is no sample: there is no interval."
)


def matrices_of(diagnosis: Diagnosis) -> dict[str, MatrixReading]:
    """The matrices by what they are called in words; one where they are tied."""
    named = {name.replace("-", " "): reading for name, reading in diagnosis.matrices.items()}
    first = next(iter(named.values()), None)
    return {"embedding and unembedding matrix (tied)": first} if first and first.tied else named


def matrix_table(diagnosis: Diagnosis) -> Table:
    """One row per matrix: its size, then every number."""
    columns = [Column("rows", "Matrix"), Column("width", "Matrix")]
    columns += [Column(metric.head, "Its rows", metric.title) for metric in MATRIX.values()]
    rows = []
    for name, reading in matrices_of(diagnosis).items():
        cells = [Cell(thousands(reading.rows), sort=str(reading.rows)), Cell(thousands(reading.width))]
        for key, metric in MATRIX.items():
            of = reading.metrics[key.partition(".")[2]]
            cell = value_cell(of, metric.digits)
            cells.append(cell if not key.endswith("untrained_share") else _untrained(reading, of))
        rows.append((name, tuple(cells)))
    note = "Under a rank its share of Gaussian rows of the same number and width."
    return Table(tuple(columns), tuple(rows), "Each matrix as a whole", note, "matrix")


def _untrained(reading: MatrixReading, of: Estimate) -> Cell:
    share = DASH if of.value is None else f"{100 * of.value:.3g} %"
    kinds = {"zero": reading.zero, "equal to another": reading.duplicate, "as initialised": reading.initial}
    return Cell(share, notes=tuple(f"{thousands(count)} {kind}" for kind, count in kinds.items() if count))


def matrix_lines(diagnosis: Diagnosis) -> list[str]:
    """Each matrix in a line for the terminal."""
    lines = []
    for name, reading in matrices_of(diagnosis).items():
        values, rank = reading.metrics, reading.metrics["effective_rank"]
        parts = [
            f"{thousands(reading.rows)} rows of width {thousands(reading.width)}",
            f"mean cosine {number(values['mean_cosine'].value, 3)}",
            f"mean shift {number(values['mean_shift'].value, 3)}",
            f"effective rank {number(rank.value, 0)} ({percent(rank.null_ratio)} of random)",
        ]
        untrained = _untrained(reading, values["untrained_share"])
        parts += [f"{untrained.text} of the rows never trained"] if values["untrained_share"].value else []
        lines.append(f"{name}: {', '.join(parts)}")
    return lines


def matrix_figures(diagnosis: Diagnosis) -> list[Figure]:
    """How the variance of the rows is spread over directions, beside that of random rows."""
    found = matrices_of(diagnosis)
    known = {name: reading for name, reading in found.items() if reading.spectrum}
    if not known:
        return []
    first = next(iter(known.values()))
    series = [_variances(Look("random rows", "ink", "dashdot"), first.spectrum_null)]
    for (ink, dash), (name, reading) in zip((("accent", "solid"), ("warm", "longdash")), known.items(), strict=False):
        series.append(_variances(Look(name, ink, dash), reading.spectrum))
    axis = Axis(title="direction, as a share of the width, largest first", at=(0.0, 1.0), span=(-0.02, 1.02))
    chart = Chart("chart-spectrum", axis, "variance, 1 if even", tuple(series), log=True, height=320)
    ranks = "; ".join(
        f"{name}: effective rank {number(r.metrics['effective_rank'].value, 0)} of {thousands(r.width)}"
        for name, r in known.items()
    )
    return [Figure(chart, "How many directions do the rows use?", f"{ranks}.")]


def _variances(look: Look, spectrum: Sequence[float]) -> Series:
    at = tuple(round(index / max(1, len(spectrum) - 1), 3) for index in range(len(spectrum)))
    return look.curve([Estimate(max(value, 1e-6)) for value in spectrum], 3, width=2.0, at=at)
