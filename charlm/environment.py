"""What a measurement or a bug report must say about where it comes from."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

from charlm._version import __version__

_PACKAGES = ("safetensors", "typer", "rich", "numpy", "matplotlib")


def versions() -> dict[str, str | None]:
    """The versions of charlm, Python, and the packages that charlm uses; None where one is not installed."""
    packages = {name: _version(name) for name in _PACKAGES}
    return {"charlm": __version__, "python": platform.python_version(), "torch": _torch_version(), **packages}


def machine() -> dict[str, str | int]:
    """The model of the processor, the cores that this process may use, and the operating system."""
    return {"processor": _processor(), "cores": _cores(), "platform": platform.platform()}


def commit() -> str | None:
    """The commit of the source tree that charlm runs from, with "-dirty" if tracked files differ; None outside one."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _torch_version() -> str | None:
    """PyTorch knows which build it is, such as 2.11.0+cu130; its package need not."""
    try:
        import torch
    except ImportError:
        return _version("torch")
    return str(torch.__version__)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    """Linux has the model in a file only, and not on every architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def _cores() -> int:
    """The processors this process may run on, which a container may have limited; macOS does not say."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1
