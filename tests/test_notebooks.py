"""The lessons as notebooks: the same as the pages, and run from top to bottom."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from scripts import notebooks

ROOT = Path(__file__).resolve().parent.parent
PAGES = notebooks.pages()


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NotebookClient]:
    """Runs one notebook after the other: starting a kernel, and importing torch there, takes longer than most."""
    folder = tmp_path_factory.mktemp("jupyter")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        for name in ("JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "IPYTHONDIR"):
            patch.setenv(name, str(folder))
        client = NotebookClient(nbformat.v4.new_notebook(), timeout=240)
        client.execute(cleanup_kc=False)
        yield client
        client.nb = nbformat.v4.new_notebook()
        client.execute()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_notebook_is_its_page(page: Path) -> None:
    """`make notebooks` writes it anew."""
    written = page.with_suffix(".ipynb").read_text()
    assert written == notebooks.text(page)
    cells = nbformat.reads(written, as_version=4).cells
    code = [cell.source for cell in cells if cell.cell_type == "code" and "Image(" not in cell.source]
    assert code == [block.strip() for block in re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.M | re.S)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_notebook_runs_from_top_to_bottom(page: Path, client: NotebookClient, tmp_path: Path) -> None:
    notebook = nbformat.read(page.with_suffix(".ipynb"), as_version=4)
    # In a folder of its own, without what others have left.
    notebook.cells.insert(0, nbformat.v4.new_code_cell(f"%reset -f\n%cd -q {tmp_path}"))
    client.nb = notebook
    client.execute(cleanup_kc=False)
    # Every picture of the page has been drawn, and is shown.
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    shown = [output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    assert len(shown) == len(re.findall(r"^!\[[^\]]*\]\(\w+\.png\)$", page.read_text(), re.M))
    assert all(shown)


def test_no_notebook_is_left_of_a_page_that_is_gone() -> None:
    assert sorted(notebooks.LESSONS.glob("*.ipynb")) == [page.with_suffix(".ipynb") for page in PAGES]
