"""`charlm info`: what a bug report needs."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from charlm import environment


def info(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Print versions, instruction sets, devices and build flags: what a bug report needs."""
    facts: dict[str, Any] = {"versions": environment.versions(), **environment.machine()}
    failure: ImportError | None = None
    for gather in (_facts_of_the_extension, _facts_of_the_package):
        try:
            facts |= gather()
        except ImportError as error:
            # The rest is what the report about it needs.
            failure = error
            facts["error"] = str(error)
    typer.echo(json.dumps(facts) if as_json else _lines(facts))
    if failure is not None:
        raise failure


def _facts_of_the_extension() -> dict[str, Any]:
    import torch

    from charlm.ops._extension import _C

    build = _C.build_info()
    target = int(str(build["torch_target_version"]))
    return {
        "instruction_set": _C.instruction_set(),
        "instruction_sets": _C.instruction_sets(),
        "threads": torch.get_num_threads(),
        "devices": ["cpu", *(f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count()))],
        "kernels": {f"cuda:{i}": _C.why_no_kernels(i) or "yes" for i in range(torch.cuda.device_count())},
        # The high byte is the major, the low byte the minor version of the oldest torch the binary can run under.
        "build": {**build, "torch_target_version": f"{target >> 8}.{target & 0xFF}"},
    }


def _facts_of_the_package() -> dict[str, Any]:
    """What needs all of it, and so both modules that are compiled."""
    from charlm.backends import BACKENDS

    return {"backends": list(BACKENDS)}


def _lines(facts: dict[str, Any]) -> str:
    """The facts as aligned lines, but for the error, which goes the way of all errors."""
    rows: dict[str, Any] = {}
    for name, value in facts.items():
        prefix = "" if name == "versions" else f"{name} "
        rows |= {prefix + key: item for key, item in value.items()} if isinstance(value, dict) else {name: value}
    rows.pop("error", None)
    width = max(map(len, rows))
    shown = {name: ", ".join(map(str, value)) if isinstance(value, list) else value for name, value in rows.items()}
    return "\n".join(f"{name:{width}}  {'-' if value is None else value}" for name, value in shown.items())
