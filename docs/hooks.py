"""A hook of the documentation's site: what a link names outside of docs/ is not on the site, so its text stays."""

import re
from typing import Any

_OUTSIDE = re.compile(r"\[([^\]]+)\]\((?:\.\./)+[^)\s]*\)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace links that lead out of docs/ by their text."""
    return _OUTSIDE.sub(r"\1", markdown)
