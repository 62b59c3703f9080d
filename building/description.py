"""The README as package indexes show it, where no other file of the project is."""

from __future__ import annotations

import re
from pathlib import Path

_LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|#)([^)]+)\)")


def arguments() -> dict[str, str]:
    """Those of ``setuptools.setup``."""
    return {
        "long_description": for_index(Path("README.md").read_text(encoding="utf-8")),
        "long_description_content_type": "text/markdown",
    }


def for_index(readme: str) -> str:
    """The text, with the name of a file where a link leads to one, and its description in the place of a picture."""
    return _LINK.sub(lambda link: link[2] if link[1] else f"{link[2]} (`{link[3]}`)", readme)
