"""Holds every CUDA kernel to the committed table, tests/cuda_resources.json.

    python -m scripts.cuda_resources          fails where a kernel has become worse than the table says
    python -m scripts.cuda_resources --write  writes the table anew
    python -m scripts.cuda_resources --show 'wide_rows<float, true>' --architecture sm_90    prints a kernel's loops

Of each kernel on each architecture the table has its registers, the bytes that it spills, its instructions that load or
store a vector, and how many loads from global memory it has in flight; of those in cuda_figures.py also what they take
an element. All that is read from what the last build left in build/objects/cuda: what the assembler said, what it was
given, and the machine code that it made.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TypedDict

from scripts import sass
from scripts.cuda_figures import FIGURES, Figure
from scripts.loads_in_flight import loads_in_flight

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "tests" / "cuda_resources.json"
BUILD = ROOT / "build" / "objects" / "cuda"
TOLERANCE = 1.02  # of instructions an element: what another patch of the compiler may change


class Entry(TypedDict, total=False):
    """What the table has of a kernel on an architecture."""

    registers: int
    spilled: int
    vectors: int
    loads: int
    per_element: dict[str, dict[str, float]]  # by the name of a figure: "instructions" and "loads"


# {"cross_entropy": {"narrow_rows<float, true>": {"sm_90": {"registers": 48, "spilled": 0, "vectors": 20, "loads": 4}}}}
Resources = dict[str, dict[str, dict[str, Entry]]]

_KERNEL = re.compile(r"Compiling entry function '(.+)' for '(\w+)'")
_SPILLS = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")
_REGISTERS = re.compile(r"Used (\d+) registers")
_ENTRY = re.compile(r"\.entry (\w+)\(")
_VECTOR = re.compile(r"\b(?:ld|st)\.[\w.]+\.v[24]\.")


def parse(log: str) -> dict[str, dict[str, Entry]]:
    """Kernels, architectures and their resources, in the demangled output of `ptxas -v`."""
    kernels: dict[str, dict[str, Entry]] = {}
    entry: Entry = {}
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
        kept = log.with_suffix("")
        if not any(kept.glob("*.cubin")):
            sys.exit(
                f"{kept} has no machine code: a cache such as ccache has spared nvcc the work. Delete {kept}.o, and "
                "build without it: CCACHE_DISABLE=1"
            )
        for path in kept.glob("*.ptx"):  # <file>.compute_90.ptx
            counts = vectors(path.read_text())
            names = _demangle("\n".join(counts)).splitlines()
            for name, count in zip(names, counts.values(), strict=True):
                entry = kernels[_short(name)].get(path.stem.rpartition(".")[2].replace("compute", "sm"))
                if entry is not None:
                    entry["vectors"] = count
    lines: list[str] = []
    with ProcessPoolExecutor() as pool:
        for file, architecture, codes, errors in pool.map(_read, sorted(BUILD.rglob("*.cubin"))):
            lines += errors
            for name, code in codes.items():
                entry = resources[file].get(name, {}).get(architecture)
                if entry is not None:
                    entry.update(code)
    if lines:
        sys.exit("\n".join([*lines, "Say in scripts/cuda_figures.py how the kernel is counted"]))
    return {file: kernels for file, kernels in resources.items() if kernels}


def _read(cubin: Path) -> tuple[str, str, dict[str, Entry], list[str]]:
    """The source of a file of machine code, its architecture, what of its kernels is read from it, and what cannot."""
    file, architecture = cubin.parent.name, ""
    codes: dict[str, Entry] = {}
    lines = []
    for name, kernel in _kernels(cubin).items():
        architecture = kernel.architecture
        entry = codes[name] = {"loads": loads_in_flight(kernel)}
        for figure in FIGURES:
            if (figure.file, figure.kernel) != (file, name) or architecture not in figure.architectures:
                continue
            try:
                entry.setdefault("per_element", {})[figure.name] = figure.measure(kernel)
            except ValueError as error:
                lines.append(f"{file}: {name} on {architecture} has no figure {figure.name!r}: {error}")
    return file, architecture, codes, lines


def _kernels(cubin: Path) -> dict[str, sass.Kernel]:
    kernels = sass.disassemble(cubin)
    names = _demangle("\n".join(kernel.name for kernel in kernels)).splitlines()
    return {_short(name): kernel for name, kernel in zip(names, kernels, strict=True)}


def describe(kernel: sass.Kernel) -> str:
    """Its loops, each below the one that it is in: where it is, its instructions by kind, and the loads in flight."""

    def of(blocks: set[int]) -> str:
        kinds = kernel.kinds(blocks)
        most = ", ".join(f"{kind} {count}" for kind, count in kinds.most_common(16))
        return f"{kinds.total()} instructions, {loads_in_flight(kernel, blocks)} loads in flight: {most}"

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
    """Prints loops and figures of the kernels whose names have `name` in them; of that one alone which is named so."""
    kernels = {
        other: kernel
        for cubin in cubins
        for other, kernel in _kernels(cubin).items()
        if kernel.architecture == architecture
    }
    wanted = [name] if name in kernels else [other for other in kernels if name in other]
    if not wanted:
        sys.exit(f"no kernel for {architecture} is named {name!r}, but {', '.join(sorted(kernels)) or 'there is none'}")
    for other in wanted:
        print(f"{other} on {architecture}: {describe(kernels[other])}")
        for figure in FIGURES:
            if figure.kernel == other and architecture in figure.architectures:
                print(f"  {figure.name}: {_measure(figure, kernels[other])}")


def complaints(table: Resources, now: Resources, figures: Sequence[Figure] = FIGURES) -> list[str]:
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
                    continue
                if entry["registers"] > allowed["registers"]:
                    lines.append(f"{what} takes {entry['registers']} registers, {allowed['registers']} in the table")
                if entry["vectors"] < allowed["vectors"]:
                    lines.append(f"{what} accesses {entry['vectors']} vectors, {allowed['vectors']} in the table")
                if entry["loads"] < allowed["loads"]:
                    lines.append(f"{what} has {entry['loads']} loads in flight, {allowed['loads']} in the table")
    for figure in figures:
        for architecture in figure.architectures:
            what = f"{figure.file}: {figure.kernel} on {architecture}, {figure.name},"
            built, written = (_figure(resources, figure, architecture) for resources in (now, table))
            if built is None:
                lines.append(f"{what} is not in the build")
            elif written is None:
                lines.append(f"{what} is not in the table")
            else:
                lines += [f"{what} {line}" for line in _worse(figure, built, written)]
    return lines


def _measure(figure: Figure, kernel: sass.Kernel) -> str:
    try:
        found = figure.measure(kernel)
    except ValueError as error:
        return str(error)
    return f"{found['instructions']:g} instructions {figure.unit}, {found['loads']} loads in flight"


def _figure(resources: Resources, figure: Figure, architecture: str) -> dict[str, float] | None:
    entry = resources.get(figure.file, {}).get(figure.kernel, {}).get(architecture, {})
    return entry.get("per_element", {}).get(figure.name)


def _worse(figure: Figure, built: dict[str, float], written: dict[str, float]) -> Iterator[str]:
    takes = f"takes {built['instructions']:g} instructions {figure.unit}"
    if built["instructions"] > TOLERANCE * written["instructions"]:
        yield f"{takes}, {written['instructions']:g} in the table"
    if figure.at_most is not None and built["instructions"] > figure.at_most:
        yield f"{takes}, which must be at most {figure.at_most:g}"
    has = f"has {built['loads']} loads in flight"
    if built["loads"] < written["loads"]:
        yield f"{has}, {written['loads']} in the table"
    if figure.at_least is not None and built["loads"] < figure.at_least:
        yield f"{has}, which must be at least {figure.at_least}"


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
