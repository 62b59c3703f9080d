"""Loads the compiled ops, and says what to do where that cannot work."""

import re

import torch

from charlm._loading import does_not_load
from charlm._version import OLDEST_TORCH

_version = tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2])
if _version < OLDEST_TORCH:
    raise ImportError(
        f"charlm needs torch >= {OLDEST_TORCH[0]}.{OLDEST_TORCH[1]}, found torch {torch.__version__}. "
        f"Run: pip install 'torch>={OLDEST_TORCH[0]}.{OLDEST_TORCH[1]}'"
    )

try:
    from charlm import _C
except ImportError as error:
    raise does_not_load(f"the compiled part of charlm does not load under torch {torch.__version__}", error) from error

__all__ = ["_C"]
