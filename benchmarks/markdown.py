"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Sequence


def table(heading: Sequence[str], rows: Sequence[Sequence[str]], *, aligned: bool = False) -> str:
    """One line for the heading and for each row; aligned, for those who read it as it is, with equally wide cells."""
    lines = [[cell.replace("|", "/") for cell in line] for line in (heading, ["---"] * len(heading), *rows)]
    if aligned:
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        fills = ["-" if number == 1 else " " for number in range(len(lines))]
        lines = [
            [cell.ljust(width, fill) for cell, width in zip(line, widths, strict=True)]
            for line, fill in zip(lines, fills, strict=True)
        ]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
