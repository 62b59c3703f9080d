"""building/instruction_sets.py: what the CPU kernels are compiled for."""

from __future__ import annotations

from pathlib import Path

import pytest

from building import instruction_sets, prerequisites
from charlm import _C

CSRC = str(Path(__file__).resolve().parent.parent / "csrc")


@pytest.fixture(autouse=True)
def compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """CXX is the compiler; nothing is asked for."""
    monkeypatch.setenv("CXX", "")
    monkeypatch.delenv("CHARLM_ISA", raising=False)
    prerequisites.check_compiler()


def test_a_build_for_this_machine_has_the_set_that_the_kernels_would_choose() -> None:
    (name,) = instruction_sets.wanted(True, CSRC)
    assert name == _C.instruction_set()


def test_a_build_for_others_has_all_sets() -> None:
    assert instruction_sets.wanted(False, CSRC) == instruction_sets.FLAGS


def test_all_sets_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHARLM_ISA", "all")
    assert instruction_sets.wanted(True, CSRC) == instruction_sets.FLAGS


def test_where_programs_for_another_machine_are_compiled_all_sets_are(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CXX", str(tmp_path / "no-compiler"))
    assert instruction_sets.wanted(True, CSRC) == instruction_sets.FLAGS


def test_a_word_that_is_not_known_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHARLM_ISA", "x86_64_v9")
    with pytest.raises(SystemExit, match="CHARLM_ISA must be all, auto or emulated, got 'x86_64_v9'"):
        instruction_sets.wanted(True, CSRC)
