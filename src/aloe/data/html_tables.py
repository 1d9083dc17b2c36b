"""HTML tables in texts: simple ones become lines of cells joined by " | ", others can't be read as text for certain."""

from __future__ import annotations

import re
from html.parser import HTMLParser

_TABLE = re.compile(r"<table\b[^>]*>.*?</table\s*>", re.IGNORECASE | re.DOTALL)
_LEFT = re.compile(r"</?(?:table|tr|td|th)\b", re.IGNORECASE)
_SUPERSCRIPT = {"sup": "^", "sub": ""}


def has_table(text: str) -> bool:
    """Whether there is table markup in a text."""
    return "<" in text and _LEFT.search(text) is not None


def flatten_tables(text: str) -> str | None:
    """The text with every table as lines, one a row, its cells joined by " | "; None if one isn't simple.

    Not simple: a table in a table, a cell that spans rows or columns, a picture, rows or cells outside a table, a
    table that never ends. What each number belongs to is lost in those.
    """
    out, end = [], 0
    for found in _TABLE.finditer(text):
        lines = _rows(found[0])
        if lines is None:
            return None
        out += [text[end : found.start()].rstrip(" \t"), "\n", "\n".join(lines), "\n"]
        end = found.end()
    rest = "".join(out) + text[end:].lstrip(" \t") if out else text
    return None if _LEFT.search(rest) else rest.strip("\n") if out else rest


def _rows(table: str) -> list[str] | None:
    parser = _Table()
    parser.feed(table)
    parser.close()
    return None if parser.odd else [" | ".join(row) for row in parser.rows if any(row)]


class _Table(HTMLParser):
    """Collects the rows of one table; `odd` once it has met something that lines of cells can't show."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.rows: list[list[str]] = []
        self.odd = False
        self._tables = 0
        self._cell = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "table":
            self._tables += 1
            self.odd |= self._tables > 1
        elif tag == "tr":
            self.rows.append([])
            self._cell = False
        elif tag in ("td", "th"):
            spans = [v for k, v in attrs if k in ("rowspan", "colspan")]
            self.odd |= not self.rows or any((v or "1").strip() != "1" for v in spans)
            if self.rows:
                self.rows[-1].append("")
            self._cell = True
        elif tag in ("br", "p", "div", "li"):
            self._add(" ")
        elif tag in _SUPERSCRIPT:
            self._add(_SUPERSCRIPT[tag])
        elif tag in ("img", "svg", "object"):
            self.odd = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th", "tr"):
            self._cell = False

    def handle_data(self, data: str) -> None:
        if self._cell:
            self._add(data)
        elif data.strip():  # text between cells (a caption) has no place in a row
            if self.rows:
                self.odd = True
            else:
                self.rows.append([" ".join(data.split())])

    def _add(self, text: str) -> None:
        if self._cell and self.rows and self.rows[-1]:
            self.rows[-1][-1] = " ".join((self.rows[-1][-1] + text.replace("\n", " ")).split(" ")).lstrip()
