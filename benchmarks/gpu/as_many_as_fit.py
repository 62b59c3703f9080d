"""A plugin for pytest, `-p benchmarks.gpu.as_many_as_fit --seconds 60`: tests in a mixed order, until time is up."""

from __future__ import annotations

import random
import time

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seconds", type=float, required=True, help="after which no further test is run, but skipped")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(_AsManyAsFit(config.getoption("--seconds")))


class _AsManyAsFit:
    def __init__(self, seconds: float) -> None:
        self._deadline = time.monotonic() + seconds

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        # The same order each time and in each process, and whatever fits has something of every file.
        random.Random(0).shuffle(items)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self) -> None:
        if time.monotonic() >= self._deadline:
            pytest.skip("no time left")
