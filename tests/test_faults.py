"""scripts/faults.py: each fault can still be planted, and the tests that are to find it are there.

That they find it, `python -m scripts.planted_faults` shows: a matter of many minutes.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from scripts.faults import FAULTS, Fault

ROOT = Path(__file__).resolve().parent.parent


def test_names_are_unique() -> None:
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_can_be_planted(fault: Fault) -> None:
    text = (ROOT / fault.file).read_text()
    assert fault.planted_in(text) != text


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_what_is_to_find_it_is_there(fault: Fault) -> None:
    assert fault.tests
    for test in fault.tests:
        file, _, function = test.partition("::")
        assert re.search(rf"^def {function or 'test_'}", (ROOT / file).read_text(), re.MULTILINE), test
