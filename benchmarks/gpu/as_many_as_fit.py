"""A plugin for pytest, `-p benchmarks.gpu.as_many_as_fit --seconds 60`: tests in a mixed order, until time is up."""

from __future__ import annotations

import random
import time

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seconds", type=float, required=True, help="after which no further test is started")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(_AsManyAsFit(config.getoption("--seconds")))


class _AsManyAsFit:
    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._deadline: float | None = None
        self._selected = self._left_out = 0

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        # The same order each time, and whatever fits has something of every file.
        random.Random(0).shuffle(items)
        self._selected = len(items)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self) -> bool | None:
        if self._deadline is None:  # collecting, which imports torch, is not counted
            self._deadline = time.monotonic() + self._seconds
        if time.monotonic() < self._deadline:
            return None
        self._left_out += 1
        return True

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        run = self._selected - self._left_out
        terminalreporter.write_line(f"{run} of {self._selected} tests fitted into {self._seconds:g} s")
