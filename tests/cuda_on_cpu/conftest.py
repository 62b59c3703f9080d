"""The simulator runs on Linux; elsewhere, and where the ops run on another device, its tests are not collected."""

from __future__ import annotations

import sys

import cases

if sys.platform != "linux" or cases.on_cuda:
    collect_ignore_glob = ["test_*.py"]
