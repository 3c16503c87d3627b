"""Whatever came from outside, made harmless for each surface: terminal, Markdown, CSV, XML.

HTML is escaped by jinja2 (`autoescape=True`). Names, paths, tokens and configs are untrusted.
"""

from __future__ import annotations

import re

# C0 and C1 controls but newline and tab, and the characters that reorder text (bidi)
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_RUNNER_COMMAND = re.compile(r"^(\s*)::", re.MULTILINE)  # the runner of GitHub takes blanks off first
_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff\ufffe\uffff]")


def for_terminal(text: str) -> str:
    r"""Text without control or bidi characters: each becomes a visible \xNN or \uNNNN."""
    return _CONTROL.sub(_visible, text)


def _visible(match: re.Match[str]) -> str:
    code = ord(match.group())
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


def for_markdown(text: str) -> str:
    """Text for a Markdown line or table cell: no markup, no HTML, no new lines."""
    plain = for_terminal(text).replace("\n", " ").replace("\t", " ")
    plain = plain.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|~!#])", r"\\\1", plain)


def for_code(text: str) -> str:
    """Text for a Markdown code span: no back-ticks that could end it, no new lines, no table bars."""
    return for_terminal(text).replace("\n", " ").replace("`", "'").replace("|", "¦")


def for_comment(text: str) -> str:
    """A version for a comment of Markdown or HTML, which nothing in it can end."""
    return re.sub(r"[^0-9A-Za-z.+]", "", text)


def for_csv(text: str) -> str:
    """Text for a CSV cell that no spreadsheet takes for a formula."""
    plain = for_terminal(text)
    begins = plain.lstrip()[:1] in tuple("=+-@＝＋－＠") or plain[:1] in ("\t", "\r")
    return f"'{plain}" if begins and plain else plain


def for_xml(text: str) -> str:
    """Text for XML without the characters that XML 1.0 forbids; escaping is left to the writer."""
    return _XML.sub("�", for_terminal(text))


def for_log(text: str) -> str:
    """Text for a line of a CI log: one line, and no `::` that a runner would take for a command."""
    return for_terminal(text).replace("\n", " ").replace("::", ": :")


def for_runner(text: str) -> str:
    """Lines of which none is a command to the runner of a CI job: `::` at the start of a line, `##[` anywhere in it."""
    return _RUNNER_COMMAND.sub(lambda match: f"{match.group(1)}: :", text).replace("##[", "## [")


def for_annotation(text: str) -> str:
    """Text for the message of a GitHub workflow command: one line, %, CR and LF escaped."""
    return for_terminal(text).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def for_annotation_property(text: str) -> str:
    """Text for a property of a GitHub workflow command, which ends at a colon or a comma."""
    return for_annotation(text).replace(":", "%3A").replace(",", "%2C")
