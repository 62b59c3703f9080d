"""Every example runs, and what it prints is what it should."""

import math
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


def losses(example: Path, steps: int) -> list[float]:
    command = [sys.executable, str(example), "--steps", str(steps)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [float(line.split()[-1]) for line in printed.splitlines()]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_it_learns(example: Path) -> None:
    first, last = losses(example, 20)
    # An untrained model of 27 characters is at log 27 = 3.296; the frequencies of single characters are at 2.8.
    assert first == pytest.approx(math.log(27), abs=0.1)
    assert last < 2.9
