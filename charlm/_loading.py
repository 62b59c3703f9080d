"""What to say where a compiled module does not load."""

from __future__ import annotations

import shlex
from pathlib import Path


def does_not_load(problem: str, error: ImportError) -> ImportError:
    """The error to raise in the place of Python's: one sentence, and the command that mends it."""
    return ImportError(f"{problem}: {error}. {_recompile()}")


def _recompile() -> str:
    """charlm is compiled from its sources; which these are is known where it is imported from them."""
    sources = Path(__file__).resolve().parent.parent
    if (sources / "setup.py").is_file():
        return f"Run: pip install --no-deps --editable {shlex.quote(str(sources))}"
    return "In the folder of charlm's sources, run: pip install --force-reinstall --no-deps ."
