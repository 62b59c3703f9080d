"""What is written into a run folder: nothing through links, nothing that was refused, the same bytes each time."""

from __future__ import annotations

import errno
import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from command_line import SMALL_MLP, CommandLine

from charlm import MLP, TrainingConfig, Vocabulary, checkpoint
from charlm.backends import EagerBackend
from charlm.cli import main
from charlm.tensor_files import format_tensors

OPTIONS = (*SMALL_MLP, "--steps", 4, "--quiet")
FILES = ["config.json", "metrics.jsonl", "model.safetensors", "optimizer.safetensors"]


@pytest.fixture
def run(run_charlm: CommandLine, names: Path) -> Path:
    """A run of four steps in the working folder."""
    run_charlm.output("train", names, *OPTIONS, "--out", "run")
    return Path("run")


def everything() -> list[str]:
    """All that is in the working folder."""
    return sorted(str(path) for path in Path().rglob("*"))


# What was refused


REFUSED = [
    *(["--max-grad-norm", "inf"], ["--max-grad-norm", "nan"], ["--learning-rate", "0"], ["--batch-size", "0"]),
    *(["--seed", str(2**70)], ["--device", "toaster"], ["--backend", "magic"], ["--hidden-dim", "2000000000"]),
    *(["--steps", "0"], ["--warmup", "4"], ["--momentum", "1"], ["--split", "odd"], ["--context-length", "-1"]),
    *(
        ["--preset", "huge"],
        ["--mode", "stream", "--context-length", "100"],
        ["--schedule", "step", "--milestones", "2,1"],
    ),
]


@pytest.mark.parametrize("options", REFUSED, ids=" ".join)
def test_an_option_that_is_refused_leaves_nothing_behind(
    run_charlm: CommandLine, names: Path, options: list[str]
) -> None:
    assert run_charlm("train", names, *OPTIONS, *options).code == 2
    assert run_charlm("train", names, *OPTIONS, *options, "--out", "deep/er/run").code == 2
    assert everything() == [names.name]
    Path("empty").mkdir()
    assert run_charlm("train", names, *OPTIONS, *options, "--out", "empty").code == 2
    assert everything() == ["empty", names.name]
    # And the corrected command takes the same folder.
    run_charlm.output("train", names, *OPTIONS, "--out", "empty")


def test_what_only_the_first_step_refuses_leaves_nothing_behind(
    run_charlm: CommandLine, names: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise ValueError("no such kernel")

    with monkeypatch.context() as patch:
        patch.setattr(EagerBackend, "run", refuse)
        assert run_charlm("train", names, *OPTIONS).err == "error: no such kernel\n"
        assert everything() == [names.name]
    # A run that has been trained is never removed.
    run_charlm.output("train", names, *OPTIONS, "--out", "run")
    monkeypatch.setattr(EagerBackend, "run", refuse)
    before = everything()
    assert run_charlm("train", "--resume", "run", "--steps", 9).err == "error: no such kernel\n"
    assert everything() == before


def test_a_disk_that_is_full_at_the_first_save(
    run_charlm: CommandLine, names: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At any of its steps: nothing is left, and once there is space again the same command works."""
    real = {name: getattr(os, name) for name in ("open", "fsync", "rename", "replace", "mkdir")}
    for at in range(1, 100):
        calls = 0

        def full(name: str, *arguments: Any, **options: Any) -> Any:
            nonlocal calls
            known = name == "mkdir" and os.path.exists(arguments[0])
            calls += ("run" in str(arguments[0]) or name == "fsync") and not known
            if calls == at and not known:  # noqa: B023
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real[name](*arguments, **options)

        with monkeypatch.context() as patch:
            for name in real:
                patch.setattr(os, name, lambda *a, name=name, **o: full(name, *a, **o))
            result = run_charlm("train", names, "--model", "count-bigram", "--out", "deep/run")
        if calls < at:
            break
        assert result.code == 2, at
        assert "No space left on device" in result.err, at
        assert everything() == [names.name], at
    assert at > 15
    assert checkpoint.load("deep/run").config.model == "count-bigram"


@contextmanager
def small_files() -> Iterator[None]:
    """No file may be larger than 700 bytes: a disk that is full in the middle of one.

    Not for a whole test, as pytest may be writing its report into a file.
    """
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (700, before[1][1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before[1])
        signal.signal(signal.SIGXFSZ, before[0])


def test_a_file_that_cannot_be_finished_is_named(run_charlm: CommandLine, names: Path) -> None:
    with small_files():
        result = run_charlm("train", names, *OPTIONS)
    assert result.code == 2
    assert result.err == "error: runs/names/.saving/config.json: File too large\n"
    assert everything() == [names.name]


def test_a_later_save_that_fails_keeps_the_last_checkpoint(run: Path) -> None:
    before = {path: path.read_bytes() for path in run.iterdir()}
    with small_files(), pytest.raises(OSError, match="File too large"):
        checkpoint.save(run, config=TrainingConfig(), vocabulary=Vocabulary("ab"), model=MLP(3, 3, 4, 50))
    assert {path: path.read_bytes() for path in run.iterdir()} == before


def test_what_a_first_save_left_when_it_was_killed_is_no_run(run_charlm: CommandLine, names: Path) -> None:
    saving = Path("run/.saving")
    saving.mkdir(parents=True)
    (saving / "config.json").write_text("{")
    run_charlm.output("train", names, *OPTIONS, "--out", "run")
    assert sorted(os.listdir("run")) == FILES


def test_a_run_that_was_committed_but_not_moved_is_one(run_charlm: CommandLine, run: Path, names: Path) -> None:
    whole = {name: (run / name).read_bytes() for name in FILES}
    (run / ".saved").mkdir()
    for name in set(FILES) - {"metrics.jsonl"}:
        (run / name).rename(run / ".saved" / name)
    assert run_charlm.error("train", names, *OPTIONS, "--out", "run").startswith("run holds a run already: ")
    assert run_charlm.output("sample", "run", "-n", 1).count("\n") == 1
    run_charlm.output("train", "--resume", "run", "--quiet")
    assert {path.name: path.read_bytes() for path in run.iterdir()} == whole


@pytest.mark.parametrize("out", ["names.txt/run", "loop", "loop/run", "nowhere", "x" * 300])
def test_an_out_that_cannot_be_a_folder_is_one_line(run_charlm: CommandLine, names: Path, out: str) -> None:
    Path("loop").symlink_to("loop")
    Path("nowhere").symlink_to("not/there")
    before = everything()
    line = run_charlm.error("train", names, *OPTIONS, "--out", out)
    assert line.startswith(out[:200])
    assert everything() == before


# Links


@pytest.mark.parametrize("name", [*FILES, ".metrics.jsonl.saving", ".saving", ".saved", "loss.png", ".loss.png.saving"])
@pytest.mark.parametrize("target", ["file", "folder", "nothing"])
def test_nothing_is_written_through_a_link(
    run_charlm: CommandLine, run: Path, tmp_path: Path, name: str, target: str
) -> None:
    """Links into folders of others, where a run finds them when it is resumed, saved and drawn."""
    outside = tmp_path / "outside"
    outside.mkdir()
    mine = outside / "mine"
    path = run / name
    if target == "folder":
        mine.mkdir()
        (mine / "config.json").write_text("{}")
    elif path.exists():
        path.rename(mine)  # a link to what is right
    elif target == "file":
        mine.write_bytes(b"important")
    before = {found: found.read_bytes() for found in outside.rglob("*") if found.is_file()}
    if path.exists():
        path.unlink()
    path.symlink_to(mine)

    result = run_charlm("train", "--resume", "run", "--steps", 8, "--quiet")
    assert result.code in (0, 2), result.err
    if target == "folder" and name in FILES:
        assert result.err == f"error: run/{name}: Is a directory\n"
    else:
        assert result.code == 0
        assert checkpoint.load("run").step == 8
        assert run_charlm("plot", "run").code == 0
        # What was replaced is a file of the run's own now.
        assert not path.is_symlink()
    assert {found: found.read_bytes() for found in outside.rglob("*") if found.is_file()} == before


def test_records_are_not_appended_through_a_link(tmp_path: Path) -> None:
    target = tmp_path / "mine"
    target.write_text("important")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").symlink_to(target)
    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        checkpoint.append_metrics(tmp_path / "run", [{"step": 1}])
    assert target.read_text() == "important"


# Bytes


def test_equal_states_are_equal_bytes(run_charlm: CommandLine, names: Path) -> None:
    for out in ("one", "other"):
        assert main(["train", str(names), *map(str, OPTIONS), "--momentum", "0.5", "--out", out]) == 0
    for name in FILES:
        assert Path("one", name).read_bytes() == Path("other", name).read_bytes(), name

    # 1 is the 1.0 that a rate is, and options have no order.
    vocabulary = Vocabulary("ab")
    model = MLP(3, 1, 2, 4)
    for out, config in (
        ("one", TrainingConfig(learning_rate=1, betas=(0, 0.5))),
        ("other", TrainingConfig(betas=(0.0, 0.5), learning_rate=1.0)),
    ):
        checkpoint.save(out, config=config, vocabulary=vocabulary, model=model)
    for name in FILES[:1] + FILES[2:]:
        assert Path("one", name).read_bytes() == Path("other", name).read_bytes(), name


def test_tensor_files_are_those_of_the_library(tmp_path: Path) -> None:
    tensors = {
        "double": torch.arange(3, dtype=torch.float64),
        "transposed": torch.arange(6, dtype=torch.float32).view(2, 3).T,
        "half": torch.ones(5, dtype=torch.bfloat16),
        "half too": torch.ones(2, 2, dtype=torch.float16),
        "scalar": torch.tensor(7),
        "bytes": torch.arange(3, dtype=torch.uint8),
        "none": torch.empty(0, 4),
        "größer": torch.zeros(1),
    }
    content = b"".join(format_tensors(tensors, {"step": "1"}))
    found = safetensors.torch.load(content)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items() if name != "none"}
    ours = b"".join(format_tensors(contiguous, {"step": "1"}))
    assert ours == safetensors.torch.save(contiguous, metadata={"step": "1"})


def test_a_path_that_is_not_utf8_is_kept(tmp_path: Path) -> None:
    config = TrainingConfig(path=os.fsdecode(b"/data/caf\xe9.txt"))
    checkpoint.save(tmp_path, config=config, vocabulary=Vocabulary("ab"), model=MLP(3, 3, 2, 4))
    assert "caf\\udce9.txt" in (tmp_path / "config.json").read_text(encoding="utf-8")
    assert checkpoint.load(tmp_path).config.path == config.path
