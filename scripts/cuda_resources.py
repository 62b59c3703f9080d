"""Holds every CUDA kernel to the committed table, tests/cuda_resources.json: registers, spills, accesses to vectors.

    python -m scripts.cuda_resources          fails where a kernel spills, takes more registers than the table says, or
                                              has fewer instructions that load or store a vector
    python -m scripts.cuda_resources --write  writes the table anew
    python -m scripts.cuda_resources --show 'wide_rows<float, true>' --architecture sm_90    prints a kernel's loops

It reads what the assembler said in the last build, what it was given and what it made, which setup.py leaves in
build/objects/cuda.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from scripts import sass

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


def describe(kernel: sass.Kernel) -> str:
    """Its loops, each below the one that it is in: where it is, its instructions by kind, and the loads in flight."""

    def of(blocks: set[int]) -> str:
        kinds = kernel.kinds(blocks)
        most = ", ".join(f"{kind} {count}" for kind, count in kinds.most_common(16))
        return f"{kinds.total()} instructions, {kernel.loads_in_flight(blocks)} loads in flight: {most}"

    def lines(loop: sass.Loop, indent: str) -> Iterator[str]:
        places = [instruction.offset for i in loop.blocks for instruction in kernel.blocks[i].instructions]
        trip = kernel.count(kernel.longest_path(loop.blocks, lambda _: 1))
        yield f"{indent}loop {min(places):04x}-{max(places):04x}, at most {trip:.0f} a trip: {of(loop.blocks)}"
        for inner in loop.inner:
            yield from lines(inner, indent + "  ")

    inside = [inner for loop in kernel.loops for inner in loop.inner]
    outermost = [loop for loop in kernel.loops if not any(loop is inner for inner in inside)]
    whole = of(set(kernel.order))
    return "\n".join([whole, *(line for loop in outermost for line in lines(loop, "  "))])


def show(name: str, architecture: str, cubins: Sequence[Path]) -> None:
    """Prints the loops of the kernels whose names have `name` in them; of that one alone which has no other name."""
    kernels = [kernel for cubin in cubins for kernel in sass.disassemble(cubin) if kernel.architecture == architecture]
    names = [_short(line) for line in _demangle("\n".join(kernel.name for kernel in kernels)).splitlines()]
    wanted = [name] if name in names else [other for other in names if name in other]
    if not wanted:
        sys.exit(f"no kernel for {architecture} is named {name!r}: {', '.join(sorted(names)) or 'there are none'}")
    for found, kernel in zip(names, kernels, strict=True):
        if found in wanted:
            print(f"{found} on {architecture}: {describe(kernel)}")


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
    parser.add_argument("--show", metavar="KERNEL", help="print the loops of a kernel, by its name or a part of it")
    parser.add_argument("--architecture", default="sm_90", help="of the kernel to show (default: %(default)s)")
    parser.add_argument("--cubin", type=Path, help="where the kernel to show is, if not in the last build")
    options = parser.parse_args(arguments)
    if options.show is not None:
        number = options.architecture.rpartition("_")[2]
        cubins = [options.cubin] if options.cubin else sorted(BUILD.rglob(f"*_{number}.cubin"))
        show(options.show, options.architecture, cubins)
        return
    now = measured()
    if options.write:
        TABLE.write_text(json.dumps(now, indent=1) + "\n")
        return
    if lines := complaints(json.loads(TABLE.read_text()), now):
        sys.exit("\n".join([*lines, "If that is right: python -m scripts.cuda_resources --write"]))
    print(f"{sum(map(len, now.values()))} kernels within {TABLE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
