"""What results say of where they come from."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

from charlm import environment


def provenance(arguments: Sequence[str]) -> dict[str, Any]:
    """What was run, by the arguments of `python -m benchmarks`; when, and on what."""
    return {
        "command": shlex.join(["python", "-m", "benchmarks", *arguments]),
        "date": datetime.now(timezone.utc).date().isoformat(),
        "commit": environment.commit(),
        "machine": environment.machine(),
        "versions": environment.versions(),
    }


def machine_line(results: Mapping[str, Any]) -> str:
    return f"{results['machine']['processor']}, {results['machine']['cores']} cores"


def origin_line(results: Mapping[str, Any]) -> str:
    """All but the machine."""
    versions = results["versions"]
    return (
        f"{results['machine']['platform']}; charlm {versions['charlm']} at {results['commit']}, torch "
        f"{versions['torch']}, Python {versions['python']}; {results['date']}; `{results['command']}`"
    )
