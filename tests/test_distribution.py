"""What is given away: the source distribution, and what is compiled from it where there is nvcc and where there is not.

Compilers are stand-ins here, which write down what they are asked for. Continuous integration builds from it for real.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path, PurePath

import pytest

from building import instruction_sets
from charlm._version import OLDEST_TORCH, __version__

ROOT = Path(__file__).resolve().parent.parent

# Compiles and links nothing; what it is asked about itself, the compiler behind it answers.
STANDIN = f"""#!{sys.executable} -IS
import json, os, sys, tempfile
arguments = sys.argv[1:]
if "--dryrun" in arguments:
    print("#$ TOP=" + os.environ["STANDIN_TOOLKIT"], file=sys.stderr)
elif "-c" in arguments or "-shared" in arguments:
    with tempfile.NamedTemporaryFile("w", dir=os.environ["STANDIN_LOG"], suffix=".json", delete=False) as log:
        json.dump([os.path.basename(sys.argv[0]), *arguments], log)
    output = arguments[arguments.index("-o") + 1]
    open(output, "w").close()
    if "-MF" in arguments:
        open(arguments[arguments.index("-MF") + 1], "w").write(output + ":\\n")
else:
    os.execvp("g++", ["g++", *arguments])
"""


def sources() -> set[str]:
    """All files of the project: those that git tracks, or those that a source distribution lists."""
    if (ROOT / ".git").exists():
        command = ["git", "-C", str(ROOT), "ls-files"]
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return {name for name in listed.splitlines() if (ROOT / name).is_file()}
    listed = (ROOT / "charlm_ops.egg-info" / "SOURCES.txt").read_text()
    return {name for name in listed.splitlines() if not is_metadata(name)}


def is_metadata(name: str) -> bool:
    return "egg-info/" in name or name in ("PKG-INFO", "setup.cfg")


def run_hook(hook: str, folder: Path, out: Path, **environment: str) -> Path:
    """What pip does with the sources in a folder, without isolation: one of "build_sdist" and "build_wheel"."""
    script = f"from building import backend; print(backend.{hook}({str(out)!r}))"
    command = [sys.executable, "-c", script]
    # The folder's own packages, not those of the checkout.
    environment = {**os.environ, "PYTHONPATH": "", **environment}
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return out / result.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's files, and what a build leaves among them."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in sources():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    for left in (
        "charlm/_C.abi3.so",
        "tests/__pycache__/cases.pyc",
        "build/objects/text/csrc/text/codec.o",
        "dist/old.whl",
    ):
        (folder / left).parent.mkdir(parents=True, exist_ok=True)
        (folder / left).touch()
    return folder


@pytest.fixture(scope="module")
def sdist(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_hook("build_sdist", checkout, tmp_path_factory.mktemp("sdist"), NVCC="nvcc-that-is-not-there")


@pytest.fixture
def unpacked(sdist: Path, tmp_path: Path) -> Path:
    with tarfile.open(sdist) as archive:
        if hasattr(tarfile, "data_filter"):
            archive.extraction_filter = tarfile.data_filter
        archive.extractall(tmp_path)
    return tmp_path / f"charlm_ops-{__version__}"


@pytest.fixture
def standins(tmp_path: Path) -> dict[str, str]:
    """An environment in which nothing is compiled: CXX and NVCC write down what they are asked for."""
    log, toolkit = tmp_path / "log", tmp_path / "toolkit"
    log.mkdir()
    (toolkit / "lib64").mkdir(parents=True)
    (toolkit / "lib64" / "libcudart_static.a").touch()
    for name in ("g++-standin", "nvcc-standin"):
        (tmp_path / name).write_text(STANDIN)
        (tmp_path / name).chmod(0o755)
    return {
        "CXX": str(tmp_path / "g++-standin"),
        "NVCC": str(tmp_path / "nvcc-standin"),
        "STANDIN_LOG": str(log),
        "STANDIN_TOOLKIT": str(toolkit),
    }


def compiled(folder: Path, standins: dict[str, str]) -> list[tuple[str, str]]:
    """Who compiled which source."""
    found = []
    for path in Path(standins["STANDIN_LOG"]).iterdir():
        program, *arguments = json.loads(path.read_text())
        if "-c" in arguments:
            (source,) = [argument for argument in arguments if argument.endswith((".cpp", ".cu"))]
            found.append((program, os.path.relpath(folder / source, folder)))
    return sorted(found)


def test_the_source_distribution_has_what_a_clone_has(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames() if archive.getmember(name).isfile()}
    assert {name for name in names if not is_metadata(name)} == sources()


def test_an_index_is_given_no_links_to_files_that_it_does_not_have(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        (metadata,) = (member for member in archive.getmembers() if re.fullmatch(r"[^/]+/PKG-INFO", member.name))
        content = archive.extractfile(metadata)
        assert content is not None
        text = content.read().decode()
    assert "\nDescription-Content-Type: text/markdown\n" in text
    assert "Ops (`docs/ops.md`)" in text
    assert not re.search(r"\]\((?!https?:|#)", text)


def test_the_source_distribution_is_the_same_where_there_is_nvcc(
    sdist: Path, checkout: Path, standins: dict[str, str], tmp_path: Path
) -> None:
    other = run_hook("build_sdist", checkout, tmp_path, CHARLM_CUDA="1", **standins)
    with tarfile.open(sdist) as one, tarfile.open(other) as two:
        assert one.getnames() == two.getnames()


@pytest.mark.parametrize("cuda", ["0", "1"])
def test_a_build_from_the_source_distribution_compiles_what_belongs_to_it(
    cuda: str, unpacked: Path, standins: dict[str, str], tmp_path: Path
) -> None:
    wheel = run_hook("build_wheel", unpacked, tmp_path, CHARLM_CUDA=cuda, **standins)
    found = compiled(unpacked, standins)

    def files(pattern: str) -> set[str]:
        return {name for name in sources() if PurePath(name).match(f"csrc/{pattern}")}

    others = files("bindings/*.cpp") | files("kernels/*.cpp") | files("text/*.cpp")
    if cuda == "1":
        others = others - {"csrc/bindings/without_cuda.cpp"} | files("bindings/cuda/*.cpp")
    kernels = files("kernels/cpu/*.cpp")
    assert {name for program, name in found if program == "g++-standin"} == others | kernels
    assert {name for program, name in found if program == "nvcc-standin"} == (
        files("kernels/cuda/*.cu") if cuda == "1" else set()
    )
    for name in kernels:
        assert len([entry for entry in found if entry[1] == name]) == len(instruction_sets.FLAGS)

    assert wheel.name.startswith(f"charlm_ops-{__version__}-cp")
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if name.startswith("charlm/")}
    python = {name for name in sources() if re.match(r"charlm/.*\.(py|pyi)$", name)}
    templates = {name for name in sources() if name.startswith("charlm/export/templates/")}
    others = {"charlm/_C.abi3.so", "charlm/names.txt", "charlm/names.md", "charlm/py.typed"}
    assert templates <= packed
    (text,) = packed - python - templates - others
    assert re.fullmatch(r"charlm/_text\..*\.so", text)


def test_a_build_that_stays_on_this_machine_has_its_instruction_set_alone(
    unpacked: Path, standins: dict[str, str], tmp_path: Path
) -> None:
    """But for the kernels of another that tiny calls need. A second build compiles what has changed since the first."""
    run_hook("build_editable", unpacked, tmp_path, CHARLM_CUDA="0", CHARLM_ISA="auto", **standins)
    found = [name for _, name in compiled(unpacked, standins)]
    narrow = instruction_sets.narrow_sources(ROOT / "csrc" / "kernels")
    twice = {name for name in found if found.count(name) == 2}
    assert twice == {str(Path("csrc/kernels/cpu") / Path(name).name) for name in narrow}
    assert max(map(found.count, found)) == 2
    assert "csrc/kernels/isa.cpp" in found
    assert (unpacked / "charlm" / "_C.abi3.so").is_file()

    (unpacked / "csrc" / "text" / "codec.cpp").touch()
    run_hook("build_editable", unpacked, tmp_path, CHARLM_CUDA="0", CHARLM_ISA="auto", **standins)
    again = [name for _, name in compiled(unpacked, standins)]
    assert sorted(again) == sorted([*found, "csrc/text/codec.cpp"])


def test_no_text_installs_the_project_of_that_name_on_an_index() -> None:
    """`charlm` on PyPI is somebody else's: what pip is given is a folder, or charlm-ops."""
    for name in sources() - {str(Path(__file__).relative_to(ROOT))}:
        if name.endswith((".py", ".md", ".toml", ".yml", ".cpp", ".h", "Makefile", "run")):
            text = (ROOT / name).read_text()
            assert not re.search(r"\bcharlm\[", text), name
            assert not re.search(r"\bpip[\w ]* (install|download|wheel)\b.*[\s\"']charlm(?![-\w./])", text), name


def test_the_oldest_torch_is_the_same_everywhere() -> None:
    oldest = ".".join(map(str, OLDEST_TORCH))
    assert f'"torch>={oldest}"' in (ROOT / "pyproject.toml").read_text()
    assert f"torch {oldest} or newer" in (ROOT / "README.md").read_text()
