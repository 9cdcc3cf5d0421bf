"""Words of others in formats that would take some of them for commands: cells of a spreadsheet, Markdown, labels of a picture."""

from __future__ import annotations

import re

_FORMULA = re.compile(r"'*[=+\-@\t\r]")  # what a spreadsheet calculates, and what this has written of it
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_MARKS = re.compile(r"([\\`*\[\]<>|&#~$]|(?<!\w)_|_(?!\w))")
_LINKS = re.compile(r"(?i)(?<=[a-z])(:)(?=//)|(?<=\bwww)(\.)|(?<=mailto)(:)")


def cell(value: object) -> object:
    """A cell of a CSV or TSV file; text that a spreadsheet would calculate gets an apostrophe, numbers stay as they are."""
    formula = isinstance(value, str) and _FORMULA.match(value) and not _NUMBER.fullmatch(value)
    return f"'{value}" if formula else value


def from_cell(text: str) -> str:
    """What `cell` was given."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text


def markdown(text: object) -> str:
    """One line of Markdown that shows `text` as it is: no link, no HTML, no emphasis, no cell's end."""
    line = _MARKS.sub(r"\\\1", " ".join(str(text).split()))
    return _LINKS.sub(lambda found: f"&#{ord(found[0])};", line)


def label(text: str) -> str:
    """A label of matplotlib's that shows `text` as it is: no formula, and not one that a legend leaves out."""
    return f"{' ' * text.startswith('_')}{text}".replace("$", r"\$")
