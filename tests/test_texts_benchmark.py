"""`python -m benchmarks texts`: the texts are the same each time, and the table has what was measured."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from benchmarks import texts
from benchmarks.__main__ import main


@pytest.mark.parametrize("kind", ["names", "sentences"])
def test_texts_are_made_of_names(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "text.txt"
    texts.write_text(path, kind, 5000)
    content = path.read_bytes()
    assert 5000 <= len(content) < 10_500
    texts.write_text(path, kind, 5000)
    assert path.read_bytes() == content
    names = set(texts.EMBEDDED_NAMES.read_text().split())
    words = content.decode().lower().translate(str.maketrans("", "", ".?!")).split()
    assert set(words) <= names


def test_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(texts, "KINDS", {name: texts.KINDS[name] for name in ("lines",)})
    file = tmp_path / "texts.json"
    options = ["--sizes", "1", "--rounds", "1", "--json", str(file)]
    assert main(["texts", *options]) == 0
    report = json.loads(file.read_text())
    assert report["command"] == shlex.join(["python", "-m", "benchmarks", "texts", *options])
    rows = report["rows"]
    assert [(row["kind"], row["step"]) for row in rows] == [("lines", step) for step in texts.STEPS]
    # A megabyte of names, each letter and line end of which is an example.
    assert {row["examples"] for row in rows} == {rows[0]["text_bytes"]}
    assert {row["symbols"] for row in rows} == {27}
    shown = capsys.readouterr().out
    for row in rows:
        assert f"| {texts.STEPS[row['step']]}" in shown
        assert row["median_s"] > 0
        assert row["peak_bytes"] >= 0
    assert f"| {rows[0]['text_bytes'] / 1e6:,.0f} MB " in shown
