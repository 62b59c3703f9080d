"""The documentation as a site: `make docs` builds all of it, and what leads nowhere fails the build."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import zlib
from pathlib import Path

import charlm

ROOT = Path(__file__).resolve().parent.parent


def build(source: Path, out: Path) -> subprocess.CompletedProcess[str]:
    """The command of `make docs` on the pages of another folder."""
    (line,) = re.findall(r"^\t\$\(BIN\)/python (-m sphinx .*) \. build/docs$", (ROOT / "Makefile").read_text(), re.M)
    command = [sys.executable, *shlex.split(line), str(source), str(out)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)


def documented(site: Path) -> set[str]:
    """The names in Python that have an entry, by the inventory that other sites would link with."""
    inventory = (site / "objects.inv").read_bytes().split(b"\n", 4)[4]
    return set(re.findall(r"^(\S+) py:", zlib.decompress(inventory).decode(), re.MULTILINE))


def test_the_site_has_every_page_and_every_public_name(tmp_path: Path) -> None:
    result = build(ROOT, tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert "url=README.html" in (tmp_path / "index.html").read_text()

    pages = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "examples/README.md")]
    pages += (ROOT / "docs").rglob("*.md")
    for page in pages:
        text = (tmp_path / page.relative_to(ROOT).with_suffix(".html")).read_text()
        assert "theme-toggle" in text, page
        # Nothing that a page needs to be shown is on another server.
        assert re.findall(r'<(?:script|img|link)\b[^>]*\b(?:src|href)="(?:https?:)?//[^"]*"', text) == [], page
        navigation = text.split('<div class="sidebar-tree">')[1].split("</aside>")[0]
        for title in ("Start", "Learn", "Use", "Under the hood", "Reference"):
            assert f'<span class="caption-text">{title}</span>' in navigation, page
    assert "prefers-color-scheme: dark" in (tmp_path / "README.html").read_text()
    assert "linear_cross_entropy" in (tmp_path / "searchindex.js").read_text()

    # How docstrings are read: a letter with a full stop, a formula as it is written, a name as a link, a backslash.
    reference = (tmp_path / "docs" / "api" / "charlm.html").read_text()
    assert "<strong>vocab_size</strong> – V.</p>" in reference
    assert re.search(r"<pre><span></span>x = concat\(embedding\[context\]\) {2,}\(T\*D,\)\nz = weight2 tanh", reference)
    assert re.search(r'<a [^>]*href="data.html#charlm.data.load"[^>]*>.*charlm.data.load.*</a>', reference)
    assert "“\\n”" in reference

    names = documented(tmp_path)
    for module in (charlm, charlm.ops, charlm.nn):
        for name in module.__all__:
            assert f"{module.__name__}.{name}" in names, f"{module.__name__}.{name}"


FAULTS = {
    "[a page](docs/nowhere.md)": "cross-reference target not found: 'docs/nowhere.md'",
    "[a heading](#nowhere)": "cross-reference target not found: 'nowhere'",
    "$\\nowhere$": "Unknown LaTeX command",
    "![a picture](docs/nowhere.png)": "image file not readable: docs/nowhere.png",
}


def test_what_leads_nowhere_fails_the_build(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# Faults\n\n" + "\n\n".join(FAULTS))
    api = tmp_path / "docs" / "api"
    api.mkdir(parents=True)
    names = ("charlm.ops.nowhere", "charlm.nowhere.cross_entropy")
    (api / "charlm.rst").write_text("Faults\n======\n\n" + "\n".join(f":py:func:`{name}`" for name in names))
    result = build(tmp_path, tmp_path / "site")
    assert result.returncode == 1
    warnings = [line for line in result.stderr.splitlines() if "WARNING" in line]
    for message in [*FAULTS.values(), *(f"reference target not found: {name} " for name in names)]:
        assert any(message in line for line in warnings), (message, result.stderr)
