"""Holds every CUDA kernel to the committed table, tests/cuda_resources.json: registers, spills, accesses to vectors.

    python scripts/cuda_resources.py          fails where a kernel spills, takes more registers than the table says, or
                                              has fewer instructions that load or store a vector
    python scripts/cuda_resources.py --write  writes the table anew

It reads what the assembler said in the last build, and what it was given, which setup.py leaves in build/objects/cuda.
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
BUILD = ROOT / "build" / "objects" / "cuda"

# {"cross_entropy": {"narrow_rows<float, true>": {"sm_90": {"registers": 48, "spilled": 0, "vectors": 20}}}}
Resources = dict[str, dict[str, dict[str, dict[str, int]]]]

_KERNEL = re.compile(r"Compiling entry function '(.+)' for '(\w+)'")
_SPILLS = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")
_REGISTERS = re.compile(r"Used (\d+) registers")
_ENTRY = re.compile(r"\.entry (\w+)\(")
_VECTOR = re.compile(r"\b(?:ld|st)\.[\w.]+\.v[24]\.")


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


def vectors(ptx: str) -> dict[str, int]:
    """How many instructions of each kernel load or store a vector, by the kernel's whole name."""
    _, *parts = _ENTRY.split(ptx)
    return {name: len(_VECTOR.findall(body)) for name, body in zip(parts[::2], parts[1::2], strict=True)}


def _demangle(text: str) -> str:
    return subprocess.run(["c++filt"], input=text, capture_output=True, text=True, check=True).stdout


def _short(name: str) -> str:
    """A kernel's name and template arguments, of its whole signature."""
    name = name.replace("(anonymous namespace)::", "").removeprefix("void ")
    return name.partition("(")[0].replace("charlm::cuda::", "")


def measured() -> Resources:
    """The resources of the last build."""
    logs = sorted(BUILD.rglob("*.ptxas"))
    if not logs:
        sys.exit(f"{BUILD} has no output of the assembler: build with nvcc first: CHARLM_CUDA=1 make setup")
    resources = {}
    for log in logs:
        kernels = resources[log.stem] = parse(_demangle(log.read_text()))
        for path in log.with_suffix("").glob("*.ptx"):  # <file>.compute_90.ptx
            counts = vectors(path.read_text())
            names = _demangle("\n".join(counts)).splitlines()
            for name, count in zip(names, counts.values(), strict=True):
                entry = kernels[_short(name)].get(path.stem.rpartition(".")[2].replace("compute", "sm"))
                if entry is not None:
                    entry["vectors"] = count
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
                if allowed is not None and entry["vectors"] < allowed["vectors"]:
                    lines.append(f"{what} accesses {entry['vectors']} vectors, {allowed['vectors']} in the table")
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
