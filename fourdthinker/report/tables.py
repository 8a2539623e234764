"""Tables of the page, each of which can be kept as CSV."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet would compute


@dataclass(frozen=True)
class Cell:
    """One cell. kind: CSS classes. title: what is said of it when it is pointed at."""

    text: str
    kind: str = ""
    title: str = ""


@dataclass(frozen=True)
class TableRow:
    """One line of a table."""

    label: str
    cells: list[Cell]
    baseline: bool = False


@dataclass(frozen=True)
class Table:
    """A table with labelled lines.

    Attributes:
        name: of the CSV file, without its suffix.
        caption: what it shows.
        columns: names over all columns but the first, which holds the labels.
        rows: its lines.
        so_far: of what part of a run that is not finished, such as "30 of 100 questions"; "" of all. It
            stands in the first cell of the CSV.
    """

    name: str
    caption: str
    columns: Sequence[str]
    rows: list[TableRow]
    so_far: str = ""

    @property
    def csv(self) -> str:
        """The table as CSV in UTF-8, as a data URL."""
        lines = [
            [self.so_far, *self.columns],
            *([row.label, *(c.text for c in row.cells)] for row in self.rows),
        ]
        return csv_url(lines)


def csv_url(lines: Sequence[Sequence[str]]) -> str:
    """Lines of text as CSV.

    Args:
        lines: of cells. One that a spreadsheet would take for a formula gets an apostrophe before it.

    Returns:
        A data URL.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerows([[_cell(cell) for cell in line] for line in lines])
    data = base64.b64encode(text.getvalue().encode("utf-8", "backslashreplace")).decode("ascii")
    return f"data:text/csv;charset=utf-8;base64,{data}"


def _cell(text: str) -> str:
    plain = text.replace("\u00a0", " ").replace("−", "-")
    number = plain.removesuffix(" %").replace(",", "")
    try:
        float(number)
    except ValueError:
        return "'" + plain if plain.startswith(_FORMULA) else plain
    return plain
