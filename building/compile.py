"""The command that compiles and links the extension modules: all files at once, by ninja.

ninja keeps every core busy until nothing is left, and compiles again only what is out of date: whose sources or headers
have changed, or whose command. What it makes stays in build/objects, where the next build finds it, also one by pip.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from setuptools import Extension
from setuptools.command.build_ext import build_ext

# `-MD` tells ninja which headers a file has read. The assembler's report on registers, the intermediate code that it
# got and the machine code that it made are what scripts/cuda_resources.py reads.
_RULES = """\
rule compile
  command = $compiler $flags -MD -MF $out.d -c $in -o $out
  description = compile $out
  depfile = $out.d
  deps = gcc
rule precompile
  command = $compiler $flags -MD -MF $out.d -x c++-header $in -o $out
  description = compile $out
  depfile = $out.d
  deps = gcc
rule nvcc
  command = rm -rf $kept && mkdir -p $kept && $
    $compiler $flags -MD -MF $out.d --keep --keep-dir $kept -c $in -o $out 2> $kept.ptxas $
    || { cat $kept.ptxas; exit 1; } && find $kept -type f ! -name '*.ptx' ! -name '*.cubin' -delete
  description = compile $out
  depfile = $out.d
  deps = gcc
"""


@dataclass(frozen=True)
class Objects:
    """What is compiled with the same flags.

    A header that all of the sources include is read once for all of them, where `precompiled` names it.
    """

    name: str
    sources: list[str]
    flags: list[str]
    precompiled: str | None = None
    nvcc: list[str] = field(default_factory=list)


def module(extension: Extension, objects: list[Objects]) -> Extension:
    """An extension module made of objects that differ in their flags; what it includes and links is the extension's."""
    extension.sources = [source for group in objects for source in group.sources]
    extension.groups = objects
    return extension


class BuildModules(build_ext):
    def build_extensions(self) -> None:
        folder = Path(self.get_finalized_command("build").build_base) / "objects"
        folder.mkdir(parents=True, exist_ok=True)
        plan = folder / "build.ninja"
        edges = [self._edges(folder, module, group) for module in self.extensions for group in module.groups]
        plan.write_text(f"builddir = {folder}\n{_RULES}{''.join(edges)}")
        jobs = ["-j", os.environ["MAX_JOBS"]] if os.environ.get("MAX_JOBS") else []
        # Without flushing, what has been printed before appears after what ninja prints.
        sys.stdout.flush()
        result = subprocess.run(["ninja", *jobs, "-f", str(plan)])
        if result.returncode != 0:
            sys.exit(result.returncode)
        for module in self.extensions:
            objects = [str(_object(folder, group, source)) for group in module.groups for source in group.sources]
            self.compiler.link_shared_object(
                objects,
                self.get_ext_fullpath(module.name),
                libraries=module.libraries,
                library_dirs=module.library_dirs,
                extra_postargs=module.extra_link_args,
                target_lang="c++",
            )

    def _edges(self, folder: Path, module: Extension, group: Objects) -> str:
        """The lines of a plan for ninja that make a group of objects."""
        include_dirs = [*module.include_dirs, *self.include_dirs]
        compiler = group.nvcc or [*self.compiler.compiler_so_cxx, *(f"-I{path}" for path in include_dirs)]
        flags, needs, lines = group.flags, "", ""
        if group.precompiled is not None:
            header = folder / group.name / "precompiled.h"
            header.parent.mkdir(exist_ok=True)
            _write(header, f'#include "{group.precompiled}"\n')
            lines += _edge("precompile", header, Path(f"{header}.gch"), compiler=compiler, flags=flags)
            flags, needs = [*flags, "-include", str(header)], f" | {header}.gch"
        for source in group.sources:
            output = _object(folder, group, source)
            variables = {"compiler": compiler, "flags": flags}
            if group.nvcc:
                variables["kept"] = [str(output.with_suffix(""))]
            lines += _edge("nvcc" if group.nvcc else "compile", Path(source), output, needs, **variables)
        return lines


def _object(folder: Path, group: Objects, source: str) -> Path:
    return folder / group.name / Path(source).with_suffix(".o")


def _edge(rule: str, source: Path, output: Path, needs: str = "", **variables: list[str]) -> str:
    lines = [f"build {output}: {rule} {source}{needs}"]
    lines += [f"  {name} = {shlex.join(words).replace('$', '$$')}" for name, words in variables.items()]
    return "\n".join(lines) + "\n"


def _write(path: Path, text: str) -> None:
    """Leaves a file alone that has that text already: what is made of it is then not out of date."""
    if not path.exists() or path.read_text() != text:
        path.write_text(text)
