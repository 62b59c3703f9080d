"""`charlm info`: what a bug report needs."""

from __future__ import annotations

import json
import platform
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer

_PACKAGES = ("torch", "safetensors", "typer", "rich", "numpy", "matplotlib")


def info(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Print versions, instruction sets, devices and build flags: what a bug report needs."""
    facts = _facts()
    if as_json:
        typer.echo(json.dumps(facts))
        return
    rows: dict[str, Any] = {}
    for name, value in facts.items():
        rows |= {f"{name} {key}": item for key, item in value.items()} if isinstance(value, dict) else {name: value}
    width = max(map(len, rows))
    for name, value in rows.items():
        shown = ", ".join(map(str, value)) if isinstance(value, list) else value
        typer.echo(f"{name:{width}}  {'-' if shown is None else shown}")


def _facts() -> dict[str, Any]:
    import torch

    from charlm import _C
    from charlm._version import __version__
    from charlm.backends import BACKENDS

    build = _C.build_info()
    target = int(str(build["torch_target_version"]))
    return {
        "charlm": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _installed(name) for name in _PACKAGES},
        "processor": _processor(),
        "instruction_set": _C.instruction_set(),
        "instruction_sets": _C.instruction_sets(),
        "threads": torch.get_num_threads(),
        "devices": ["cpu", *(f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count()))],
        "backends": list(BACKENDS),
        # The high byte is the major, the low byte the minor version of the oldest torch the binary can run under.
        "build": {**build, "torch_target_version": f"{target >> 8}.{target & 0xFF}"},
    }


def _installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    """The model of the CPU; Linux has it in a file only, and not on every architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
