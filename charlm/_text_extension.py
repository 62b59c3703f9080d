"""Loads what reads and writes text, and says what to do where that cannot work."""

import platform

from charlm._loading import does_not_load

try:
    from charlm import _text
except ImportError as error:
    problem = f"charlm._text, which reads and samples text, does not load under Python {platform.python_version()}"
    raise does_not_load(f"{problem}, one version of which it is compiled for", error) from error

__all__ = ["_text"]
