"""The documentation as a site: `make docs` builds it into build/docs, from the pages as they are and the docstrings.

Sphinx reads from the root of the sources, so that the links between README and pages are the same here and on GitHub.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from docutils.nodes import SkipNode
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util import logging

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import charlm  # noqa: E402

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "charlm"
author = "The charlm authors"
version = release = charlm.__version__
html_title = f"charlm {release}"

root_doc = "README"
include_patterns = [
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "charlm/names.md"),
    *("examples/README.md", "benchmarks/results/*.md", "docs/**"),
]
extensions = ["myst_parser", "sphinx_copybutton", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]

# Pages are in the Markdown that GitHub reads, and show the same there.
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
html_math_renderer = "mathml"
# Of a block of commands with what they print, the commands.
copybutton_prompt_text = "$ "
copybutton_copy_empty_lines = False

# Docstrings are in Google's style, with sections of our own.
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
napoleon_custom_sections = [("Shapes", "notes_style"), ("Source", "notes_style")]
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_inherit_docstrings = False
python_maximum_signature_line_length = 100
# What is ours must be found; torch's and Python's own are on other sites, which nothing here waits for.
nitpicky = True
nitpick_ignore_regex = [("py:.*", r"(?!charlm(\.|$)).*"), ("py:class", r"charlm\.(\w+\.)*_\w+(\.\w+)*")]

html_theme = "furo"
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}
pygments_style = "friendly"
pygments_dark_style = "monokai"

# The groups of the navigation: a title, and its pages in their order, some with a shorter title.
_LESSONS = re.findall(r"\]\((\w+)\.md\)", (ROOT / "docs" / "learn" / "index.md").read_text())
NAVIGATION = {
    "Start": ["docs/first_ten_minutes", "docs/install"],
    "Learn": ["docs/learn/index", *(f"docs/learn/{name}" for name in dict.fromkeys(_LESSONS))],
    "Use": [
        *("docs/command_line", "docs/sampling", "docs/python", "docs/ops", "docs/other_models", "examples/README"),
        *("docs/distributed", "docs/gpu"),
    ],
    "Under the hood": [
        *("docs/how_it_works", "docs/results", "All measurements <benchmarks/results/README>"),
        *("Output layer on a GPU <docs/gpu_output_layer>", "docs/comparison", "docs/toy_op", "CONTRIBUTING"),
        *("CHANGELOG", "The embedded names <charlm/names>"),
    ],
    "Reference": [
        *("docs/api/charlm", "docs/api/ops", "docs/api/reference", "docs/api/nn", "docs/api/data", "docs/api/models"),
        *("docs/api/sampler", "docs/api/checkpoint", "docs/api/plots", "docs/api/distributed", "docs/api/*"),
    ],
}
# A page that is not among them is about a use of charlm.
_LISTED = {re.sub(r".*<|>", "", page) for pages in NAVIGATION.values() for page in pages}
NAVIGATION["Use"][2:2] = sorted({f"docs/{path.stem}" for path in (ROOT / "docs").glob("*.md")} - _LISTED)
_TABLES = {root_doc: NAVIGATION, "benchmarks/results/README": {"Tables": ["*"]}}

_THIN_SPACE = '<mspace width="0.167em"></mspace>'
_log = logging.getLogger(__name__)


def _add_navigation(app: Sphinx, docname: str, source: list[str]) -> None:
    """Gives the first page what the navigation at the side is made of; so for others that have pages below them."""
    for title, pages in _TABLES.get(docname, {}).items():
        entries = "\n".join(pages)
        source[0] += f"\n```{{toctree}}\n:hidden:\n:glob:\n:caption: {title}\n\n{entries}\n```\n"


def _escape(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Backslashes and bars of docstrings are themselves, and `V.` is no beginning of a list."""
    for i, line in enumerate(lines):
        parts = re.split(r"(`+[^`]*`+)", line)
        parts[::2] = [re.sub(r"[\\|]", r"\\\g<0>", part) for part in parts[::2]]
        lines[i] = re.sub(r"^(\s*[\w*, ]+: )(?=[A-Z]\.)", r"\1\\", "".join(parts))


def _process_docstring(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Docstrings as reStructuredText has them: they write `code` as Markdown does, and formulas as indented blocks."""
    written: list[str] = []
    text = ""  # the last line that was neither blank nor of such a block
    for line in lines:
        indented = line.startswith("    ")
        if not (indented and text and not re.match(r"[ :*-]|\.\.", text)):
            line = re.sub(r"(?<![`:\w])`([^`]+)`(?!`)", lambda match: _code(match[1]), line)
            text = line or text
        else:
            line = re.sub(r"\\([\\|])", r"\1", line)
            if not written[-1] and not written[-2].startswith("    "):
                written += [".. code-block:: text", ""]
        written.append(line)
    lines[:] = written


def _code(text: str) -> str:
    """What of it is a name of charlm becomes a link."""
    return f":py:obj:`{text}`" if re.fullmatch(r"charlm(\.(?!_)\w+)+", text) else f"``{text}``"


def _skip_member(app: Sphinx, what: str, name: str, obj: Any, skip: bool, options: object) -> bool | None:
    """The fields of a named tuple are in the docstring of its class."""
    return True if str(getattr(obj, "__doc__", None)).startswith("Alias for field number") else None


def _write_formula(translator: Any, node: Any, block: bool) -> None:
    """As MathML, which browsers show without a script from elsewhere."""
    try:
        formula = tex2mathml(node.astext(), as_block=block)
        # As in TeX there are thin spaces around the name of a function, but before a parenthesis.
        formula = re.sub(r"(</mi>|>\)</mo>)(?=\s*<mi>\w+</mi>\s*<mo>&ApplyFunction;)", rf"\1{_THIN_SPACE}", formula)
        formula = re.sub(r'<mo>&ApplyFunction;</mo>(?!\s*<mo stretchy="false">\()', _THIN_SPACE, formula)
        translator.body.append(formula)
    except MathError as error:
        _log.warning("formula %r: %s", node.astext(), error, location=node)
    raise SkipNode


def _write_index(app: Sphinx, failure: Exception | None) -> None:
    """The page that a browser opens in a folder."""
    if failure is None and app.builder.name == "html":
        page = f'<!doctype html><title>{project}</title><meta http-equiv="refresh" content="0; url={root_doc}.html">\n'
        (Path(app.outdir) / "index.html").write_text(page)


def setup(app: Sphinx) -> None:
    app.connect("source-read", _add_navigation)
    # Before and after napoleon, whose priority is 500.
    app.connect("autodoc-process-docstring", _escape, priority=400)
    app.connect("autodoc-process-docstring", _process_docstring, priority=600)
    app.connect("autodoc-skip-member", _skip_member)
    app.connect("build-finished", _write_index)
    app.add_html_math_renderer(
        "mathml",
        inline_renderers=(lambda translator, node: _write_formula(translator, node, False), None),
        block_renderers=(lambda translator, node: _write_formula(translator, node, True), None),
    )
