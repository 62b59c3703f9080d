"""No op reads or writes past its arguments, whatever their sizes and however many threads share the work.

Each argument lies at the end of a page whose successor nobody may touch. What an op allocates for itself is under
AddressSanitizer's watch: `make sanitize`.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from cases import (
    ACTIVATIONS,
    Sample,
    check,
    cross_entropy_sample,
    embedding_linear_sample,
    linear_cross_entropy_sample,
    mlp_cross_entropy_sample,
)
from engine_runs import run_engine
from torch import Tensor

pytestmark = [
    pytest.mark.cpu,
    pytest.mark.skipif(sys.platform != "linux", reason="mmap and mprotect as Linux has them"),
    pytest.mark.usefixtures("threads"),
]
