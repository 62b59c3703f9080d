"""Loads the compiled ops, and says what to do where that cannot work."""

import re

import torch

OLDEST_TORCH = (2, 10)
_REINSTALL = "pip install --force-reinstall --no-deps --no-build-isolation charlm"

_version = tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2])
if _version < OLDEST_TORCH:
    raise ImportError(
        f"charlm needs torch >= {OLDEST_TORCH[0]}.{OLDEST_TORCH[1]}, found torch {torch.__version__}. "
        f"Run: pip install 'torch>={OLDEST_TORCH[0]}.{OLDEST_TORCH[1]}'"
    )

try:
    from charlm import _C
except ImportError as error:
    raise ImportError(
        f"the compiled part of charlm does not load under torch {torch.__version__}: {error}. Run: {_REINSTALL}"
    ) from error

__all__ = ["OLDEST_TORCH", "_C"]
