"""The instruction sets that the CPU kernels are compiled for."""

from __future__ import annotations

import itertools
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

# By the names that csrc/kernels/isa.h has for them.
FLAGS = (
    {
        "x86_64": ["-march=x86-64"],
        "x86_64_v3": ["-march=x86-64-v3"],
        "x86_64_v4": ["-march=x86-64-v4"],
        "x86_64_v4_bf16": ["-march=x86-64-v4", "-mavx512bf16"],
        "x86_64_v4_amx": ["-march=x86-64-v4", "-mavx512bf16", "-mamx-tile", "-mamx-bf16"],
    }
    if platform.machine() in ("x86_64", "AMD64")
    else {"generic": []}
)
# csrc/kernels/isa.h's CHARLM_NARROW_SET, of which a build for another set has what tiny calls need.
NARROW = next(iter(FLAGS))

# Instructions written out in what AVX-512 has, for tests where the processor lacks them: csrc/kernels/cpu/pairs.h and
# tiles.h. By the flag of the compiler that has them: what the processor calls them, and what stands for them.
_EMULATED = {
    "-mavx512bf16": ("avx512_bf16", ["-DCHARLM_EMULATE_PAIRS"]),
    "-mamx-tile": ("amx_tile", ["-DCHARLM_EMULATE_TILES"]),
    "-mamx-bf16": ("amx_bf16", []),
}

_PROBE = """
#include <cstdio>
#include "kernels/isa.cpp"
int main() { std::puts(charlm::cpu::instruction_set_name(charlm::cpu::instruction_set())); }
"""


def wanted(stays_here: bool, include: str) -> dict[str, list[str]]:
    """Those of FLAGS to compile for: a build that runs on this machine alone has the best that it supports.

    CHARLM_ISA=all asks for all of them, and =emulated for all of them to run here.

    The compiler must have been looked for; `include` is the folder of the C++ sources.
    """
    asked = os.environ.get("CHARLM_ISA") or "auto"
    if asked not in ("all", "auto", "emulated"):
        sys.exit(f"CHARLM_ISA must be all, auto or emulated, got {asked!r}")
    if asked in ("all", "emulated") or not stays_here or len(FLAGS) == 1:
        return FLAGS
    name = _best(include)
    return {name: FLAGS[name]} if name in FLAGS else FLAGS


def _best(include: str) -> str:
    """What the kernels themselves would choose among all; nothing where what is compiled does not run here."""
    with tempfile.TemporaryDirectory() as folder:
        source, program = Path(folder) / "probe.cpp", Path(folder) / "probe"
        source.write_text(_PROBE)
        compiler = [*shlex.split(os.environ["CXX"]), "-std=c++20", f"-I{include}", str(source), "-o", str(program)]
        try:
            subprocess.run(compiler, capture_output=True, check=True)
            return subprocess.run([program], capture_output=True, check=True, text=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return ""


def flags(name: str) -> list[str]:
    """Those to compile the kernels with for a set."""
    return emulated_flags(name) if _emulates() else FLAGS[name]


def emulated_flags(name: str) -> list[str]:
    """The same, with what this processor lacks emulated where it can be."""
    lacking = _lacking()
    return [own for flag in FLAGS[name] for own in lacking.get(flag, [flag])]


def emulation() -> list[str]:
    """The flags for what looks at the processor where sets are to be emulated: where that is asked for."""
    return list(itertools.chain(*_lacking().values())) if _emulates() else []


def _emulates() -> bool:
    return os.environ.get("CHARLM_ISA") == "emulated" and len(FLAGS) > 1


def _lacking() -> dict[str, list[str]]:
    """What stands for the flags of the compiler whose instructions this processor lacks."""
    has = set(Path("/proc/cpuinfo").read_text().split())
    return {flag: instead for flag, (instruction, instead) in _EMULATED.items() if instruction not in has}


def narrow_sources(kernels: Path) -> list[str]:
    """Of the folder csrc/kernels, what NARROW is to have in every build: what a header declares so."""
    declared = [path for path in sorted(kernels.glob("*.h")) if "CHARLM_DECLARE_NARROW_KERNELS(" in path.read_text()]
    return [str(kernels / "cpu" / f"{path.stem}.cpp") for path in declared if path.name != "isa.h"]
