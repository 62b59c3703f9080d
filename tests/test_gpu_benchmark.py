"""`python -m benchmarks.gpu`, as far as it goes without a GPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu

FACTS = {"gpu": "A GPU", "commit": "abc", "date": "2026-01-01", "versions": {"torch": "2.13.0"}, "cuda": "13.0"}


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="there is no CUDA device: run this where torch finds a GPU"):
        gpu.main([])


def test_bytes_are_counted_once_for_each_pass() -> None:
    assert gpu.cross_entropy_bytes(10, 100, backward=False) == 2000 + 10 * 10
    assert gpu.cross_entropy_bytes(10, 100, backward=True) == 3 * 2000 + 2 * 10 * 10
    assert gpu.cross_entropy_bytes(1, 100, backward=False, element_size=4) == 400 + 12


def test_every_test_file_exists() -> None:
    for path in gpu.TEST_FILES:
        assert (gpu.ROOT / path).is_file()


def test_what_was_done_is_not_done_again(tmp_path: Path) -> None:
    path = tmp_path / "results" / "gpu.json"
    done: list[str] = []

    def part(name: str) -> gpu.Part:
        def run() -> dict[str, str]:
            done.append(name)
            return {"name": name}

        return run

    def stop() -> Any:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gpu.run_parts(path, FACTS, ["a", "b"], {"a": part("a"), "b": stop})
    results = gpu.run_parts(path, FACTS, ["a", "b"], {"a": part("a"), "b": part("b")})
    assert done == ["a", "b"]
    assert results == {**FACTS, "parts": {"a": {"name": "a"}, "b": {"name": "b"}}}
    assert json.loads(path.read_text()) == results

    gpu.run_parts(path, {**FACTS, "commit": "def"}, ["a"], {"a": part("a")})
    assert done == ["a", "b", "a"]
    assert json.loads(path.read_text())["parts"] == {"a": {"name": "a"}}


def test_the_table_has_shares_of_the_copy_bandwidth() -> None:
    timed = {"workload": "cross_entropy N=1 C=2, forward", "implementation": "charlm", "bytes": 900, "median_s": 1e-6}
    failed = {"workload": "w", "implementation": "liger", "bytes": 900, "error": "RuntimeError: a | b"}
    parts = {"ceilings": {"copy_bytes_per_s": 1e9, "bf16_flops": 7e14}, "ops": [timed, failed]}
    assert gpu.render({**FACTS, "parts": parts}).splitlines() == [
        "A GPU; torch 2.13.0; charlm at abc; 2026-01-01",
        "",
        "Copy 1 GB/s; bf16 product 700 TFLOP/s",
        "",
        "| workload | implementation | time | GB/s | of copy |",
        "| --- | --- | --- | --- | --- |",
        "| cross_entropy N=1 C=2, forward | charlm | 1.0 µs | 1 | 90% |",
        "| w | liger | RuntimeError: a / b | - | - |",
    ]


def test_failed_commands_are_named() -> None:
    fine, bad = {"exit_status": 0, "last_lines": []}, {"exit_status": 9, "last_lines": ["..."]}
    assert gpu.failures({"parts": {"tests": fine, "sanitizer": {"skipped": "not installed"}}}) == []
    assert gpu.failures({"parts": {"tests": bad, "sanitizer": {"memcheck": fine, "racecheck": bad}}}) == [
        "tests",
        "racecheck",
    ]


def test_implementations_that_are_installed_agree() -> None:
    logits, target = torch.randn(5, 7), torch.randint(7, (5,))
    losses = gpu.cross_entropy_implementations()
    for name in ("charlm", "eager"):
        torch.testing.assert_close(
            losses[name](logits, target), torch.nn.functional.cross_entropy(logits, target, reduction="none")
        )
