"""Every example runs at small size, and the numbers it prints are what they should be."""

from __future__ import annotations

import math
import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
Run = Callable[..., list[dict[str, float]]]


def numbers(printed: str) -> list[dict[str, float]]:
    """The numbers of every line by the words before them: "step 1  loss 3.3" is {"step": 1.0, "loss": 3.3}."""
    found = []
    for line in printed.splitlines():
        pairs = re.findall(r"([a-z][a-z ]*?) (-?\d[\d.]*(?:e[+-]\d+)?)(?:  |$)", line)
        found.append({words.strip().split("  ")[-1]: float(number) for words, number in pairs})
    return found


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs an example in this process: the numbers it prints, by line."""

    def run(name: str, *arguments: object) -> list[dict[str, float]]:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        monkeypatch.syspath_prepend(EXAMPLES)
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return numbers(capsys.readouterr().out)

    return run


@pytest.mark.parametrize(("name", "steps"), [("gru_names", 20), ("ddp_names", 80)])
def test_names(run: Run, name: str, steps: int) -> None:
    first, *_, last = run(name, "--steps", steps)
    # An untrained model of 27 characters is at log 27 = 3.296; the frequencies of single characters are at 2.8.
    assert first["loss"] == pytest.approx(math.log(27), abs=0.3)
    assert last["loss"] < 2.8


def test_makemore_transformer(run: Run) -> None:
    first, last = run("makemore_transformer", "--steps", 30)
    assert first["loss"] == pytest.approx(math.log(27), abs=0.4)
    assert last["loss"] < 2.75
    eager = run("makemore_transformer", "--steps", 30, "--eager")
    assert [line["loss"] for line in eager] == pytest.approx([first["loss"], last["loss"]], abs=2e-3)


def test_gpt_tied_head(run: Run) -> None:
    difference, first, *_, last = run("gpt_tied_head", "--steps", 100)
    assert difference["loss"] < 1e-5
    assert difference["gradient of the tied weight"] < 1e-6
    # The frequencies of single characters are at 2.85, ends of lines included.
    assert first["loss"] > 3.0
    assert last["loss"] < 2.83


def test_tabular_embeddings(run: Run) -> None:
    difference, first, *_, last = run("tabular_embeddings", "--steps", 60)
    assert max(difference["loss"], difference["gradients"]) < 1e-6
    # Four classes of the same size: log 4 = 1.386.
    assert first["test loss"] > 1.2
    assert last["test loss"] < 0.7


@pytest.mark.parametrize("direct", [[], ["--direct"]], ids=["without", "direct"])
def test_bengio_words(run: Run, direct: list[str]) -> None:
    _, difference, first, last = run("bengio_words", "--steps", 40, *direct)
    assert difference["loss"] < 1e-5
    assert first["loss"] > 6.0
    assert last["loss"] < 5.5


def test_hessian_vector_product(run: Run) -> None:
    difference, before, last = run("hessian_vector_product", "--iterations", 20)
    assert difference["difference from eager"] < 1e-13
    assert last["residual"] < 0.1 * before["residual"]
    assert last["eigenvalue"] == pytest.approx(2.30, abs=0.01)


def test_dpo_names(run: Run) -> None:
    *lines, difference = run("dpo_names", "--pretraining", 10, "--steps", 25)
    first, *_, last = (line for line in lines if "margin" in line)
    # The policy starts as the reference: no margin, and log 2 = 0.6931.
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert first["margin"] == 0.0
    assert last["loss"] < 0.6
    assert last["margin"] > 0.2
    assert last["pairs in order"] > 0.8
    assert max(difference["loss"], difference["gradient"]) < 1e-5


def test_grpo_names(run: Run) -> None:
    *lines, difference = run("grpo_names", "--pretraining", 30, "--steps", 10)
    first, *_, last = (line for line in lines if "reward" in line)
    assert first["reward"] < 0.7
    assert last["reward"] > 0.85
    assert 0.0 < last["entropy"] < math.log(27)
    assert max(difference["loss"], difference["gradient"]) < 1e-5


def test_distill_names(run: Run) -> None:
    *lines, difference = run("distill_names", "--pretraining", 30, "--steps", 40)
    first, *_, last = (line for line in lines if "divergence" in line)
    assert first["divergence"] > 0.2
    assert 0.0 < last["divergence"] < 0.3 * first["divergence"]
    assert max(difference["loss"], difference["gradient"]) < 1e-5


def test_evaluate_names(run: Run) -> None:
    before, *_, after = (line for line in run("evaluate_names", "--steps", 50) if "perplexity" in line)
    # 27 characters at random; the frequencies of single characters are at e^2.8 = 16.4.
    assert before["perplexity"] == pytest.approx(27, rel=0.3)
    assert before["entropy"] == pytest.approx(math.log(27), abs=0.3)
    assert after["perplexity"] < 16
    assert after["accuracy"] > 0.2
    assert after["accuracy"] < after["top five accuracy"]
    assert after["entropy"] < 2.8
    assert max(before["difference"], after["difference"]) < 1e-5


def test_the_list_of_examples_is_complete() -> None:
    listed = re.findall(r"^\| \[(\w+)\.py\]\((\w+)\.py\)", (EXAMPLES / "README.md").read_text(), re.MULTILINE)
    assert all(name == target for name, target in listed)
    assert [name for name, _ in listed] == sorted(path.stem for path in EXAMPLES.glob("*.py"))
