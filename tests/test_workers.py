"""The processes in which pytest-xdist runs tests."""

from __future__ import annotations

import os

import torch


def test_a_worker_has_the_threads_that_conftest_asks_for() -> None:
    """That is, torch was not imported before: it reads the number once. In a process without workers all are had."""
    asked_for = os.environ.get("OMP_NUM_THREADS")
    assert asked_for is not None or "PYTEST_XDIST_WORKER" not in os.environ
    assert asked_for is None or torch.get_num_threads() == int(asked_for)
