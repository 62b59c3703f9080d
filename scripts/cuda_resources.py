"""Holds the registers and spills of every CUDA kernel to the committed table, tests/cuda_resources.json.

    python scripts/cuda_resources.py          fails where a kernel spills, or takes more registers than the table says
    python scripts/cuda_resources.py --write  writes the table anew

It reads what the assembler said in the last build, which setup.py leaves in build/cuda.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "tests" / "cuda_resources.json"
BUILD = ROOT / "build" / "cuda"

# {"cross_entropy": {"narrow_rows<float, true>": {"sm_90": {"registers": 48, "spilled": 0}}}}
Resources = dict[str, dict[str, dict[str, dict[str, int]]]]

_KERNEL = re.compile(r"Compiling entry function '(.+)' for '(\w+)'")
_SPILLS = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")
_REGISTERS = re.compile(r"Used (\d+) registers")


def parse(log: str) -> dict[str, dict[str, dict[str, int]]]:
    """Kernels, architectures and their resources, in the demangled output of `ptxas -v`."""
    kernels: dict[str, dict[str, dict[str, int]]] = {}
    entry: dict[str, int] = {}
    for line in log.splitlines():
        if found := _KERNEL.search(line):
            entry = kernels.setdefault(_short(found[1]), {}).setdefault(found[2], {})
        elif found := _SPILLS.search(line):
            entry["spilled"] = int(found[1]) + int(found[2])
        elif found := _REGISTERS.search(line):
            entry["registers"] = int(found[1])
    return {name: dict(sorted(kernels[name].items())) for name in sorted(kernels)}


def _short(name: str) -> str:
    """A kernel's name and template arguments, of its whole signature."""
    name = name.replace("(anonymous namespace)::", "").removeprefix("void ")
    return name.partition("(")[0].replace("charlm::cuda::", "")


def measured() -> Resources:
    """The resources of the last build."""
    logs = sorted(BUILD.glob("*.ptxas"))
    if not logs:
        sys.exit(f"{BUILD} has no output of the assembler: build with nvcc first (CHARLM_CUDA=1 pip install ...)")
    resources = {}
    for log in logs:
        demangled = subprocess.run(["c++filt"], input=log.read_text(), capture_output=True, text=True, check=True)
        resources[log.stem] = parse(demangled.stdout)
    return {file: kernels for file, kernels in resources.items() if kernels}


def complaints(table: Resources, now: Resources) -> list[str]:
    """What has become worse, or is not in the table."""
    lines = []
    for file, kernels in now.items():
        for kernel, architectures in kernels.items():
            for architecture, entry in architectures.items():
                what = f"{file}: {kernel} on {architecture}"
                allowed = table.get(file, {}).get(kernel, {}).get(architecture)
                if entry["spilled"] > 0:
                    lines.append(f"{what} spills {entry['spilled']} bytes")
                if allowed is None:
                    lines.append(f"{what} is not in the table")
                elif entry["registers"] > allowed["registers"]:
                    lines.append(f"{what} takes {entry['registers']} registers, {allowed['registers']} in the table")
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the table anew")
    options = parser.parse_args(arguments)
    now = measured()
    if options.write:
        TABLE.write_text(json.dumps(now, indent=1) + "\n")
        return
    if lines := complaints(json.loads(TABLE.read_text()), now):
        sys.exit("\n".join([*lines, "If that is right: python scripts/cuda_resources.py --write"]))
    print(f"{sum(map(len, now.values()))} kernels within {TABLE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
