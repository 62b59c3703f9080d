"""The shape of the code: which way imports and includes run, and one name for an op in every layer."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import grid
from charlm import ops
from charlm.distributed import dtensor
from charlm.ops import reference

ROOT = Path(__file__).resolve().parent.parent
OPS = reference.__all__

# The modules and packages of charlm. Each imports from layers above it in this list, and from itself, only.
LAYERS = [
    {"_C", "_text", "_version", "_loading", "_buffers", "_memory", "_rules", "interrupts", "run_folder"},
    {"_text_extension"},
    {"ops", "vocabulary", "schedules", "optimizers", "batches", "environment", "sources", "run_lock", "schema"},
    {"search_space"},
    {
        "nn",
        "engine",
        "splits",
        "token_arrays",
        "distributed",
        "tensor_files",
        "config_json",
        "metrics",
        "claimed_folder",
    },
    {"token_files", "arrangement", "claimed_folder"},
    {"data"},
    {"models", "fingerprint"},
    {"evaluation", "scoring", "backends"},
    {"sampler"},
    {"trainer"},
    {"configuration"},
    {"presets", "population", "checkpoint", "plots", "tensorboard", "export"},
    {"benchmark", "training_run"},
    {"sweep"},
    {"cli"},
    {"__main__"},
]
# Where a file imports from below all the same, in a function that nothing but what it is for calls: DTensors bring
# process groups with them, which other calls do without.
DOORS = {"charlm/ops/_dtensor.py": {"distributed"}}
LAYER_OF = {module: number for number, layer in enumerate(LAYERS) for module in layer}

CXX_SUFFIXES = (".h", ".cpp", ".cu", ".cuh")


def top_level(path: Path) -> str:
    """The module or package of charlm that a file belongs to: "ops" for charlm/ops/cross_entropy.py."""
    return path.relative_to(ROOT / "charlm").parts[0].removesuffix(".py")


def imported(path: Path) -> Iterator[str]:
    """The modules and packages of charlm that a Python file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name.split(".")[1] for name in names if name.startswith("charlm."))


def includes(path: Path) -> list[str]:
    return re.findall(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', path.read_text(), re.MULTILINE)


def sources(folder: str, suffixes: tuple[str, ...]) -> list[Path]:
    return sorted(path for path in (ROOT / folder).rglob("*") if path.suffix in suffixes)


PYTHON_FILES = [
    path for path in sources("charlm", (".py",)) if path.name != "__init__.py" or path.parent.name != "charlm"
]
KERNEL_FILES = sources("csrc/kernels", CXX_SUFFIXES)


def test_every_module_has_a_layer() -> None:
    assert {top_level(path) for path in PYTHON_FILES} <= set(LAYER_OF)


@pytest.mark.parametrize("path", PYTHON_FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path: Path) -> None:
    own = top_level(path)
    for module in set(imported(path)) - DOORS.get(str(path.relative_to(ROOT)), set()):
        assert module == own or LAYER_OF[module] < LAYER_OF[own], f"{own} must not import {module}"


def test_data_and_ops_know_nothing_of_each_other() -> None:
    basics = {"_buffers", "_memory", "_rules", "_text_extension"}
    for name, others in (
        ("vocabulary", basics),
        ("sources", basics),
        ("splits", basics),
        ("token_arrays", {*basics, "vocabulary", "sources"}),
        ("token_files", {*basics, "vocabulary", "run_folder", "schema", "tensor_files"}),
        ("arrangement", {*basics, "vocabulary", "token_arrays"}),
        ("data", {*basics, "vocabulary", "sources", "splits", "token_arrays", "arrangement", "token_files"}),
    ):
        assert set(imported(ROOT / "charlm" / f"{name}.py")) <= others
    for path in sources("charlm/ops", (".py",)):
        beyond_the_door = set(imported(path)) - DOORS.get(str(path.relative_to(ROOT)), set())
        assert beyond_the_door <= {"_C", "_loading", "_version", "ops"}


def test_compiled_modules_are_loaded_by_what_explains_why_they_do_not_load() -> None:
    for module, loader in (("_C", "ops/_extension.py"), ("_text", "_text_extension.py")):
        importing = {str(path.relative_to(ROOT / "charlm")) for path in PYTHON_FILES if module in imported(path)}
        assert importing == {loader}


@pytest.mark.parametrize("path", KERNEL_FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_kernels_know_plain_memory_only(path: Path) -> None:
    for header in includes(path):
        # The standard library, the compiler's and CUDA's headers have no folder, or one of their own; nothing of
        # torch, Python, the bindings or the text module is among them.
        assert not re.match(r"(torch|ATen|c10|pybind11|Python\.h|bindings|text)\b", header), header
    text = path.read_text()
    for allocation in (r"\bnew\s+[\w:<>]+\s*[\[({]", r"\b(m|c|re)alloc\s*\(", r"std::(vector|string|unique_ptr)\b"):
        assert not re.search(allocation, text), f"kernels do not allocate: {allocation}"


def test_cpu_and_cuda_never_include_each_other() -> None:
    for device, other in (("cpu", "cuda"), ("cuda", "cpu")):
        for path in sources(f"csrc/kernels/{device}", CXX_SUFFIXES):
            assert not any(f"{other}/" in header for header in includes(path)), path


def test_bindings_do_not_depend_on_the_text_module_nor_it_on_torch() -> None:
    for path in sources("csrc/bindings", CXX_SUFFIXES):
        assert not any(header.startswith("text/") for header in includes(path)), path
    for path in sources("csrc/text", CXX_SUFFIXES):
        assert not any(re.match(r"(torch|ATen|c10|bindings|kernels)/", header) for header in includes(path)), path


def test_bindings_use_the_stable_interface_of_torch_only() -> None:
    # The last is the C interface that the stable headers themselves are made of.
    stable = ("torch/csrc/stable/", "torch/headeronly/", "torch/csrc/inductor/aoti_torch/")
    for path in sources("csrc/bindings", CXX_SUFFIXES):
        for header in includes(path):
            if header.startswith(("torch/", "ATen/", "c10/")):
                assert header.startswith(stable), f"{path}: {header}"


def test_bindings_check_allocate_and_dispatch() -> None:
    """What shares out work or multiplies is an algorithm: its place is csrc/kernels, with namespace host for torch."""
    algorithm = re.compile(r"parallel_for|select<|get_num_threads|c_shim_cpu|c_shim_cuda|_(mm|addmm|bmm)_out")
    for path in sources("csrc/bindings", CXX_SUFFIXES):
        found = set(algorithm.findall(path.read_text()))
        assert not found or path.name in ("host_library.cpp", "training.h"), f"{path} has {found}"
    for op in OPS:
        for path in (ROOT / "csrc/bindings" / f"{op}.cpp", ROOT / "csrc/bindings/cuda" / f"{op}.cpp"):
            assert len(path.read_text().splitlines()) <= 200, f"{path} does more than check, allocate and dispatch"


@pytest.mark.parametrize("op", OPS)
def test_one_name_runs_through_every_layer(op: str) -> None:
    for path in (f"charlm/ops/{op}.py", f"csrc/bindings/{op}.cpp", f"tests/test_{op}.py"):
        assert (ROOT / path).is_file(), f"{path} is missing"
    assert any(row.op == op for row in grid.ROWS), f"benchmarks/grid.py has no row of {op}"
    assert callable(getattr(ops, op))
    assert callable(getattr(reference, op))
    assert callable(getattr(dtensor, op))
    schemas = (ROOT / "csrc/bindings/schemas.cpp").read_text()
    for direction in ("forward", "backward"):
        assert f'"{op}_{direction}(' in schemas


def test_no_op_is_left_out() -> None:
    public = {path.stem for path in sources("charlm/ops", (".py",)) if not path.stem.startswith("_")} - {"reference"}
    assert public == set(OPS) == {name for name in ops.__all__ if inspect.isfunction(getattr(ops, name))}


def test_every_kernel_has_one_name_on_all_devices() -> None:
    """Some serve several ops, as cross_entropy does linear_cross_entropy, or the engine."""
    headers, kernels = ({path.stem for path in (ROOT / "csrc/kernels").glob(glob)} for glob in ("*.h", "cpu/*.cpp"))
    assert kernels <= headers
    assert {path.stem for path in sources("csrc/kernels/cuda", (".cu",))} <= headers


def test_adding_an_op_edits_no_build_file() -> None:
    others = [ROOT / name for name in ("setup.py", "pyproject.toml", "Makefile", ".github/workflows/ci.yml")]
    for path in [*sources("building", (".py",)), *others]:
        text = path.read_text()
        assert not any(op in text for op in OPS), f"{path} names an op"


def test_every_package_is_installed() -> None:
    declared = re.search(r"^packages = \[([^]]*)\]$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert declared is not None
    packages = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "charlm").rglob("__init__.py")}
    assert set(re.findall(r'"([\w.]+)"', declared[1])) == packages
