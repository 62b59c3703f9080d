"""Which texts the command line takes: files, pipes, standard input, a file for each split, sentences, old runs."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO, cast

import pytest
import torch
from command_line import SMALL_MLP, CommandLine

import charlm
from charlm import checkpoint

SENTENCES = ["Dr. Smith went home.", "It rained all day.", "No. 5 is alive.", "Wait... what?", "He left at 5 p.m."]
SMALL = ("--model", "bigram", "--backend", "eager", "--steps", 2, "--quiet")


@pytest.fixture
def sentences(tmp_path: Path) -> Path:
    path = tmp_path / "sentences.txt"
    path.write_text("\n".join(SENTENCES * 10) + "\n")
    return path


@contextmanager
def pipe(text: str) -> Iterator[TextIO]:
    """The end of a pipe from which to read what another process writes, as `cat` does in a shell."""
    with subprocess.Popen(["printf", "%s", text], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        yield cast(TextIO, writer.stdout)


# What is not a text


def test_what_is_no_file_is_refused_at_once(run_charlm: CommandLine, tmp_path: Path) -> None:
    os.mkfifo("pipe")
    server = socket.socket(socket.AF_UNIX)
    server.bind("socket")
    server.close()
    os.symlink("loop", "loop")
    with open("vast", "wb") as file:
        file.truncate(2**43)
    for path, message in [
        ("/dev/zero", "/dev/zero is a device, not a file or a pipe"),
        ("/dev/null", "/dev/null is a device, not a file or a pipe"),
        ("pipe", "pipe is a pipe that nothing writes to"),
        ("socket", f"{tmp_path}/socket is a socket, not a file or a pipe"),
        (".", f"{tmp_path}: Is a directory"),
        ("loop", f"{tmp_path}/loop: Too many levels of symbolic links"),
    ]:
        assert run_charlm.error("train", path) == message
        assert not Path("runs").exists()
    assert run_charlm.error("train", "vast").startswith(f"{tmp_path}/vast takes 8.8 TB of memory, and this machine has")
    run_charlm.output("train", "--model", "count-bigram", "--out", "run")
    assert run_charlm.error("eval", "run", "/dev/zero") == "/dev/zero is a device, not a file or a pipe"
    assert run_charlm.error("bench", "pipe") == "pipe is a pipe that nothing writes to"


def test_a_device_or_nothing_as_standard_input(run_charlm: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/zero") as zero, open("empty", "w+") as empty:
        for stream, message in [
            (zero, "standard input is a device, not a file or a pipe"),
            (empty, "standard input is empty"),
            (None, "standard input is closed"),
        ]:
            monkeypatch.setattr(sys, "stdin", stream)
            assert run_charlm.error("train", "-") == message
            assert run_charlm.error("train", "/dev/stdin") == message


# Pipes and standard input


def test_a_text_from_a_pipe_is_kept_by_the_run(
    run_charlm: CommandLine, names: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`charlm train - < names.txt`, `cat names.txt | charlm train /dev/stdin` and `charlm train <(cat names.txt)`."""
    options = "--model bigram --backend eager --schedule constant --quiet"
    given = (*options.split(), "--steps", 3)
    with open(names) as file, pipe(names.read_text()) as piped, pipe(names.read_text()) as substituted:
        monkeypatch.setattr(sys, "stdin", file)
        outputs = [run_charlm.output("train", "-", *given)]
        monkeypatch.setattr(sys, "stdin", piped)
        outputs.append(run_charlm.output("train", "/dev/stdin", *given, "--out", "stdin"))
        outputs.append(run_charlm.output("train", f"/dev/fd/{substituted.fileno()}", *given))
    assert all("11 characters" in output for output in outputs)
    names.rename("away.txt")
    Path("runs/pipe").rename("moved")
    run_charlm.output("train", "away.txt", *options.split(), "--steps", 5, "--out", "whole")
    for run in ("runs/stdin", "stdin", "moved"):
        assert (Path(run) / "text.txt").read_bytes() == Path("away.txt").read_bytes()
        assert checkpoint.load(run).config.path == "-"
        run_charlm.output("train", "--resume", run, "--steps", 5, "--quiet")
        assert torch.equal(checkpoint.load(run).model.weight, checkpoint.load("whole").model.weight)
        assert run_charlm.output("eval", run, "--json") == run_charlm.output("eval", "whole", "--json")
        # Nothing is read from where the tests are started.
        assert run_charlm.error("train", "-", "--resume", run, "--steps", 6) == (
            "- is not a file: a run that is resumed has its text, or takes it from a file"
        )
    Path("moved/text.txt").write_text("aeik\n" * 50)
    assert run_charlm.error("eval", "moved").startswith("moved/text.txt is not the data of this run (")


def test_a_named_pipe_is_read_while_somebody_writes(
    run_charlm: CommandLine, names: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo("pipe")
    # Both ends, so that there is a writer before there is a reader.
    writer = os.open("pipe", os.O_RDWR)
    set_blocking = os.set_blocking

    def write_and_wait(descriptor: int, blocking: bool) -> None:
        os.write(writer, names.read_bytes())
        os.close(writer)
        set_blocking(descriptor, blocking)

    monkeypatch.setattr(os, "set_blocking", write_and_wait)
    out = run_charlm.output("train", "pipe", *SMALL, "--out", "run")
    assert "pipe: 11 characters; 240 / 30 / 30 examples" in out
    assert Path("run/text.txt").read_bytes() == names.read_bytes()


def test_what_is_refused_keeps_no_text(run_charlm: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    with pipe("one\ntwo\n") as piped:
        monkeypatch.setattr(sys, "stdin", piped)
        message = run_charlm.error("train", "-", "--out", "run")
    assert message == (
        "standard input has too few lines to split: train, dev and test need 3, got 2; --mode stream reads it as one "
        "text"
    )
    assert list(Path().iterdir()) == []


def test_eval_reads_a_pipe(run_charlm: CommandLine, names: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = names.read_text().splitlines()[:2]
    run_charlm.output("train", names, "--model", "count-bigram", "--smoothing", 1, "--out", "run", "--quiet")
    with pipe(f"{first}\n") as one, pipe(f"{first}\n{second}\n") as two:
        monkeypatch.setattr(sys, "stdin", one)
        losses = json.loads(run_charlm.output("eval", "run", "-", "--split", "all", "--json"))
        monkeypatch.setattr(sys, "stdin", two)
        message = run_charlm.error("eval", "run", "-")
    assert message == (
        "standard input has too few lines to split: train, dev and test need 3, got 2; --split all measures the whole"
    )
    run = checkpoint.load("run")
    tokens = run.vocabulary.encode(f".{first}.").long()
    expected = -run.model(tokens[:-1, None])[range(len(tokens) - 1), tokens[1:]].mean()
    assert losses["all"]["nll"] == pytest.approx(expected.item())


# A file for each split


def write_three(text: list[str]) -> None:
    for name, lines in zip(("train", "dev", "test"), (text[:-4], text[-4:-2], text[-2:]), strict=True):
        Path(f"{name}.txt").write_text("\n".join(lines) + "\n")


def test_train_dev_and_test_have_a_file_each(run_charlm: CommandLine, names: Path) -> None:
    lines = names.read_text().splitlines()
    write_three(lines)
    files = ("train.txt", "--dev", "dev.txt", "--test", "test.txt")
    out = run_charlm.output("train", *files, *SMALL_MLP, "--steps", 20, "--out", "run", "--quiet")
    assert "train: 11 characters; 276 / 12 / 12 examples in train / dev / test" in out
    run = checkpoint.load("run")
    assert [run.config.path, run.config.dev, run.config.test] == [os.path.realpath(f) for f in files[::2]]
    losses = json.loads(run_charlm.output("eval", "run", "--json"))
    for split in ("train", "dev", "test"):
        whole = charlm.data.load_whole(f"{split}.txt", context_length=3, mode="lines", vocabulary=run.vocabulary)
        assert losses[split]["nll"] == pytest.approx(charlm.evaluate(run.model, whole))

    Path("other").mkdir()
    Path("dev.txt").rename("other/dev.txt")
    assert run_charlm.error("eval", "run") == f"{os.getcwd()}/dev.txt: No such file or directory"
    run_charlm.output("train", "--resume", "run", "--dev", "other/dev.txt", "--steps", 25, "--quiet")
    Path("other/dev.txt").write_text("\n".join(lines[:2]) + "\n")
    message = run_charlm.error("eval", "run")
    assert message.endswith(
        "/other/dev.txt, " + os.path.realpath("test.txt") + " is not the data of this run (other tokens): give the "
        "path of the file as it was"
    )
    # Another file is split as if it were the only one.
    assert "dev" in json.loads(run_charlm.output("eval", "run", names, "--json"))


def test_each_of_three_pipes_is_kept(run_charlm: CommandLine, names: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_three(names.read_text().splitlines())
    with (
        open("train.txt") as train,
        pipe(Path("dev.txt").read_text()) as dev,
        pipe(Path("test.txt").read_text()) as test,
    ):
        monkeypatch.setattr(sys, "stdin", train)
        splits = ("-", "--dev", f"/dev/fd/{dev.fileno()}", "--test", f"/dev/fd/{test.fileno()}")
        run_charlm.output("train", *splits, "--model", "bigram", "--steps", 2, "--quiet")
    for name, kept in (("train", "text"), ("dev", "dev"), ("test", "test")):
        assert Path(f"runs/stdin/{kept}.txt").read_bytes() == Path(f"{name}.txt").read_bytes()
    run_charlm.output("eval", "runs/stdin")
    message = run_charlm.error("train", "-", "--dev", "-", "--test", "test.txt")
    assert message == "standard input can be read only once"


# Sentences


def test_sentences_with_full_stops_are_lines(run_charlm: CommandLine, sentences: Path, tmp_path: Path) -> None:
    characters = {*"".join(SENTENCES)}
    out = run_charlm.output("train", sentences, "--model", "mlp", "--backend", "eager", "--steps", 30, "--quiet")
    assert f"sentences: {len(characters) + 1} characters; " in out
    run = checkpoint.load("runs/sentences")
    assert set(run.vocabulary.characters) == characters | {"\n"}
    assert run.vocabulary.characters[run.vocabulary.boundary] == "\n"

    drawn = run_charlm.output("sample", "runs/sentences", "-n", 50, "--prefix", "Dr. ", "--seed", 1).splitlines()
    assert len(drawn) == 50
    assert all(text.startswith("Dr. ") for text in drawn)
    assert any("." in text[4:] for text in drawn)
    across = run_charlm.output("sample", "runs/sentences", "-n", 1, "--no-stop", "--max-length", 400, "--seed", 1)
    assert across.count("\n") > 3
    assert run_charlm.error("sample", "runs/sentences", "--prefix", "a\n").startswith(
        "prefix[1] = '\\n' is the boundary"
    )
    pytest.importorskip("matplotlib")
    assert "embedding.png" in run_charlm.output("plot", "runs/sentences")


def test_a_run_on_names_says_that_it_knows_no_full_stop(run_charlm: CommandLine, names: Path, sentences: Path) -> None:
    run_charlm.output("train", names, *SMALL, "--out", "run")
    sentences.write_text("mark\nm.rk\nalan\n")
    assert run_charlm.error("eval", "run", sentences) == (
        f"{sentences}, line 2, column 2 has '.', which is not in the vocabulary, where it ends lines: a vocabulary of "
        "this text has another boundary"
    )
    assert run_charlm.error("sample", "run", "--prefix", "m.") == ("prefix[1] = '.' is the boundary, where a text ends")


def test_a_run_on_sentences_reads_texts_without_full_stops(run_charlm: CommandLine, sentences: Path) -> None:
    run_charlm.output("train", sentences, *SMALL, "--out", "run")
    sentences.write_text("went\nhome\nrained\n")
    run_charlm.output("eval", "run", sentences)


def test_a_file_of_one_line_is_a_stream(run_charlm: CommandLine, tmp_path: Path) -> None:
    Path("book.txt").write_text("It was a dark and stormy night. " * 40)
    message = run_charlm.error("train", "book.txt")
    assert message == (
        f"{tmp_path}/book.txt has too few lines to split: train, dev and test need 3, got 1; --mode stream reads it as "
        "one text"
    )
    run_charlm.output("train", "book.txt", *SMALL, "--mode", "stream")


# Counts, and runs of before


def test_an_infinite_loss_comes_with_a_hint(run_charlm: CommandLine, tmp_path: Path) -> None:
    Path("text.txt").write_text("aa\nb\nc\n")
    hint = (
        "the loss of dev and test is infinite: there are pairs of characters that were never counted; training with "
        "--smoothing 1 counts each once more\n"
    )
    trained = run_charlm("train", "text.txt", "--model", "count-bigram", "--out", "run")
    assert (trained.code, trained.err) == (0, hint)
    assert run_charlm("eval", "run").err == hint
    assert run_charlm("eval", "run", "--split", "train").err == ""
    smoothed = run_charlm("train", "text.txt", "--model", "count-bigram", "--smoothing", 1, "--out", "smoothed")
    assert (smoothed.code, smoothed.err) == (0, "")


def test_a_run_from_before_files_of_their_own_and_boundaries_of_their_own(run_charlm: CommandLine, names: Path) -> None:
    run_charlm.output("train", names, *SMALL_MLP, "--steps", 5, "--out", "run", "--quiet")
    losses = run_charlm.output("eval", "run", "--json")
    config = json.loads(Path("run/config.json").read_text())
    assert config["vocabulary"] == {"characters": ".aeiklmnrst", "boundary": "."}
    del config["training"]["dev"], config["training"]["test"]
    Path("run/config.json").write_text(json.dumps(config))
    assert run_charlm.output("eval", "run", "--json") == losses
    assert len(run_charlm.output("sample", "run", "-n", 3, "--seed", 1).splitlines()) == 3
    run_charlm.output("train", "--resume", "run", "--steps", 6, "--quiet")
    assert checkpoint.load("run").step == 6
