"""Every command and every Python snippet of the README and of the pages in docs, at tiny size; and their links."""

from __future__ import annotations

import inspect
import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import shorter, without_times

import charlm
from building import prerequisites
from charlm.cli import main
from charlm.cli.bench import duration
from scripts import draw_training

# What the commands on the pages start; each has a test here.
PROGRAMS = {"charlm", "make", "pip", "torchrun", "bash", "cc", "./names"}

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Page:
    path: Path

    @property
    def name(self) -> str:
        return str(self.path.relative_to(ROOT))

    @property
    def text(self) -> str:
        return self.path.read_text()

    @property
    def prose(self) -> str:
        """The text without its blocks of code."""
        return re.sub(r"^```.*?^```$", "", self.text, flags=re.MULTILINE | re.DOTALL)

    def blocks(self, language: str) -> list[str]:
        return re.findall(rf"^```{language}\n(.*?)^```$", self.text, re.MULTILINE | re.DOTALL)

    def commands(self, program: str) -> list[tuple[list[str], str]]:
        """The arguments of every command `$ program ...`, and the output that the page shows for it."""
        found = []
        for block in self.blocks("console"):
            for command, output in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE):
                name, *arguments = shlex.split(command, comments=True)
                assert name in PROGRAMS, f"{self.name}: {command}"
                if name == program:
                    found.append((arguments, output))
        return found

    def anchors(self) -> set[str]:
        """What `#...` may name: the headings, as GitHub names them."""
        headings = re.findall(r"^#+ (.*)$", self.prose, re.MULTILINE)
        return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


README = Page(ROOT / "README.md")
DOCS = {path.stem: Page(path) for path in sorted((ROOT / "docs").glob("*.md"))}
# The blocks of a lesson continue each other, as the cells of a notebook do: tests/test_notebooks.py runs them.
LESSONS = {path.stem: Page(path) for path in sorted((ROOT / "docs" / "learn").glob("*.md"))}
PAGES = [README, *DOCS.values(), *LESSONS.values()]
# tests/test_toy_op.py compiles and runs the blocks of that one.
OPS = sorted(name for name in charlm.ops.__all__ if inspect.isfunction(getattr(charlm.ops, name)))
SNIPPETS = [
    (page, code) for page in (README, *DOCS.values()) if page is not DOCS["toy_op"] for code in page.blocks("python")
]


def commands(program: str) -> list[tuple[list[str], str]]:
    found = [command for page in PAGES for command in page.commands(program)]
    assert found
    return found


def pages_with(program: str) -> list[Any]:
    return [pytest.param(page, id=page.name) for page in PAGES if page.commands(program)]


def shape(text: str) -> str:
    """A text with all numbers and names that a shorter training changes taken out."""
    return re.sub(r"\d[\d,.]*(e-?\d+)?", "#", text)


@pytest.fixture
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    names = charlm.data.EMBEDDED_NAMES.read_text().splitlines()
    Path("names.txt").write_text("\n".join(names[::100]) + "\n")
    return tmp_path


@pytest.mark.parametrize("page", pages_with("charlm"))
def test_every_charlm_command_works(page: Page, working_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, output in page.commands("charlm"):
        quick = [*arguments, "--quiet"] if "count-bigram" in arguments else shorter(*arguments)
        assert main(quick) == 0, arguments
        printed = capsys.readouterr().out
        if output and arguments[0] == "sample":
            # Other names, as the run is shorter, but as many.
            assert printed.count("\n") == output.count("\n")
        elif output:
            assert [shape(line).split() for line in printed.splitlines()] == [
                shape(line).split() for line in output.splitlines()
            ]


def test_what_does_not_depend_on_training_is_shown_exactly(
    working_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = {shlex.join(arguments): output for arguments, output in commands("charlm")}
    count, evaluate = "train --model count-bigram --smoothing 1 --out runs/counts", "eval runs/counts --json"
    assert main(count.split()) == 0
    assert without_times(capsys.readouterr().out) == without_times(shown[count])
    assert main(evaluate.split()) == 0
    losses, shown_losses = (json.loads(text) for text in (capsys.readouterr().out, shown[evaluate]))
    assert losses == {split: pytest.approx(values) for split, values in shown_losses.items()}


def test_what_is_shown_twice_is_the_same() -> None:
    shown: dict[str, set[str]] = {}
    for arguments, output in commands("charlm"):
        shown.setdefault(shlex.join(arguments), set()).add(output)
    assert all(len(outputs) == 1 for outputs in shown.values()), shown


def test_what_torchrun_starts_trains(working_folder: Path) -> None:
    """In one process; tests/test_distributed.py starts two, by the same launcher."""
    for arguments, _ in commands("torchrun"):
        end = arguments.index("charlm") + 1
        assert arguments[:end] == ["--nproc-per-node", "2", "-m", "charlm"]
        assert main(shorter(*arguments[end:])) == 0


def test_the_program_that_is_exported_compiles_and_runs(working_folder: Path) -> None:
    for arguments, _ in DOCS["export"].commands("charlm"):
        if arguments[0] in ("train", "export"):
            assert main(shorter(*arguments)) == 0
    for arguments, _ in commands("cc"):
        subprocess.run(["cc", *arguments], check=True)
    for arguments, output in commands("./names"):
        printed = subprocess.run(["./names", *arguments], check=True, capture_output=True, text=True).stdout
        assert printed.count("\n") == output.count("\n")


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for arguments, _ in commands("make"):
        for argument in arguments:
            pattern = argument.replace("=", r" \?= ").split("=")[0] + "=" if "=" in argument else f"{argument}:"
            assert re.search(rf"^{pattern}", makefile, re.MULTILINE), argument


def test_the_script_that_bash_runs_is_made() -> None:
    assert commands("bash") == [(["gpu-kit/run.sh"], "")]
    assert '"run.sh"' in (ROOT / "scripts" / "gpu_kit.py").read_text()


def test_what_pip_installs_is_what_the_build_needs() -> None:
    """Installing is what continuous integration does; here, that the instructions agree with the build."""
    for page in (README, DOCS["install"]):
        assert [arguments for arguments, _ in page.commands("pip")] == [["install", "torch"], ["install", "."]]
    inline = [shlex.split(command) for command in re.findall(r"`pip (install [^`]*)`", DOCS["install"].text)]
    assert ["install", *prerequisites.TOOLS] in inline
    project = (ROOT / "pyproject.toml").read_text()
    extras = re.findall(r"`[^`]*\"\.\[(\w+)\]\"`", DOCS["install"].text)
    assert extras
    for extra in extras:
        assert re.search(rf"^{extra} = \[", project, re.MULTILINE), extra


def test_the_signatures_are_those_of_the_ops() -> None:
    namespace: dict[str, Any] = {}
    for block in DOCS["ops"].blocks("py"):
        exec(f"def {block.strip()}: ...", namespace)
    shown = {name: value for name, value in namespace.items() if inspect.isfunction(value)}
    assert sorted(shown) == OPS
    for name, function in shown.items():
        parameters = inspect.signature(getattr(charlm.ops, name)).parameters.values()
        expected = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in parameters]
        assert list(inspect.signature(function).parameters.values()) == expected, name


@pytest.mark.parametrize(
    ("page", "code"),
    SNIPPETS,
    ids=lambda value: value.name if isinstance(value, Page) else value.split("\n", 1)[0][:40],
)
def test_every_snippet_runs(page: Page, code: str, working_folder: Path) -> None:
    namespace: dict[str, Any] = {}
    exec(compile(re.sub(r"\.run\(\d+\)", ".run(3)", code), page.name, "exec"), namespace)
    if "names" in namespace:
        assert len(namespace["names"]) == 5
        assert namespace["losses"].shape[-1] == 3
    for expression, result in equivalents(code):
        expected = eval(expression, {**namespace, "F": torch.nn.functional})
        torch.testing.assert_close(namespace[result], expected, msg=lambda text, of=expression: f"{of}: {text}")


def equivalents(code: str) -> Iterator[tuple[str, str]]:
    """What a comment before a call of an op says that it computes, and the name of the result."""
    yield from re.findall(r"^# (.*)\n(\w+) = ops\.", code, re.MULTILINE)


def test_every_op_has_an_example_with_its_equivalent_in_the_readme() -> None:
    shown = [
        op for code in README.blocks("python") for op in re.findall(r"^# .*\n\w+ = ops\.(\w+)", code, re.MULTILINE)
    ]
    assert sorted(shown) == OPS


def test_a_test_is_behind_each_row_of_what_works() -> None:
    page = DOCS["comparison"].text
    rows = re.findall(r"^\| ([^|]+?) \| yes \|", page, re.MULTILINE)
    others = re.findall(r"^\| ([^|]+?) \| no \|", page, re.MULTILINE)
    table = page.split("| | charlm |", 1)[1]
    assert len(rows) + len(others) == len(re.findall(r"^\| ", table, re.MULTILINE))
    tests = re.findall(r"^(.+): (tests/\w+\.py)::(test_\w+)$", page, re.MULTILINE)
    assert [row for row, _, _ in tests] == rows
    for _, path, name in tests:
        assert f"\ndef {name}(" in (ROOT / path).read_text(), f"{path} has no {name}"


def test_the_figure_shows_what_was_measured() -> None:
    """`python -m scripts.draw_training` draws it anew."""
    labels = re.findall(r"<text [^>]*>([^<]*)</text>", draw_training.PICTURE.read_text())
    races = draw_training.results()["races"]
    for race in races:
        assert draw_training.title(race) in labels
        for name, seconds in draw_training.bars(race):
            assert draw_training.NAMES[name] in labels
            assert duration(seconds) in [label.strip() for label in labels]
    (alternative,) = re.findall(r"!\[(.*)\]\(docs/training\.svg\)", README.text)
    times = {draw_training.NAMES[name]: duration(seconds) for name, seconds in draw_training.bars(races[0])}
    for name, time in times.items():
        assert f"{name.split(',')[0]} {time}" in alternative


def test_links_lead_somewhere() -> None:
    others = ("CONTRIBUTING.md", "CHANGELOG.md", "examples/README.md", "benchmarks/results/README.md")
    for page in [*PAGES, *(Page(ROOT / name) for name in others)]:
        for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]+))?\)", page.prose):
            path = (page.path.parent / target).resolve() if target else page.path
            assert path.exists(), f"{page.name} links to {target}"
            if anchor:
                assert anchor in Page(path).anchors(), f"{page.name} links to {target}#{anchor}"


def test_the_readme_is_short_and_leads_to_every_page() -> None:
    assert len(README.text.split()) <= 1400
    for page in DOCS.values():
        assert f"]({page.name})" in README.text, page.name
    for name, page in LESSONS.items():
        leading = README if name == "index" else LESSONS["index"]
        assert f"]({page.path.relative_to(leading.path.parent)})" in leading.text, page.name
    contents = README.text.split("![", 1)[0]
    assert re.findall(r"\(#([\w-]+)\)", contents) == [
        re.sub(r" ", "-", heading.lower()) for heading in re.findall(r"^## (.*)$", README.text, re.MULTILINE)
    ]
