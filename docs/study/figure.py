"""The figure of the early peak, as a page: python docs/study/figure.py OUT.html. Needs condense and plotly."""

import sys

import plotly.graph_objects as go
from plotly.subplots import make_subplots
from tables import RUNS, curve_of

from condense.records.monitor import MonitorRun

MODELS = {"gpt2": "GPT-2", "llama": "Llama"}
ARMS = {"control": ("cross-entropy alone", "#b0642a"), "dispersion": ("with the angular loss at 1", "#1f6f8b")}


def figure() -> go.Figure:
    """A panel for each model, a line for each seed."""
    made = make_subplots(
        1, len(MODELS), subplot_titles=list(MODELS.values()), shared_yaxes=True, horizontal_spacing=0.04
    )
    for column, model in enumerate(MODELS, 1):
        for arm, (title, color) in ARMS.items():
            for number, path in enumerate(sorted((RUNS / "peak").glob(f"{model}-{arm}-*.jsonl"))):
                curve = curve_of(MonitorRun.from_lines(path))
                line = go.Scatter(
                    x=list(curve),
                    y=list(curve.values()),
                    mode="lines+markers",
                    name=title,
                    legendgroup=arm,
                    showlegend=column == 1 and number == 0,
                    line={"color": color, "width": 1.5},
                    marker={"size": 4},
                )
                made.add_trace(line, 1, column)
    made.update_xaxes(title_text="step")
    made.update_yaxes(title_text="deep mean cosine", range=[0, 1.02], col=1)
    made.update_layout(
        template="plotly_white", width=1000, height=380, font={"size": 14}, margin={"l": 70, "r": 20, "t": 50, "b": 60}
    )
    made.update_layout(legend={"orientation": "h", "y": 1.2, "x": 0})
    return made


if __name__ == "__main__":
    figure().write_html(sys.argv[1])
