"""The hooks that pip calls to build charlm (PEP 517): those of setuptools, once it is clear that a build can succeed.

pyproject.toml requires nothing, so that pip asks here what it takes before it downloads anything.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from building import prerequisites


def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    prerequisites.check_torch()
    prerequisites.check_compiler()
    return prerequisites.TOOLS


get_requires_for_build_editable = get_requires_for_build_wheel


def get_requires_for_build_sdist(config_settings: Any = None) -> list[str]:
    """The same sources are packed everywhere, so that takes neither torch nor a compiler."""
    return prerequisites.TOOLS[:1]


def _hook(name: str) -> Callable[..., Any]:
    """One of setuptools, which is imported when there is something to do: before that, it need not be installed."""

    def call(*arguments: Any, **options: Any) -> Any:
        # Without isolation, nothing has asked for the requirements.
        if name != "build_sdist":
            prerequisites.check_tools()
        if name in ("build_wheel", "build_editable"):
            get_requires_for_build_wheel()
        from setuptools import build_meta

        return getattr(build_meta, name)(*arguments, **options)

    return call


build_sdist = _hook("build_sdist")
build_wheel = _hook("build_wheel")
build_editable = _hook("build_editable")
prepare_metadata_for_build_wheel = _hook("prepare_metadata_for_build_wheel")
prepare_metadata_for_build_editable = _hook("prepare_metadata_for_build_editable")
