"""charlm.data: text files to examples, splits and distinct contexts."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from text_examples import check_split, line_examples, parts, splits, stream_examples

from charlm import data, token_arrays
from charlm.vocabulary import Vocabulary

WriteFile = Callable[[str | bytes], Path]

NAMES = ["emma", "olivia", "ava", "isabella", "sophia", "mia", "amelia", "evelyn", "abigail", "emily", "zoë", "ed"]
CONTEXT_LENGTHS = [1, 2, 3, 5, 16]

# Hypothesis calls a test many times with the same fixtures; the file is written anew each time.
on_one_file = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)


@pytest.fixture
def write(tmp_path: Path) -> WriteFile:
    def write(content: str | bytes) -> Path:
        path = tmp_path / "corpus.txt"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


def lines_of(text: str) -> list[str]:
    stripped = (line.rstrip() for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n"))
    return [line for line in stripped if line]


def check_lines(dataset: data.Dataset, lines: list[str], orders: Sequence[Sequence[int]]) -> None:
    """`orders` are the lines of train, dev and test."""
    for split, order in zip((dataset.train, dataset.dev, dataset.test), orders, strict=True):
        chosen = [lines[i] for i in order]
        check_split(split, line_examples(chosen, dataset.vocabulary, dataset.context_length))
    whole = [lines[i] for order in orders for i in order]
    check_split(dataset.all, line_examples(whole, dataset.vocabulary, dataset.context_length))


def random_orders(lines: int, first: int, second: int, seed: int, dtype: torch.dtype = torch.int32) -> list[list[int]]:
    shuffled = torch.randperm(lines, generator=torch.Generator().manual_seed(seed), dtype=dtype).tolist()
    return [sorted(shuffled[:first]), sorted(shuffled[first:second]), sorted(shuffled[second:])]


def makemore_orders(lines: int, first: int, second: int) -> list[list[int]]:
    shuffled = list(range(lines))
    random.seed(42)
    random.shuffle(shuffled)
    return [shuffled[:first], shuffled[first:second], shuffled[second:]]


# Lines mode


@pytest.mark.parametrize("context_length", CONTEXT_LENGTHS)
def test_lines(write: WriteFile, context_length: int) -> None:
    dataset = data.load(write("\n".join(NAMES)), context_length=context_length, seed=7)
    assert dataset.vocabulary == Vocabulary("".join(NAMES))
    assert (dataset.context_length, dataset.mode, dataset.name) == (context_length, "lines", "corpus")
    check_lines(dataset, NAMES, random_orders(12, 9, 10, seed=7))


@pytest.mark.parametrize("context_length", CONTEXT_LENGTHS)
def test_makemore_split_is_that_of_the_lecture_whatever_the_seed(write: WriteFile, context_length: int) -> None:
    dataset = data.load(write("\n".join(NAMES)), context_length=context_length, split="makemore", seed=7)
    check_lines(dataset, NAMES, makemore_orders(12, 9, 10))


@on_one_file
@given(
    lines=st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0.\r\n"), max_size=8), max_size=30),
    line_end=st.sampled_from(["\n", "\r\n", "\r"]),
    context_length=st.sampled_from(CONTEXT_LENGTHS),
    seed=st.integers(0, 2**32),
)
def test_lines_of_any_characters(
    write: WriteFile, lines: list[str], line_end: str, context_length: int, seed: int
) -> None:
    text = line_end.join([*NAMES, *lines])
    lines = lines_of(text)
    first, second = int(0.8 * len(lines)), int(0.9 * len(lines))
    dataset = data.load(write(text), context_length=context_length, seed=seed)
    assert dataset.vocabulary == Vocabulary("".join(lines))
    check_lines(dataset, lines, random_orders(len(lines), first, second, seed))


@pytest.mark.parametrize(("first_character", "dtype"), [("a", torch.uint8), ("一", torch.int16), ("𠀀", torch.int32)])
@pytest.mark.parametrize("mode", ["lines", "stream"])
def test_every_token_type(write: WriteFile, first_character: str, dtype: torch.dtype, mode: str) -> None:
    sizes = {torch.uint8: 26, torch.int16: 3000, torch.int32: 33000}
    characters = [chr(ord(first_character) + i) for i in range(sizes[dtype])]
    lines = ["".join(characters[i::5]) for i in range(5)] * 3
    dataset = data.load(write("\n".join(lines)), context_length=2, mode=mode)
    assert dataset.vocabulary.dtype == dtype
    if mode == "lines":
        expected = line_examples([lines[i] for order in random_orders(15, 12, 13, 42) for i in order], *parts(dataset))
    else:
        expected = stream_examples("\n".join(lines), *parts(dataset))
    assert dataset.all.tokens.dtype == dtype
    assert dataset.all.contexts.tolist() == [context for context, _ in expected]
    assert dataset.all.targets.tolist() == [target for _, target in expected]
    distinct = dataset.all.distinct()
    assert torch.equal(distinct.contexts[distinct.index], dataset.all.contexts)
    assert int(distinct.counts.values.sum()) == len(expected)


def test_white_space_is_that_of_python(write: WriteFile) -> None:
    spaces = "".join(c for c in map(chr, range(0x110000)) if c.isspace() and c not in "\r\n")
    text = "\n".join(["a" + spaces, " " + spaces, "b c" + spaces[::-1], "", "\td"])
    assert data.load(write(text), split="makemore").vocabulary.characters == ("\t", " ", ".", "a", "b", "c", "d")


@pytest.mark.parametrize("mode", ["lines", "stream"])
@pytest.mark.parametrize("line_end", ["\r\n", "\r"])
def test_byte_order_mark_and_line_ends_of_other_systems(write: WriteFile, mode: str, line_end: str) -> None:
    expected = data.load(write("\n".join([*NAMES, ""])), mode=mode)
    actual = data.load(write(b"\xef\xbb\xbf" + line_end.join([*NAMES, ""]).encode()), mode=mode)
    assert actual.vocabulary == expected.vocabulary
    assert actual.all.tokens.equal(expected.all.tokens)


def test_the_seed_decides_the_split(write: WriteFile) -> None:
    path = write("\n".join(NAMES))
    tokens = [data.load(path, seed=seed).all.tokens for seed in (1, 1, 2)]
    assert tokens[0].equal(tokens[1])
    assert not tokens[0].equal(tokens[2])


@pytest.mark.parametrize(
    ("lines", "sizes"),
    [
        (3, (1, 1, 1)),
        (4, (2, 1, 1)),
        (5, (3, 1, 1)),
        (9, (7, 1, 1)),
        (10, (8, 1, 1)),
        (11, (8, 1, 2)),
        (25, (20, 2, 3)),
    ],
)
@pytest.mark.parametrize("split", ["random", "makemore"])
def test_sizes_of_the_splits(write: WriteFile, lines: int, sizes: tuple[int, int, int], split: str) -> None:
    dataset = data.load(write("ab\n" * lines), split=split)
    assert (len(dataset.train) // 3, len(dataset.dev) // 3, len(dataset.test) // 3) == sizes
    assert len(dataset.all) == 3 * lines


def test_another_boundary_lets_lines_have_full_stops(write: WriteFile) -> None:
    vocabulary = Vocabulary("abc.", boundary="|")
    dataset = data.load(write("a.b\nc.\n.\n"), vocabulary=vocabulary, context_length=2)
    assert dataset.vocabulary is vocabulary
    check_lines(dataset, ["a.b", "c.", "."], random_orders(3, 1, 2, seed=42))


def test_a_larger_vocabulary_keeps_its_tokens(write: WriteFile) -> None:
    vocabulary = Vocabulary("".join(map(chr, range(97, 97 + 300))))
    dataset = data.load(write("\n".join(NAMES)), vocabulary=vocabulary)
    assert dataset.train.tokens.dtype == torch.int16
    assert dataset.train.vocab_size == 301
    check_lines(dataset, NAMES, random_orders(12, 9, 10, seed=42))


def test_contexts_of_tokens_of_two_bytes_are_told_apart() -> None:
    """1 * 256 + 5 is 0 * 256 + 261."""
    split = data.Split(torch.tensor([1, 5, 0, 261, 7], dtype=torch.int16), torch.tensor([3]), 2, 300)
    assert split.distinct().contexts.tolist() == [[1, 5], [5, 0], [0, 261]]


@pytest.mark.parametrize("context_length", [1, 3])
def test_int64_indices(write: WriteFile, monkeypatch: pytest.MonkeyPatch, context_length: int) -> None:
    """The code for 2^31 examples and more, on few."""
    assert token_arrays.index_dtype(2**31 - 1) == torch.int32
    assert token_arrays.index_dtype(2**31) == torch.int64
    monkeypatch.setattr(token_arrays, "index_dtype", lambda size: torch.int64)
    path = write("\n".join(NAMES))
    dataset = data.load(path, context_length=context_length)
    assert dataset.all.ends.dtype == dataset.all.distinct().index.dtype == torch.int64
    check_lines(dataset, NAMES, random_orders(12, 9, 10, 42, torch.int64))
    stream = data.load(path, context_length=context_length, mode="stream")
    check_split(stream.all, stream_examples("\n".join(NAMES), *parts(stream)))


# Stream mode


@pytest.mark.parametrize("context_length", [1, 2, 3, 5])
def test_stream(write: WriteFile, context_length: int) -> None:
    text = "\n".join(NAMES) + "\n. "
    dataset = data.load(write(text), context_length=context_length, mode="stream")
    assert dataset.vocabulary == Vocabulary(text, boundary="\n")
    first, second = int(0.8 * len(text)), int(0.9 * len(text))
    check_split(dataset.train, stream_examples(text[:first], *parts(dataset)))
    check_split(dataset.dev, stream_examples(text[first:second], *parts(dataset)))
    check_split(dataset.test, stream_examples(text[second:], *parts(dataset)))
    check_split(dataset.all, stream_examples(text, *parts(dataset)))


@on_one_file
@given(
    text=st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), min_size=20, max_size=80),
    context_length=st.integers(1, 20),
)
def test_stream_of_any_characters(write: WriteFile, text: str, context_length: int) -> None:
    text = "a" * 10 * context_length + text
    dataset = data.load(write(text), context_length=context_length, mode="stream")
    assert dataset.vocabulary == Vocabulary(text, boundary="\n")
    check_split(dataset.all, stream_examples(text, *parts(dataset)))
    check_split(dataset.test, stream_examples(text[int(0.9 * len(text)) :], *parts(dataset)))


def test_stream_over_the_embedded_names_has_27_symbols() -> None:
    dataset = data.load(mode="stream")
    assert "".join(dataset.vocabulary.characters) == "\nabcdefghijklmnopqrstuvwxyz"
    assert dataset.vocabulary.boundary == 0
    assert dataset.vocabulary.decode(dataset.train.tokens[:12]) == "aaban\naabha\n"


def test_the_splits_of_a_stream_share_no_token(write: WriteFile) -> None:
    dataset = data.load(write("".join(map(chr, range(0x100, 0x200)))), mode="stream")
    seen = [set(split.contexts.flatten().tolist()) | set(split.targets.tolist()) for split in splits(dataset)[:3]]
    assert seen == [set(range(1, 205)), set(range(205, 231)), set(range(231, 257))]


# A file for each split


def write_three(folder: Path, texts: Sequence[str]) -> dict[str, Path]:
    paths = {name: folder / f"{name}.txt" for name in ("path", "dev", "test")}
    for path, text in zip(paths.values(), texts, strict=True):
        path.write_text(text)
    return paths


@pytest.mark.parametrize("context_length", [1, 3, 5])
def test_lines_of_three_files(tmp_path: Path, context_length: int) -> None:
    texts = (NAMES[:7], ["zoë"], NAMES[7:10])
    paths = write_three(tmp_path, ["\n".join(lines) for lines in texts])
    dataset = data.load(**paths, context_length=context_length)
    # That of all three: "z" and "ë" are in dev only.
    lines = [line for text in texts for line in text]
    assert dataset.vocabulary == Vocabulary("".join(lines))
    assert dataset.name == "path"
    check_lines(dataset, lines, [range(7), range(7, 8), range(8, 11)])
    assert len({split.tokens.untyped_storage().data_ptr() for split in splits(dataset)}) == 1


@pytest.mark.parametrize("context_length", [1, 3])
def test_streams_of_three_files(tmp_path: Path, context_length: int) -> None:
    texts = ["emma\nolivia\n", "mia\n.\n", "zoë\n"]
    dataset = data.load(**write_three(tmp_path, texts), context_length=context_length, mode="stream")
    assert dataset.vocabulary == Vocabulary("".join(texts), boundary="\n")
    for split, text in zip(splits(dataset), [*texts, "".join(texts)], strict=True):
        check_split(split, stream_examples(text, *parts(dataset)))


def test_three_files_have_int64_indices_where_they_need_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_arrays, "index_dtype", lambda size: torch.int64)
    dataset = data.load(**write_three(tmp_path, ["emma\nava", "mia", "ed\nzoë"]))
    assert dataset.all.ends.dtype == torch.int64
    check_lines(dataset, ["emma", "ava", "mia", "ed", "zoë"], [range(2), range(2, 3), range(3, 5)])


def test_the_whole_of_a_text(write: WriteFile) -> None:
    vocabulary = Vocabulary("abc")
    whole = data.load_whole(write("abc\n"), context_length=2, mode="lines", vocabulary=vocabulary)
    check_split(whole, line_examples(["abc"], vocabulary, 2))
    stream = data.load_whole(write("ab.c"), context_length=2, mode="stream")
    check_split(stream, stream_examples("ab.c", Vocabulary("abc.", boundary="\n"), 2))


# The boundary


def test_lines_with_full_stops_have_another_boundary(write: WriteFile) -> None:
    lines = ["Dr. Smith went home.", "...", "a.b"]
    dataset = data.load(write("\n".join(lines)), context_length=2)
    assert dataset.vocabulary == Vocabulary("".join(lines), boundary="\n")
    assert len(dataset.vocabulary) == len({*"".join(lines)}) + 1
    check_lines(dataset, lines, random_orders(3, 1, 2, seed=42))
    assert dataset.vocabulary.boundary not in dataset.vocabulary.encode("".join(lines))


def test_the_boundary_of_a_text_is_in_none_of_its_lines(write: WriteFile) -> None:
    for text in ("emma\nava\nmia", "Dr. Who\nNo.\n. . ."):
        vocabulary = data.load(write(text)).vocabulary
        assert vocabulary == Vocabulary.from_text(text.replace("\n", ""))
        assert not any(vocabulary.characters[vocabulary.boundary] in line for line in text.split("\n"))


# Any mode


@pytest.mark.parametrize("mode", ["lines", "stream"])
def test_splits_are_views_of_one_array_of_tokens(mode: str) -> None:
    dataset = data.load(mode=mode)
    assert len({split.tokens.untyped_storage().data_ptr() for split in splits(dataset)}) == 1
    assert dataset.all.tokens.untyped_storage().nbytes() == len(dataset.all.tokens)
    if mode == "stream":
        assert dataset.train.contexts.untyped_storage().data_ptr() == dataset.train.tokens.untyped_storage().data_ptr()
        assert dataset.train.contexts.stride() == (1, 1)
        assert dataset.train.targets.data_ptr() == dataset.train.tokens[3:].data_ptr()


def test_rows_of_counts(write: WriteFile) -> None:
    counts = data.load(write("\n".join(NAMES))).all.distinct().counts
    dense = counts[:]
    for rows in (slice(0, 5), slice(3, 4), slice(5, None), slice(-2, None), slice(4, 4), slice(6, 2), slice(0, 9999)):
        assert torch.equal(counts[rows], dense[rows])
    with pytest.raises(ValueError, match=r"^rows of counts come in steps of 1, got 2$"):
        counts[::2]


def test_batches_of_any_integer_type(write: WriteFile) -> None:
    split = data.load(write("abcdefgh\n" * 40)).all
    assert len(split) == 360
    expected = split.batch(torch.tensor([9, 200]))
    for dtype in (torch.uint8, torch.int16, torch.int32):
        for actual, wanted in zip(split.batch(torch.tensor([9, 200], dtype=dtype)), expected, strict=True):
            assert torch.equal(actual, wanted)
    contexts, targets = split.batch(torch.empty(0, dtype=torch.int64))
    assert contexts.tolist() == []
    assert contexts.shape == (0, 3)
    assert targets.tolist() == []


def test_repr(write: WriteFile) -> None:
    assert repr(data.load().train) == "Split(175,781 examples, context_length=3)"
