"""The shell of every page: templates filled, everything escaped, charts embedded, the policy that forbids requests.

The file makes no request: plotly.js lies gzipped inside and is inflated by the browser; without it (or without
JavaScript) static drawings and the tables remain. The same record gives the same bytes.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from condense.errors import CondenseError, UsageError
from condense.files import cache_folder, write_text
from condense.records.base import PlotlyJs
from condense.report.escape import for_terminal
from condense.report.text import breakable, number, percent, sentence, signed, typeset

if TYPE_CHECKING:
    from jinja2 import Environment

    from condense.report import glossary
    from condense.report.charts import Chart, Figure, Panels
    from condense.report.parts import Groups, Head

TEMPLATES = Path(__file__).parent / "templates"
CDN = "https://cdn.plot.ly"
SANS = 'Inter, system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif'


def render(
    head: Head,
    drawn: Sequence[Figure | Panels],
    plotlyjs: PlotlyJs,
    *,
    command: str,
    provenance: Groups,
    glossary: glossary.Groups,
    **content: object,
) -> str:
    """The page of a kind of report from its template; `drawn` are all figures that it shows, in order.

    content: what the template of the kind reads besides.
    """
    if plotlyjs not in ("inline", "cdn", "none"):
        raise ValueError(f"plotlyjs is {plotlyjs!r}, not one of inline, cdn, none")
    from condense.report.plotly import plotly_figure

    charts = [] if plotlyjs == "none" else [plotly_figure(chart) for figure in drawn for chart in _charts(figure)]
    text = (
        environment()
        .get_template(f"{head.kind}.html.j2")
        .render(
            head=head,
            command=command,
            provenance=provenance,
            glossary=glossary,
            plotlyjs=plotlyjs,
            plotly=_plotly(plotlyjs),
            charts_json=embedded_json(charts),
            sans=SANS,
            policy=_policy(plotlyjs),
            **content,
        )
    )
    return "\n".join(line for line in text.splitlines() if line.strip()) + "\n"


def _charts(figure: Figure | Panels) -> tuple[Chart, ...]:
    """The charts of a figure that a script draws."""
    from condense.report.charts import Panels

    charts = figure.charts if isinstance(figure, Panels) else (figure.chart,)
    return () if figure.still else charts


@functools.cache  # compiling the templates takes as long as all else of a page
def environment() -> Environment:
    """The jinja environment of every page: everything is escaped, control characters are made visible."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    from condense.report.svg import paint, sketch, swatch

    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(sentence=sentence, typeset=typeset, number=number, signed=signed, percent=percent)
    made.filters["breakable"] = breakable
    made.filters["paint"] = paint
    made.filters["sketch"] = lambda chart: _markup(sketch(chart))
    made.filters["swatch"] = lambda bar, rank, chart: _markup(swatch(bar, rank, chart))
    return made


def embedded_json(value: object) -> str:
    """JSON that cannot end the script element that it stands in; markup-safe for the templates."""
    text = json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    safe: str = _markup(text)
    return safe


def _plotly(plotlyjs: PlotlyJs) -> Mapping[str, str]:
    """Where plotly.js comes from: its gzipped bytes in base64, or an address with its hash."""
    if plotlyjs == "none":
        return {}
    import base64
    from importlib.util import find_spec

    spec = find_spec("plotly")  # its file is read without the package being loaded
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError("plotly is not installed")
    source = Path(spec.submodule_search_locations[0], "package_data", "plotly.min.js").read_bytes()
    if plotlyjs == "inline":
        return {"gzip": _markup(_gzipped(source))}
    import hashlib

    from plotly.offline import get_plotlyjs_version

    digest = base64.b64encode(hashlib.sha256(source).digest()).decode("ascii")
    return {"address": f"{CDN}/plotly-{get_plotlyjs_version()}.min.js", "integrity": f"sha256-{digest}"}


def _gzipped(source: bytes) -> str:
    """Bytes gzipped, in base64: those kept in the cache, where they unpack to exactly these, else made and kept.

    Compressing takes a sixth of a page's time. What the cache holds becomes code of the page, hence the comparison.
    """
    import base64
    import gzip
    import zlib

    path = None
    with contextlib.suppress(UsageError, OSError, ValueError, zlib.error):  # no cache, or something else in it
        path = cache_folder("pages") / "plotly.txt"
        kept, unpacked = path.read_text("ascii"), zlib.decompressobj(wbits=31)
        same = unpacked.decompress(base64.b64decode(kept, validate=True), len(source) + 1) == source
        if same and unpacked.eof and not unpacked.unused_data:
            return kept
    made = base64.b64encode(gzip.compress(source, 6, mtime=0)).decode("ascii")
    if path is not None:
        with contextlib.suppress(CondenseError):
            write_text(path, made)
    return made


def _policy(plotlyjs: PlotlyJs) -> str:
    """The content security policy: nothing may be fetched but, if asked for, plotly.js from its CDN."""
    scripts = f"'unsafe-inline' {CDN}" if plotlyjs == "cdn" else "'unsafe-inline'"
    return (
        f"default-src 'none'; script-src {scripts}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def _visible(value: Any) -> Any:
    """What a template prints: strings from outside with their control characters spelled out."""
    from markupsafe import Markup

    return for_terminal(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _markup(text: str) -> Any:
    """Text of our own making that is HTML already."""
    from markupsafe import Markup

    return Markup(text)
