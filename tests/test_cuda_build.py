"""The CUDA half of the build, as far as it goes without a GPU: what it says, and the table of kernels."""

from __future__ import annotations

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
from scripts import cuda_resources

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
    arguments = (torch.randn(4, 27), torch.zeros(4, dtype=torch.int64), None, -100, 1, 0.0, 0.0, 0.0, False)
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


def test_spills_growth_lost_vectors_and_new_kernels_are_complained_about() -> None:
    now = {"op": cuda_resources.parse(LOG)}
    for kernel in now["op"].values():
        for entry in kernel.values():
            entry["vectors"] = 4
    assert cuda_resources.complaints(now, now) == ["op: g on sm_80 spills 14 bytes"]
    table = {"op": {"f<float, true>": {"sm_90": {"registers": 47, "spilled": 0, "vectors": 5}}}}
    assert cuda_resources.complaints(table, now) == [
        "op: f<float, true> on sm_90 takes 48 registers, 47 in the table",
        "op: f<float, true> on sm_90 accesses 4 vectors, 5 in the table",
        "op: g on sm_80 spills 14 bytes",
        "op: g on sm_80 is not in the table",
    ]


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
