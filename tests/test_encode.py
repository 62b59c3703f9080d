"""charlm.data.encode and what is mapped of it: the same examples as of the text, and nothing of a file is believed."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import SMALL_MLP, CommandLine, assert_same_weights
from text_examples import splits

from charlm import data, token_files
from charlm.fingerprint import Fingerprint
from charlm.vocabulary import Vocabulary

TEXT = "emma\nolivia\n\nava zoë\nisabella, mia\nsophia\ned\nan 'a' is\n" * 3


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.txt"
    path.write_text(TEXT)
    return path


def assert_same(mapped: data.Dataset, loaded: data.Dataset) -> None:
    assert mapped.vocabulary == loaded.vocabulary
    assert (mapped.mode, mapped.name, mapped.context_length) == (loaded.mode, loaded.name, loaded.context_length)
    for some, others in zip(splits(mapped), splits(loaded), strict=True):
        assert some.tokens.dtype == others.tokens.dtype
        assert some.tokens.equal(others.tokens)
        assert some.ends.equal(others.ends)
        assert some.contexts.equal(others.contexts)
        assert some.targets.equal(others.targets)


@pytest.mark.parametrize("tokens", ["characters", "bytes", "words"])
@pytest.mark.parametrize(
    "options",
    [
        {"mode": "lines"},
        {"mode": "lines", "seed": 7, "context_length": 5},
        {"mode": "lines", "split": "makemore"},
        {"mode": "stream", "context_length": 2},
        {"mode": "lines", "dev": 1, "test": 1},
        {"mode": "stream", "dev": 1, "test": 1},
    ],
)
def test_what_was_encoded_is_what_the_text_is(text: Path, tokens: str, options: dict[str, Any]) -> None:
    options = {name: text if value == 1 else value for name, value in options.items()}
    out = text.with_name("corpus.tokens")
    loaded = data.load(text, tokens=tokens, **options)
    mapped = data.encode(text, out, tokens=tokens, **options)
    assert_same(mapped, loaded)
    again = data.load(out, mode=options["mode"], tokens=tokens, context_length=loaded.context_length)
    assert_same(again, loaded)
    if options["mode"] == "lines":
        assert Fingerprint.of(again) == Fingerprint.of(loaded)
    assert sorted(os.listdir(text.parent)) == ["corpus.tokens", "corpus.txt"]


def test_a_stream_is_for_contexts_of_any_length(text: Path) -> None:
    out = text.with_name("corpus.tokens")
    data.encode(text, out, mode="stream")
    for length in (1, 2, 7):
        assert_same(data.load(out, context_length=length), data.load(text, mode="stream", context_length=length))
    with pytest.raises(ValueError, match=r"corpus.tokens is too short: of its \d+ characters dev would have \d+"):
        data.load(out, context_length=40)


def test_the_whole_of_what_was_encoded(text: Path) -> None:
    out = text.with_name("corpus.tokens")
    vocabulary = data.encode(text, out, context_length=2, split="makemore").vocabulary
    whole = data.load_whole(out, context_length=2, mode="lines", vocabulary=vocabulary)
    assert whole.tokens.equal(data.load(out).all.tokens)


def test_changing_mapped_tokens_leaves_the_file_as_it_is(text: Path) -> None:
    out = text.with_name("corpus.tokens")
    mapped = data.encode(text, out)
    before = out.read_bytes()
    mapped.train.tokens.zero_()
    assert out.read_bytes() == before
    assert data.load(out).train.tokens.any()


def test_an_encoding_that_fails_leaves_what_was_there(text: Path) -> None:
    out = text.with_name("corpus.tokens")
    data.encode(text, out)
    before = out.read_bytes()
    text.write_bytes(b"ab\nc\nd\xff\n")
    with pytest.raises(ValueError, match=r"byte 0xff at offset 6, line 3, column 2"):
        data.encode(text, out)
    with pytest.raises(ValueError, match="is a file of tokens already"):
        data.encode(out, text)
    with pytest.raises(ValueError, match="is not a regular file: choose another name"):
        data.encode(None, text.parent)
    os.mkfifo(text.with_name("pipe"))
    with pytest.raises(ValueError, match="is not a regular file: choose another name"):
        data.encode(None, text.with_name("pipe"))
    with pytest.raises(FileExistsError, match=r"corpus.txt"):
        data.encode(None, text / "x.tokens")
    assert out.read_bytes() == before
    assert sorted(os.listdir(text.parent)) == ["corpus.tokens", "corpus.txt", "pipe"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "stream"}, "mode must be 'lines', with which {path} was encoded, got 'stream'"),
        ({"tokens": "words"}, "tokens must be 'characters', with which {path} was encoded, got 'words'"),
        ({"context_length": 2}, "context_length must be 3, with which {path} was encoded, got 2"),
        ({"split": "makemore"}, "split is for a text, but {path} is a file of tokens, which was split and encoded"),
        ({"seed": 1}, "seed is for a text, but {path} is a file of tokens, which was split and encoded"),
        ({"limit_vocab": 3}, "limit_vocab is for a text, but {path} is a file of tokens, which was split and encoded"),
        ({"vocabulary": Vocabulary("ab")}, "{path} was encoded with another vocabulary, of 19 characters"),
    ],
)
def test_options_that_were_decided(text: Path, options: dict[str, Any], message: str) -> None:
    out = text.with_name("corpus.tokens")
    data.encode(text, out)
    with pytest.raises(ValueError, match=f"^{re.escape(message.format(path=out))}$"):
        data.load(out, **options)


# Files that somebody has changed

Change = Callable[[dict[str, Any], dict[str, Any]], None]


def set_key(key: str, value: object) -> Change:
    return lambda header, described: described.update({key: value})


def set_array(name: str, key: str, value: object) -> Change:
    return lambda header, described: header[name].update({key: value})


CHANGES: list[tuple[str, Change, str]] = [
    ("lines", set_key("format", 2), "it has format version 2; this charlm reads up to 1"),
    ("lines", set_key("format", "1"), "format must be int"),
    ("lines", set_key("mode", "stream"), "it must have the arrays tokens, bounds, got "),
    ("stream", set_key("mode", "words"), "mode must be 'lines' or 'stream'"),
    ("lines", set_key("context_length", 2**40), "context_length must be from 0 to 2147483647"),
    ("lines", set_key("context_length", 0), "lines a context_length"),
    ("lines", set_key("context_length", 4), "ends must be numbers of examples of"),
    ("lines", set_key("vocabulary", {"bytes": 256, "words": []}), "a vocabulary must have the keys"),
    ("lines", set_key("vocabulary", {"words": ["a b"]}), "'a b' is not a word"),
    ("lines", set_key("sha256", "0"), "sha256 must be 64 hexadecimal digits"),
    ("lines", set_key("other", 0), "unknown key 'other'"),
    ("lines", lambda header, described: described.pop("name"), "it has no 'name'"),
    ("lines", set_array("tokens", "dtype", "I16"), "of shape .* has the offsets"),
    ("lines", set_array("ends", "dtype", "F32"), "ends has 1 dimensions and the dtype torch.float32"),
    ("lines", lambda header, described: header.pop("dev_ends"), "describes a file of|must have the arrays"),
    ("stream", set_array("bounds", "dtype", "F64"), "bounds has 1 dimensions and the dtype torch.float64"),
    ("stream", set_array("tokens", "data_offsets", [0, 2**62]), "has the offsets 0, "),
]


def rewrite(path: Path, change: Change) -> None:
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    described = json.loads(header["__metadata__"]["charlm_tokens"])
    change(header, described)
    header["__metadata__"]["charlm_tokens"] = json.dumps(described)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])


@pytest.mark.parametrize(("mode", "change", "message"), CHANGES)
def test_a_header_is_believed_only_if_it_fits(text: Path, mode: str, change: Change, message: str) -> None:
    out = text.with_name("corpus.tokens")
    data.encode(text, out, mode=mode)
    rewrite(out, lambda header, described: None)
    data.load(out)
    rewrite(out, change)
    with pytest.raises(
        ValueError, match=rf"^{re.escape(str(out))} is not a file of tokens, or is damaged: .*{message}"
    ):
        data.load(out)


@pytest.mark.parametrize("mode", ["lines", "stream"])
def test_a_file_that_is_cut_off(text: Path, mode: str) -> None:
    out = text.with_name("corpus.tokens")
    data.encode(text, out, mode=mode)
    content = out.read_bytes()
    for size in (len(content) - 1, len(content) // 2, len(content) // 2 + 20):
        out.write_bytes(content[:size])
        with pytest.raises(ValueError, match="is not a file of tokens, or is damaged"):
            data.load(out)


@pytest.mark.parametrize(
    ("mode", "array", "position", "value"),
    [
        ("lines", "tokens", 5, 255),
        ("lines", "ends", 2, -7),
        ("lines", "ends", 2, 2**31 - 1),
        ("lines", "ends", -1, 5),
        ("lines", "dev_ends", 0, 2**31 - 1),
        ("lines", "test_ends", -1, -1),
        ("stream", "tokens", 0, 254),
        ("stream", "bounds", 0, 0),
        ("stream", "bounds", 1, 2**62),
        ("stream", "bounds", 1, -1),
    ],
)
def test_data_that_is_wrong_is_an_error_or_examples_that_are_there(
    text: Path, mode: str, array: str, position: int, value: int
) -> None:
    out = text.with_name("corpus.tokens")
    data.encode(text, out, mode=mode)
    _, _, arrays = token_files.read(out)
    wrong = arrays[array].clone()
    wrong[position] = value
    content = bytearray(out.read_bytes())
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    start, end = (8 + int.from_bytes(content[:8], "little") + offset for offset in header[array]["data_offsets"])
    content[start:end] = bytes(wrong.untyped_storage())
    out.write_bytes(content)
    refused = (IndexError, ValueError)
    message = "is not a file of tokens, or is damaged|too short|out of range|out of bounds|ends must|outside|must have"
    with suppress(*refused), explained(message):
        for split in splits(data.load(out)):
            for use in (lambda s: s.batch(torch.arange(len(s))), lambda s: s.distinct(), lambda s: [*s.parts(7)]):
                with suppress(*refused), explained(message):
                    use(split)


@contextmanager
def explained(message: str) -> Iterator[None]:
    """What goes wrong in the block is said in these words."""
    try:
        yield
    except (IndexError, ValueError) as error:
        if not re.search(message, str(error)):
            raise AssertionError(str(error)) from error
        raise


# The command


def test_training_on_a_file_of_tokens(run_charlm: CommandLine, text: Path, tmp_path: Path) -> None:
    training = (*SMALL_MLP, "--steps", 6)
    run_charlm.output("train", text, "--out", "of-text", *training)
    shown = run_charlm.output("encode", text, "--out", "corpus.tokens")
    assert shown == (
        "corpus: 19 characters; 120 / 13 / 29 examples in train / dev / test\n"
        "saved in corpus.tokens; train on it:\n  charlm train corpus.tokens\n"
    )
    run_charlm.output("train", "corpus.tokens", "--out", "of-tokens", *training)
    assert_same_weights(Path("of-text"), Path("of-tokens"))
    assert run_charlm.output("eval", "of-tokens") == run_charlm.output("eval", "of-text")
    assert run_charlm.output("eval", "of-text", "corpus.tokens") == run_charlm.output("eval", "of-text", text)
    run_charlm.output("train", "--resume", "of-tokens", "--steps", 9)
    run_charlm.output("train", "--resume", "of-text", "--steps", 9, "--quiet")
    assert_same_weights(Path("of-text"), Path("of-tokens"))


def test_the_file_has_what_it_was_encoded_with(run_charlm: CommandLine, text: Path) -> None:
    run_charlm.output("encode", text, "--mode", "stream", "--tokens", "words", "--min-count", 2, "--out", "w.tokens")
    run_charlm.output("train", "w.tokens", "--out", "words", *SMALL_MLP, "--steps", 2, "--context-length", 2)
    config = json.loads(Path("words/config.json").read_text())
    assert (config["training"]["mode"], config["training"]["tokens"]) == ("stream", "words")
    assert config["vocabulary"]["unknown"] == "<unk>"
    assert run_charlm.output("eval", "words").splitlines()[0] == "split      nll   perplexity        bits/word"
    assert list(json.loads(run_charlm.output("eval", "words", "--json"))["dev"])[2] == "bits_per_word"
    assert "<" in run_charlm.output("sample", "words", "-n", 20, "--seed", 1)
    assert run_charlm.error("train", "w.tokens", "--split-seed", 3, "--out", "other") == (
        "--split-seed cannot be given for a file of tokens, which was split and encoded"
    )
    assert run_charlm.error("train", "w.tokens", "--mode", "lines", "--out", "other") == (
        f"--mode must be 'stream', with which {Path('w.tokens').resolve()} was encoded, got 'lines'"
    )
    assert run_charlm.error("encode", text, "--mode", "stream", "--context-length", 3) == (
        "--context-length goes with --mode lines: a stream is for any"
    )
    assert run_charlm.error("encode", text, "--tokens", "bytes", "--min-count", 3) == (
        "--min-count goes with --tokens characters or --tokens words, not with --tokens bytes"
    )
