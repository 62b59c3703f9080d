"""A plugin for pytest, `-p benchmarks.gpu.lost_device`: one test that ruins a GPU, or hangs, does not fail the others.

After some errors, such as an access out of bounds, CUDA refuses all that a process asks of it. A worker of pytest-xdist
ends there, and another takes over its tests; so it does where a test hangs. Without workers a lost device ends the run.
What a test failed of is said at once, for the case that there is no end at which pytest would.
"""

from __future__ import annotations

import faulthandler
import os
from collections.abc import Iterator
from typing import Any

import pytest

from benchmarks.gpu.device import is_lost

TEST_SECONDS = 40


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(_LostDevice(config))


class _LostDevice:
    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._is_worker = hasattr(config, "workerinput")
        # pytest puts files in the place of the standard ones.
        self._stderr = os.dup(2)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self) -> Iterator[None]:
        if self._is_worker:  # else nobody would take over
            faulthandler.dump_traceback_later(TEST_SECONDS, exit=True, file=self._stderr)
        try:
            return (yield)
        finally:
            faulthandler.cancel_dump_traceback_later()

    @pytest.hookimpl(trylast=True)  # when a worker has sent it
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if not report.failed:
            return
        if not self._is_worker:
            reporter: Any = self._config.pluginmanager.get_plugin("terminalreporter")
            reporter.write_line(f"failed: {report.nodeid}: {_first_line(report)}")
        is_from_worker = hasattr(report, "node")  # which has then asked itself
        if not is_from_worker and "CUDA error" in report.longreprtext and is_lost():
            if self._is_worker:
                os._exit(1)
            pytest.exit("the GPU can be used no more", returncode=1)


def _first_line(report: pytest.TestReport) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    text = str(crash.message if crash is not None else report.longrepr).strip()
    return text.splitlines()[0] if text else "?"
