"""The CUDA half of the build, as far as it goes without a GPU: what it says, and the table of kernels."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from building.cuda import find_nvcc
from charlm import _C
from scripts import cuda_resources, sass
from scripts.cuda_figures import FIGURES, Figure
from scripts.cuda_resources import Entry, Resources

ROOT = Path(__file__).resolve().parent.parent

LOG = """\
ptxas info    : Compiling entry function 'void charlm::cuda::(anonymous namespace)::f<float, true>(int)' for 'sm_90'
ptxas info    : Function properties for f
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 48 registers, used 1 barriers
ptxas info    : Compiling entry function 'void charlm::cuda::g(int*)' for 'sm_80'
    8 bytes stack frame, 6 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 64 registers
"""


def on_cuda(op: torch._ops.OpOverload, *arguments: object) -> object:
    """Calls what is registered for CUDA tensors, with tensors of the CPU."""
    return op.redispatch(torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA), *arguments)


def test_an_op_on_a_cuda_tensor_says_what_to_do_where_it_has_no_kernels() -> None:
    """With kernels, it refuses the CPU tensors that this test has."""
    built = _C.build_info()["cuda"] is not None
    message = "input must be on a CUDA device, got cpu" if built else "built without kernels for GPUs.*nvcc"
    arguments = (torch.randn(4, 27), torch.zeros(4, dtype=torch.int64), None, None, -100, 1, 0.0, 0.0, 0.0, False)
    with pytest.raises(ValueError if built else RuntimeError, match=message):
        on_cuda(torch.ops.charlm.cross_entropy_forward.default, *arguments)


def test_why_there_are_no_kernels_where_cuda_is_not_built() -> None:
    """Where it is, what is said is about a driver, or a GPU."""
    why = _C.why_no_kernels(0)
    if _C.build_info()["cuda"] is None:
        assert why is not None
        assert re.search(r"^charlm was built without kernels for GPUs.* nvcc is on the PATH; backend 'eager'", why)
    elif not torch.cuda.is_available():
        assert why is not None
        assert re.search(r"^(charlm's kernels cannot run|CUDA cannot load charlm's kernels) on cuda:0: ", why)


@pytest.mark.parametrize(
    ("device", "error"), [(-1, ValueError), (2**31, ValueError), (2**64, OverflowError), ("0", TypeError)]
)
def test_what_is_no_index_of_a_device_is_refused(device: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        _C.why_no_kernels(device)


def test_every_op_says_what_to_do_without_kernels() -> None:
    source = (ROOT / "csrc" / "bindings" / "without_cuda.cpp").read_text()
    registered = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("charlm::")}
    for name in registered - {"charlm::multiply_add", "charlm::scale_gradients_"}:  # Python's
        assert f'"{name.removeprefix("charlm::")}"' in source


def run_setup(**environment: str) -> subprocess.CompletedProcess[str]:
    """setup.py up to the point where it would build."""
    command = [sys.executable, "setup.py", "--version"]
    return subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True)


def test_cuda_that_is_asked_for_but_missing_is_an_error() -> None:
    result = run_setup(CHARLM_CUDA="1", NVCC="nvcc-that-is-not-there")
    assert result.returncode == 1
    assert "CHARLM_CUDA=1 asks for kernels for GPUs, but there is no nvcc-that-is-not-there" in result.stderr
    assert "CHARLM_CUDA=0" in result.stderr
    assert run_setup(CHARLM_CUDA="auto", NVCC="nvcc-that-is-not-there").returncode == 0


@pytest.mark.parametrize(
    ("asked", "cuda", "is_built"),
    [("auto", None, False), ("auto", "13.0", True), ("", "13.0", True), ("1", None, True), ("0", "13.0", False)],
)
def test_cuda_is_built_where_it_can_be_used_or_is_asked_for(
    asked: str, cuda: str | None, is_built: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A torch for the CPU, or for AMD's GPUs, has no version of CUDA."""
    monkeypatch.setenv("CHARLM_CUDA", asked)
    monkeypatch.setenv("NVCC", f"{sys.executable} -I")
    monkeypatch.setattr(torch.version, "cuda", cuda)
    assert find_nvcc() == ([sys.executable, "-I"] if is_built else [])


def test_a_word_that_is_not_known_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHARLM_CUDA", "yes")
    with pytest.raises(SystemExit, match="CHARLM_CUDA must be 0, 1 or auto, got 'yes'"):
        find_nvcc()


def test_what_the_assembler_says_is_read() -> None:
    assert cuda_resources.parse(LOG) == {
        "f<float, true>": {"sm_90": {"registers": 48, "spilled": 0}},
        "g": {"sm_80": {"registers": 64, "spilled": 14}},
    }


def test_accesses_to_vectors_are_counted() -> None:
    ptx = """
.visible .entry _Z1fPi(
	ld.global.nc.v4.u32 {%r1, %r2, %r3, %r4}, [%rd1];
	st.shared.v2.f64 [%r5], {%fd1, %fd2};
	st.global.u32 [%rd2], %r1;
}
.visible .entry _Z1gv(
	ld.shared.f32 %f1, [%r1];
}
"""
    assert cuda_resources.vectors(ptx) == {"_Z1fPi": 2, "_Z1gv": 0}


def test_spills_growth_lost_vectors_and_loads_and_new_kernels_are_complained_about() -> None:
    now: Resources = {"op": cuda_resources.parse(LOG)}
    for kernel in now["op"].values():
        for entry in kernel.values():
            entry.update(vectors=4, loads=2)
    assert cuda_resources.complaints(now, now, []) == ["op: g on sm_80 spills 14 bytes"]
    table: Resources = {"op": {"f<float, true>": {"sm_90": {"registers": 47, "spilled": 0, "vectors": 5, "loads": 3}}}}
    assert cuda_resources.complaints(table, now, []) == [
        "op: f<float, true> on sm_90 takes 48 registers, 47 in the table",
        "op: f<float, true> on sm_90 accesses 4 vectors, 5 in the table",
        "op: f<float, true> on sm_90 has 2 loads in flight, 3 in the table",
        "op: g on sm_80 spills 14 bytes",
        "op: g on sm_80 is not in the table",
    ]


FIGURE = Figure("op", "f", "forward", "an element", units=8)


def with_figure(instructions: float, loads: int) -> Resources:
    entry: Entry = {"registers": 48, "spilled": 0, "vectors": 5, "loads": 8}
    entry["per_element"] = {"forward": {"instructions": instructions, "loads": loads}}
    return {"op": {"f": {"sm_90": entry}}}


@pytest.mark.parametrize(
    ("instructions", "loads", "bounds", "expected"),
    [
        (6.4, 4, {"at_most": 7, "at_least": 4}, []),
        (6.5, 5, {}, []),  # within 2 %
        (6.6, 4, {}, ["takes 6.6 instructions an element, 6.4 in the table"]),
        (6.4, 3, {}, ["has 3 loads in flight, 4 in the table"]),
        (6.4, 4, {"at_most": 6}, ["takes 6.4 instructions an element, which must be at most 6"]),
        (6.4, 4, {"at_least": 5}, ["has 4 loads in flight, which must be at least 5"]),
    ],
)
def test_a_figure_that_has_become_worse_or_passes_its_bound_is_complained_about(
    instructions: float, loads: int, bounds: dict[str, float], expected: list[str]
) -> None:
    figures = [dataclasses.replace(FIGURE, **bounds)]
    found = cuda_resources.complaints(with_figure(6.4, 4), with_figure(instructions, loads), figures)
    assert found == [f"op: f on sm_90, forward, {line}" for line in expected]


def test_a_figure_that_is_nowhere_is_complained_about() -> None:
    found = with_figure(6.4, 4)
    assert cuda_resources.complaints(found, {}, [FIGURE]) == ["op: f on sm_90, forward, is not in the build"]
    other = dataclasses.replace(FIGURE, name="backward")
    table = with_figure(6.4, 4)
    found["op"]["f"]["sm_90"]["per_element"]["backward"] = {"instructions": 9.5, "loads": 4}
    assert cuda_resources.complaints(table, found, [other]) == ["op: f on sm_90, backward, is not in the table"]


def test_the_figures_of_the_table_are_those_that_are_declared_and_keep_their_bounds() -> None:
    table: Resources = json.loads(cuda_resources.TABLE.read_text())
    assert cuda_resources.complaints(table, table) == []
    declared = [
        (figure.file, figure.kernel, where, figure.name) for figure in FIGURES for where in figure.architectures
    ]
    assert len(set(declared)) == len(declared)
    assert set(declared) == {
        (file, kernel, architecture, name)
        for file, kernels in table.items()
        for kernel, architectures in kernels.items()
        for architecture, entry in architectures.items()
        for name in entry.get("per_element", {})
    }


def test_a_build_whose_machine_code_is_not_there_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_resources, "BUILD", tmp_path)
    with pytest.raises(SystemExit, match="has no output of the assembler: build with nvcc first"):
        cuda_resources.measured()
    (tmp_path / "op.ptxas").write_text(LOG)
    with pytest.raises(SystemExit, match=r"op has no machine code.* Delete .*op\.o, .* CCACHE_DISABLE=1"):
        cuda_resources.measured()


COPY = """\
	.target	sm_90
	.section	.text._Z4copyPf,"ax",@progbits
.L_x_1:
        /*0000*/                   LDG.E R4, desc[UR4][R2.64] ;
        /*0010*/                   STG.E desc[UR4][R6.64], R4 ;
        /*0020*/               @P0 BRA `(.L_x_1) ;
        /*0030*/                   EXIT ;
"""


def test_the_loops_of_a_kernel_are_shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """By its name or a part of it, with its figures."""
    figures = [Figure("op", "copy", "forward", "an element", units=2, loop="LDG")]
    figures.append(Figure("op", "copy", "backward", "an element", units=2, loop="STS"))
    monkeypatch.setattr(cuda_resources, "FIGURES", figures)
    monkeypatch.setattr(sass, "disassemble", lambda cubin: sass.parse(COPY))
    for name in ("copy", "cop"):
        cuda_resources.main(["--show", name, "--cubin", "x.cubin"])
        assert capsys.readouterr().out.splitlines() == [
            "copy on sm_90: 4 instructions, 1 loads in flight: LDG 1, STG 1, BRA 1, EXIT 1",
            "  loop 0000-0020, at most 3 a trip: 3 instructions, 1 loads in flight: LDG 1, STG 1, BRA 1",
            "  forward: 1.5 instructions an element, 1 loads in flight",
            "  backward: no way leads through a loop with STS",
        ]
    with pytest.raises(SystemExit, match="no kernel for sm_90 is named 'move', but copy"):
        cuda_resources.main(["--show", "move", "--cubin", "x.cubin"])
    with pytest.raises(SystemExit, match="no kernel for sm_80 is named 'copy', but there is none"):
        cuda_resources.main(["--show", "copy", "--cubin", "x.cubin", "--architecture", "sm_80"])


def test_no_kernel_of_the_table_spills() -> None:
    table = json.loads(cuda_resources.TABLE.read_text())
    entries = [entry for kernels in table.values() for kernel in kernels.values() for entry in kernel.values()]
    assert entries
    assert all(entry["spilled"] == 0 for entry in entries)


def test_every_cuda_source_is_in_the_table() -> None:
    table = json.loads(cuda_resources.TABLE.read_text())
    sources = (ROOT / "csrc" / "kernels" / "cuda").glob("*.cu")
    assert set(table) == {path.stem for path in sources if has_kernels(path)}


def has_kernels(path: Path) -> bool:
    text = path.read_text()
    headers = re.findall(r'^#include "(kernels/cuda/\w+\.cuh)"', text, re.MULTILINE)
    return "__global__" in text or any(has_kernels(ROOT / "csrc" / header) for header in headers)
