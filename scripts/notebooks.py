"""`python -m scripts.notebooks`: writes the lessons of docs/learn as notebooks beside them, as `make notebooks` does.

A notebook is its page: each block of Python is a cell, without outputs, and each picture the one that a cell has drawn.
"""

from __future__ import annotations

import re
from pathlib import Path

import jupytext
import nbformat
from nbformat import NotebookNode, v4

LESSONS = Path(__file__).resolve().parent.parent / "docs" / "learn"
_KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
_PICTURE = re.compile(r"^!\[([^\]]*)\]\((\w+\.png)\)$", re.MULTILINE)


def pages() -> list[Path]:
    """The lessons that have code."""
    return [path for path in sorted(LESSONS.glob("*.md")) if "```python\n" in path.read_text()]


def notebook(page: Path) -> NotebookNode:
    """A page as a notebook."""
    lessons = "|".join(path.stem for path in pages())
    text = re.sub(rf"\]\(({lessons})\.md\b", r"](\1.ipynb", page.read_text())
    cells = [cell for parsed in jupytext.reads(text, fmt="md").cells for cell in _with_pictures(parsed)]
    for number, cell in enumerate(cells, start=1):
        cell.id = f"cell-{number}"
        cell.metadata = {}
    return v4.new_notebook(cells=cells, metadata={"kernelspec": _KERNEL, "language_info": {"name": "python"}})


def _with_pictures(cell: NotebookNode) -> list[NotebookNode]:
    """A cell of text, cut where it shows a picture: there a cell of code shows that of this run."""
    if cell.cell_type != "markdown":
        return [cell]
    cells, end = [], 0
    for picture in _PICTURE.finditer(cell.source):
        cells.append(v4.new_markdown_cell(cell.source[end : picture.start()].strip()))
        caption = "".join(f"# {line}\n" for line in picture[1].splitlines())
        cells.append(v4.new_code_cell(f'{caption}from IPython.display import Image\n\nImage("{picture[2]}")'))
        end = picture.end()
    cells.append(v4.new_markdown_cell(cell.source[end:].strip()))
    return [cell for cell in cells if cell.source]


def text(page: Path) -> str:
    """What the file of a page's notebook holds."""
    return nbformat.writes(notebook(page)) + "\n"


def main() -> None:
    for page in pages():
        page.with_suffix(".ipynb").write_text(text(page))


if __name__ == "__main__":
    main()
