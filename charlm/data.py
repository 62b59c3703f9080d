"""Text files as examples, in three splits."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from charlm import sources, token_arrays, token_files
from charlm._buffers import to_buffer
from charlm._memory import check_memory
from charlm._rules import check, check_type
from charlm._text_extension import _text
from charlm.arrangement import (
    SPLITS,
    Arrays,
    SplitMethod,
    TooFewLinesError,
    arrange_lines,
    arrange_stream,
    check_length,
    framed,
)
from charlm.sources import Source
from charlm.splits import Distinct, Split, TargetCounts
from charlm.token_arrays import ArraySizes, OnRead, Texts, new_arrays
from charlm.vocabulary import TokensAre, Vocabulary

__all__ = [
    "Dataset",
    "Distinct",
    "Split",
    "TargetCounts",
    "TooFewLinesError",
    "encode",
    "is_encoded",
    "load",
    "load_whole",
]

Mode = Literal["lines", "stream"]

# Makes the arrays of some texts in this vocabulary.
AllocateFor = Callable[[Texts, Vocabulary, ArraySizes], dict[str, Tensor]]

# The given names of names.md.
EMBEDDED_NAMES = Path(__file__).with_name("names.txt")


def in_memory(about: Texts, vocabulary: Vocabulary, arrays: ArraySizes) -> dict[str, Tensor]:
    """New arrays, whatever they are for."""
    return new_arrays(arrays)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Three splits of one text, or of three, and the whole of it.

    Attributes:
        train, dev, test: 80, 10 and 10 % of the text, or a text each; views of `all`.
        all: the whole text as one split. In stream mode it has 2 T examples more than the three together.
        vocabulary: of the whole text, unless one was given.
        context_length: T.
        mode: "lines" or "stream".
        name: of the file, or "names" for the embedded names.
        sha256: of the vocabulary and the tokens, if a file of tokens has it, as `charlm.fingerprint` would compute it.
        piped: the texts that came out of a pipe and cannot be read again, by the argument of `load`.
    """

    train: Split
    dev: Split
    test: Split
    all: Split
    vocabulary: Vocabulary
    context_length: int
    mode: Mode
    name: str
    sha256: str | None = None
    piped: Mapping[str, bytes] = field(default_factory=dict)


def load(
    path: str | os.PathLike[str] | None = None,
    *,
    dev: str | os.PathLike[str] | None = None,
    test: str | os.PathLike[str] | None = None,
    context_length: int | None = None,
    mode: Mode | None = None,
    split: SplitMethod | None = None,
    seed: int | None = None,
    vocabulary: Vocabulary | None = None,
    tokens: TokensAre | None = None,
    limit_vocab: int | None = None,
    min_count: int | None = None,
    encoding: str | None = None,
    on_read: OnRead | None = None,
) -> Dataset:
    """The examples of a text file, split 80/10/10 into train, dev and test; or of a file for each of them.

    What `encode` has written is mapped into memory instead, and read where it is used: any number of tokens is there at
    once. Such a file has `mode` and `tokens`, and of lines `context_length`, which then may be left out, and has been
    split.

    A byte order mark is dropped, and "\\r\\n" and "\\r" are read as "\\n".

    `mode="lines"`: every line, such as a name or a sentence, is a text of its own, which starts from T boundaries and
    ends with one. Trailing white space is dropped, and blank lines are skipped. The boundary is a token of its own,
    which no line has in it: see `Vocabulary`. Whole lines go into the splits.

    `mode="stream"`: the file is one text, and every character of it a token, "\\n" included. "\\n" is also the
    boundary: a file of names has 27 symbols, and contexts cross from one name into the next. The splits are contiguous,
    and no example crosses from one into another: the first T tokens of each are context only.

    Args:
        path: the file; without one, the embedded names of the United States (names.md). A pipe is read to its end, and
            so is standard input, which is "-".
        dev, test: files of their own, both or neither; then `path` is that of train, and nothing is shuffled. The
            vocabulary is that of all three, so that a character of dev that train lacks has a token, never trained.
        context_length: T, from 1 to 2^31 - 1; 3 by default.
        mode: "lines", which is the default, or "stream".
        split: "random", the default, chooses the lines of each split by torch.randperm from `seed`; they keep their
            order. "makemore" does as the lecture, whatever the seed: `random.seed(42); random.shuffle(lines)`, and
            cuts, which on makemore's names.txt gives 182,625 / 22,655 / 22,866 examples at T = 3. A stream is never
            shuffled.
        seed: of the random split; 42 by default.
        vocabulary: encode with this one, for a model that was trained with it, instead of that of the file.
        tokens: what tokens stand for: "characters", which is the default; "bytes", of any file, as they are; or "words"
            and punctuation marks. White space separates words; in a stream an empty line, which ends a paragraph, is a
            boundary.
        limit_vocab: only so many characters or words have a token, the most frequent ones; all others share one.
        min_count: only those have a token that occur at least so often; all others share one.
        encoding: of the text, a name that Python knows; None is UTF-8, or what a byte order mark says.
        on_read: called with the number of bytes read, and with that of all that will be, each file several times.

    Raises:
        OSError: a file cannot be read.
        TypeError: `vocabulary` is none, or a path is no path.
        ValueError: a file is empty, not text, too short, or neither a file nor a pipe; a character is not in
            `vocabulary`; another argument is out of its range.

    Source of the makemore split: Karpathy, "nn-zero-to-hero", makemore part 2.
    """
    options = _Options(path, dev, test, context_length, mode, split, seed, tokens, limit_vocab, min_count, encoding)
    check_type("vocabulary", vocabulary, Vocabulary, type(None))
    if path is not None and is_encoded(path):
        return _load_encoded(options, vocabulary)
    read = _read(options.complete(), vocabulary, on_read, in_memory)
    return _dataset(read.arrays, read.vocabulary, read.context_length, read.mode, read.name, piped=read.piped)


def encode(
    path: str | os.PathLike[str] | None,
    out: str | os.PathLike[str],
    *,
    dev: str | os.PathLike[str] | None = None,
    test: str | os.PathLike[str] | None = None,
    context_length: int | None = None,
    mode: Mode | None = None,
    split: SplitMethod | None = None,
    seed: int | None = None,
    tokens: TokensAre | None = None,
    limit_vocab: int | None = None,
    min_count: int | None = None,
    encoding: str | None = None,
    on_read: OnRead | None = None,
) -> Dataset:
    """Writes the tokens of a text into a file, which `load` maps into memory: the text may be larger than that.

    Args:
        path: as in `load`, and so are all others.
        out: the file, in the safetensors format; it is replaced where it is there, and its folder is created.

    Returns:
        What `load(out)` does.

    Raises:
        OSError: a file cannot be read, or `out` cannot be written, for which the disk must have room.
        TypeError, ValueError: as `load`.
    """
    options = _Options(path, dev, test, context_length, mode, split, seed, tokens, limit_vocab, min_count, encoding)
    check_type("out", out, str, os.PathLike)
    if path is not None and is_encoded(path):
        raise ValueError(f"{os.fspath(path)} is a file of tokens already")
    with ExitStack() as stack:
        digest: list[str] = []

        def on_disk(about: Texts, vocabulary: Vocabulary, arrays: ArraySizes) -> dict[str, Tensor]:
            nonlocal digest
            described = {
                "name": about.sources[0].name,
                "mode": "lines" if about.by_line else "stream",
                "context_length": complete.context_length if about.by_line else 0,
                "vocabulary": vocabulary.to_dict(),
            }
            made, digest = stack.enter_context(token_files.created(Path(out), described, arrays))
            return made

        complete = options.complete()
        read = _read(complete, None, on_read, on_disk)
        length = read.context_length if read.mode == "lines" else 1
        digest.append(sha256(_dataset(read.arrays, read.vocabulary, length, read.mode, read.name)))
    return load(out, context_length=context_length)


def is_encoded(path: str | os.PathLike[str]) -> bool:
    """Whether `encode` has written a file."""
    return token_files.is_token_file(path)


def load_whole(
    path: str | os.PathLike[str],
    *,
    context_length: int,
    mode: Mode,
    vocabulary: Vocabulary | None = None,
    encoding: str | None = None,
) -> Split:
    """All examples of a text in the order of the file, as one split: for texts of any length that has one example.

    Arguments and errors are those of `load`.
    """
    check_type("vocabulary", vocabulary, Vocabulary, type(None))
    options = _Options(path, None, None, context_length, mode, None, None, None, None, None, encoding)
    if is_encoded(path):
        return _load_encoded(options, vocabulary).all
    with _opened(options.paths, encoding) as texts:
        source = texts["path"]
        tokens: TokensAre = "characters" if vocabulary is None else vocabulary.tokens_are
        reading = Texts([source], mode == "lines", tokens)
        check_memory(source.path, source.size)
        counts = reading.count()
        vocabulary = vocabulary or _vocabulary_of(counts, mode, tokens, None, None)
        if mode == "lines":
            arrays = framed(reading, vocabulary, None, context_length, new_arrays, ("tokens", "ends"))
            return Split(arrays["tokens"], arrays["ends"], context_length, len(vocabulary))
        check_length(source.path, "the text", counts[0].tokens, counts[0].tokens, context_length, vocabulary)
        encoded = new_arrays({"tokens": (counts[0].tokens, vocabulary.dtype)})["tokens"]
        reading.encode_stream(vocabulary, counts, encoded)
        return _stream(encoded, context_length, vocabulary)


_DEFAULTS: dict[str, Any] = {
    "context_length": 3,
    "mode": "lines",
    "split": "random",
    "seed": 42,
    "tokens": "characters",
}


@dataclass(frozen=True)
class _Options:
    """What a text is read with; None where it was not said."""

    path: str | os.PathLike[str] | None
    dev: str | os.PathLike[str] | None
    test: str | os.PathLike[str] | None
    context_length: Any
    mode: Any
    split: Any
    seed: Any
    tokens: Any
    limit_vocab: int | None
    min_count: int | None
    encoding: str | None

    def __post_init__(self) -> None:
        for name in ("context_length", "mode", "split", "seed", "tokens", "limit_vocab", "min_count", "encoding"):
            value = getattr(self, name)
            if value is not None:
                check(name, value)
        if self.mode == "stream" and self.split == "makemore":
            raise ValueError("split='makemore' shuffles lines, but mode='stream' keeps the text in one piece")
        own = [name for name in ("dev", "test") if getattr(self, name) is not None]
        if len(own) == 1:
            raise ValueError(f"dev and test go together: give a file for both, or for neither, got {own[0]} alone")
        if own and self.split == "makemore":
            raise ValueError("split='makemore' divides one file, but dev and test have files of their own")
        if self.tokens == "bytes" and self.encoding is not None:
            raise ValueError(f"encoding={self.encoding!r} is of characters, but tokens='bytes' are read as they are")

    def complete(self) -> _Options:
        """With the defaults."""
        defaults: dict[str, Any] = {
            "context_length": 3,
            "mode": "lines",
            "split": "random",
            "seed": 42,
            "tokens": "characters",
        }
        return replace(self, **{name: value for name, value in defaults.items() if getattr(self, name) is None})

    @property
    def paths(self) -> dict[str, str | os.PathLike[str]]:
        """The files by argument."""
        paths = {"path": EMBEDDED_NAMES if self.path is None else self.path, "dev": self.dev, "test": self.test}
        return {name: path for name, path in paths.items() if path is not None}


@dataclass(frozen=True)
class _Read:
    """What came of reading: see `_dataset`."""

    arrays: dict[str, Tensor]
    vocabulary: Vocabulary
    context_length: int
    mode: Mode
    name: str
    piped: dict[str, bytes]


def _read(options: _Options, vocabulary: Vocabulary | None, on_read: OnRead | None, allocate: AllocateFor) -> _Read:
    """Reads texts with options that are complete."""
    mode = options.mode
    with _opened(options.paths, options.encoding) as texts:
        tokens = options.tokens if vocabulary is None else vocabulary.tokens_are
        reading = Texts(list(texts.values()), mode == "lines", tokens, on_read)
        if allocate is in_memory:
            for source in reading.sources:
                check_memory(source.path, source.size)
        counts = reading.count()
        vocabulary = vocabulary or _vocabulary_of(counts, mode, tokens, options.limit_vocab, options.min_count)
        piped = {name: source.content or b"" for name, source in texts.items() if not source.is_file}
        arrange = arrange_lines if mode == "lines" else arrange_stream
        how = (options.context_length, options.split, options.seed)
        arrays = arrange(reading, counts, vocabulary, *how, partial(allocate, reading, vocabulary))
    return _Read(arrays, vocabulary, options.context_length, mode, texts["path"].name, piped)


def _load_encoded(options: _Options, vocabulary: Vocabulary | None) -> Dataset:
    assert options.path is not None
    path = os.fspath(options.path)
    for name in ("dev", "test", "split", "seed", "limit_vocab", "min_count", "encoding"):
        if getattr(options, name) is not None:
            raise ValueError(f"{name} is for a text, but {path} is a file of tokens, which was split and encoded")
    described, own, arrays = token_files.read(path)
    if vocabulary is not None and own != vocabulary:
        raise ValueError(f"{path} was encoded with another vocabulary, of {len(own)} {own.tokens_are}")
    known: dict[str, Any] = {"mode": described["mode"], "tokens": own.tokens_are}
    if described["mode"] == "lines":
        known["context_length"] = described["context_length"]
    for name, value in known.items():
        given = getattr(options, name)
        if given is not None and given != value:
            raise ValueError(f"{name} must be {value!r}, with which {path} was encoded, got {given!r}")
    length = known.get("context_length", options.context_length or 3)
    if described["mode"] == "stream":
        bounds = [0, *arrays["bounds"].tolist(), len(arrays["tokens"])]
        for name, start, stop in zip(SPLITS, bounds, bounds[1:], strict=False):
            check_length(path, name, len(arrays["tokens"]), stop - start, length, own)
    return _dataset(arrays, own, length, described["mode"], described["name"], described["sha256"])


def sha256(dataset: Dataset) -> str:
    """A digest of the vocabulary in JSON and the tokens of train, dev and test, in hexadecimal.

    It is computed at about the speed at which a text is read, unless a file of tokens has it.
    """
    if dataset.sha256 is not None:
        return dataset.sha256
    digest = hashlib.sha256(json.dumps(dataset.vocabulary.to_dict()).encode())
    for split in (dataset.train, dataset.dev, dataset.test):
        digest.update(f"|{len(split)}|".encode())
        digest.update(to_buffer(split.tokens.contiguous()))
    return digest.hexdigest()


@contextmanager
def _opened(paths: Mapping[str, str | os.PathLike[str]], encoding: str | None) -> Iterator[dict[str, Source]]:
    if sum(str(path) in sources.STANDARD_INPUT for path in paths.values()) > 1:
        raise ValueError("standard input can be read only once")
    opened: dict[str, Source] = {}
    try:
        for name, path in paths.items():
            opened[name] = sources.read(path, encoding)
        yield opened
    finally:
        for source in opened.values():
            source.close()


def _vocabulary_of(
    counts: Sequence[_text.Counts], mode: Mode, tokens: TokensAre, limit_vocab: int | None, min_count: int | None
) -> Vocabulary:
    """That of all texts."""
    total: Counter[bytes] = Counter()
    for count in counts:
        total.update(dict(count.sorted()))
    boundary = "\n" if mode == "stream" else None
    return Vocabulary.from_counts(total, boundary, tokens=tokens, limit_vocab=limit_vocab, min_count=min_count)


def _dataset(
    arrays: Arrays,
    vocabulary: Vocabulary,
    context_length: int,
    mode: Mode,
    name: str,
    sha256: str | None = None,
    piped: Mapping[str, bytes] | None = None,
) -> Dataset:
    # Of what is on the disk no more is looked at than must be.
    new_split = Split if sha256 is None else Split.mapped
    tokens = arrays["tokens"]
    splits: list[Split] = []
    if mode == "stream":
        first, second = arrays["bounds"].tolist()
        bounds = ((0, first), (first, second), (second, len(tokens)), (0, len(tokens)))
        splits += [_stream(tokens[start:stop], context_length, vocabulary) for start, stop in bounds]
    else:
        ends, dev_ends, test_ends = arrays["ends"], arrays["dev_ends"], arrays["test_ends"]
        own = (ends[: len(ends) - len(dev_ends) - len(test_ends)], dev_ends, test_ends)
        start = 0
        for part in own:
            # Closed by the first boundary of the next line.
            size = int(part[-1]) + len(part) * (context_length - 1)
            splits.append(new_split(tokens[start : start + size + 1], part, context_length, len(vocabulary)))
            start += size
        splits.append(new_split(tokens, ends, context_length, len(vocabulary)))
    train, dev, test, whole = splits
    return Dataset(train, dev, test, whole, vocabulary, context_length, mode, name, sha256, piped or {})


def _stream(tokens: Tensor, context_length: int, vocabulary: Vocabulary) -> Split:
    examples = len(tokens) - context_length
    ends = torch.tensor([examples], dtype=token_arrays.index_dtype(examples), device="cpu")
    return Split(tokens, ends, context_length, len(vocabulary))
