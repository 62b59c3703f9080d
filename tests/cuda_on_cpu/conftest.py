"""The simulator runs on Linux; elsewhere, and where the ops run on another device, its tests are not collected."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

import cases
import pytest

if sys.platform == "linux" and not cases.on_cuda:
    from simulator import Server, build

    @pytest.fixture(scope="session")
    def serve() -> Iterator[Callable[[str], Server]]:
        """Gives the running server of an op's kernels; the first call compiles them."""
        servers: dict[str, Server] = {}

        def get(op: str) -> Server:
            if op not in servers:
                servers[op] = Server(build(op))
            return servers[op]

        yield get
        for server in servers.values():
            server.close()
else:
    collect_ignore_glob = ["test_*.py"]
