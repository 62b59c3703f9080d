"""Bytes, words, and tokens for what is rare: what a text becomes, and what becomes of it again."""

from __future__ import annotations

import re
import string
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from text_examples import check_split

import charlm
from charlm import data
from charlm.models import CountBigram
from charlm.vocabulary import TokensAre, Vocabulary

any_text = st.text(st.characters(codec="utf-8", exclude_characters="\0"))


def words_of(text: str) -> list[str]:
    """The definition, for texts of ASCII."""
    return re.findall(r"<unk>|\w+(?:'\w+)*|[^\w\s]", text, re.ASCII)


# Bytes


@given(any_text)
def test_bytes_of_any_text(text: str) -> None:
    vocabulary = Vocabulary.of_bytes()
    tokens = vocabulary.encode(text)
    assert bytes(tokens.tolist()) == text.encode()
    assert tokens.dtype == torch.uint8
    assert vocabulary.decode(tokens) == text


def test_bytes_that_are_no_text_are_shown_as_such() -> None:
    vocabulary = Vocabulary.of_bytes()
    assert vocabulary.decode([0x61, 0xC3, 0xAB, 0xC3, 0x62]) == "aë�b"
    assert len(vocabulary) == 256
    assert vocabulary.symbols[0x61] == "a"
    assert vocabulary.symbols[0xE9] == "<0xE9>"
    assert vocabulary.symbols[vocabulary.boundary] == "\n"
    with pytest.raises(AttributeError, match="a vocabulary of bytes has symbols, but no characters"):
        _ = vocabulary.characters


def test_a_file_of_any_bytes(tmp_path: Path) -> None:
    content = bytes(range(256)) * 3 + b"\r\n\xef\xbb\xbf"
    path = tmp_path / "photo.bin"
    path.write_bytes(content)
    dataset = data.load(path, mode="stream", tokens="bytes")
    assert bytes(dataset.all.tokens.tolist()) == content
    # A line ends at "\n" only, and white space at its end is not part of it: here "\t".
    path.write_bytes(b"ab\xff \r\n\r\nc\rd\n\xc3\xa9")
    lines = data.load(path, tokens="bytes", split="makemore", context_length=1)
    assert lines.vocabulary == Vocabulary.of_bytes()
    decoded = bytes(lines.all.tokens.tolist())
    assert sorted(decoded.strip(b"\n").split(b"\n")) == [b"ab\xff", b"c\rd", b"\xc3\xa9"]


# Words


@given(st.text(st.sampled_from(string.printable)) | st.text(st.sampled_from("ab'<>unk, \n-_.9")))
def test_words_are_what_the_rule_says(text: str) -> None:
    words = words_of(text)
    vocabulary = Vocabulary.of_words([*words, "a"])
    stream = [vocabulary.symbols[token] for token in vocabulary.encode(text).tolist()]
    assert [word for word in stream if word != "\n"] == words
    paragraphs = [words_of(paragraph) for paragraph in re.split(r"\n\s*\n", text)]
    expected = [word for paragraph in paragraphs if paragraph for word in ["\n", *paragraph]][1:]
    assert stream == expected


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=9)))
def test_lines_of_words_come_back(tmp_path_factory: pytest.TempPathFactory, lines: list[str]) -> None:
    path = tmp_path_factory.getbasetemp() / "words.txt"
    path.write_bytes("\n".join(["it's one", "two, two", "three", *lines]).encode())
    dataset = data.load(path, tokens="words", context_length=2)
    vocabulary = dataset.vocabulary
    text = vocabulary.decode(dataset.all.tokens)
    again = [vocabulary.encode(line) for line in text.split("\n") if line]
    tokens = [token for token in dataset.all.tokens.tolist() if token != vocabulary.boundary]
    assert torch.cat(again).tolist() == tokens


def test_words_beyond_ascii() -> None:
    text = "Zoë’s “naïve” 中文，世界。don't…'quoted' x²"
    vocabulary = Vocabulary.from_text(text, tokens="words")
    found = [vocabulary.symbols[token] for token in vocabulary.encode(text).tolist()]
    expected = ["Zoë’s", "“", "naïve", "”", "中文", "，", "世界", "。", "don't", "…", "'", "quoted", "'", "x", "²"]
    assert found == expected
    assert vocabulary.decode(vocabulary.encode("don't x")) == "don't x"


def test_splits_of_words(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("to be or\nnot to be\n\nthat is\n")
    dataset = data.load(path, tokens="words", context_length=2)
    vocabulary = dataset.vocabulary
    assert vocabulary.symbols == ("\n", "be", "is", "not", "or", "that", "to")
    assert (vocabulary.tokens_are, vocabulary.boundary, vocabulary.unknown) == ("words", 0, None)

    order = torch.randperm(3, generator=torch.Generator().manual_seed(42), dtype=torch.int32).tolist()
    lines = ["to be or", "not to be", "that is"]
    expected = []
    for line in [lines[i] for i in order]:
        tokens = [0, 0, *vocabulary.encode(line).tolist(), 0]
        expected += [(tokens[i : i + 2], tokens[i + 2]) for i in range(len(tokens) - 2)]
    check_split(dataset.all, expected)
    stream = data.load(path, tokens="words", context_length=1, mode="stream", dev=path, test=path)
    assert stream.vocabulary.decode(stream.train.tokens) == "to be or not to be\nthat is"
    assert stream.vocabulary == vocabulary


# What is rare


@given(st.text(st.sampled_from("aaabbcde.�é"), min_size=1), st.integers(1, 9), st.integers(1, 4))
def test_the_most_frequent_characters(text: str, limit: int, least: int) -> None:
    vocabulary = Vocabulary.from_text(text, limit_vocab=limit, min_count=least)
    counts = Counter(text)
    kept = sorted((c for c in counts if counts[c] >= least), key=lambda c: (-counts[c], c.encode()))[:limit]
    boundary = "\n" if "." in text else "."
    assert set(vocabulary.symbols) == {*kept, boundary, "�"}
    assert vocabulary.unknown == vocabulary.symbols.index("�")
    shown = "".join(c if c in kept else "�" for c in text)
    assert vocabulary.decode(vocabulary.encode(text)) == shown
    assert Vocabulary.from_dict(vocabulary.to_dict()) == vocabulary
    assert vocabulary.encode("中🎉").tolist() == [vocabulary.unknown] * 2


def test_the_most_frequent_words(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("the cat\nthe dog\nthe <unk>\na cat\n")
    vocabulary = data.load(path, tokens="words", limit_vocab=2).vocabulary
    assert vocabulary.symbols == ("\n", "<unk>", "cat", "the")
    assert vocabulary.unknown == 1
    assert vocabulary.encode("a bird, the cat").tolist() == [1, 1, 1, 3, 2]
    assert data.load(path, tokens="words", min_count=2).vocabulary == vocabulary
    # A text that has been limited before says so.
    assert data.load(path, tokens="words").vocabulary.unknown == 1
    assert Vocabulary.from_dict(vocabulary.to_dict()) == vocabulary


def test_a_boundary_in_a_line_is_unknown_where_there_is_such_a_token(tmp_path: Path) -> None:
    path = tmp_path / "lines.txt"
    path.write_text("a.b\nab\nb\n")
    vocabulary = Vocabulary("ab", unknown=True)
    dataset = data.load(path, vocabulary=vocabulary, split="makemore", context_length=1)
    assert sorted(vocabulary.decode(dataset.all.tokens).strip(".").split(".")) == ["ab", "a�b", "b"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Vocabulary.of_words([]), "words must not be empty"),
        (lambda: Vocabulary.of_words(["a b"]), "'a b' is not a word"),
        (lambda: Vocabulary.of_words(["a", "\ud800"]), r"words[1] = '\ud800' is not a word"),
        (
            lambda: Vocabulary("ab", boundary="�", unknown=True),
            "boundary = '�' is what unknown characters are shown",
        ),
        (lambda: Vocabulary.from_text("a", limit_vocab=0), "limit_vocab must be a positive integer or None, got 0"),
        (lambda: Vocabulary.from_text("a", min_count=0), "min_count must be a positive integer or None, got 0"),
        (lambda: Vocabulary.from_text("a", tokens="bytes", min_count=2), "limit_vocab and min_count are of characters"),
        (lambda: Vocabulary.from_text(" ", tokens="words"), "text must not be empty"),
        (lambda: Vocabulary.from_text("a", tokens="letters"), "tokens must be one of characters, bytes, words, got"),
        (
            lambda: Vocabulary.from_text("a", tokens="words").encode("a, b"),
            "text[1] = ',' is not in the vocabulary",
        ),
        (lambda: Vocabulary.from_dict({"bytes": 255}), "bytes must be 256, got 255"),
        (lambda: Vocabulary.from_dict({"words": "ab"}), "words must be a list of strings, got 'ab'"),
        (lambda: Vocabulary.from_dict({"words": ["a"], "unknown": "?"}), "unknown must be '<unk>', got '?'"),
        (lambda: data.load(tokens="words", encoding="hex"), "encoding must be an encoding of text that Python knows"),
        (
            lambda: data.load(tokens="bytes", encoding="latin-1"),
            "encoding='latin-1' is of characters, but tokens=",
        ),
    ],
)
def test_bad_input(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        make()  # type: ignore[operator]


# What a model draws


@pytest.mark.parametrize("tokens", ["bytes", "words"])
def test_a_model_draws_texts_of_its_tokens(tmp_path: Path, tokens: TokensAre) -> None:
    path = tmp_path / "lines.txt"
    path.write_text("zoë is here.\nzoë was here!\nana is there.\n" * 4)
    dataset = data.load(path, tokens=tokens, context_length=1)
    model = CountBigram(len(dataset.vocabulary)).fit(dataset.all)
    texts = charlm.sample(model, dataset.vocabulary, 200, seed=1)
    # The pairs of tokens are those of the lines, and nothing else.
    pairs = set(zip(dataset.all.contexts[:, 0].tolist(), dataset.all.targets.tolist(), strict=True))
    for text in texts:
        drawn = [dataset.vocabulary.boundary, *dataset.vocabulary.encode(text).tolist(), dataset.vocabulary.boundary]
        assert set(pairwise(drawn)) <= pairs
    if tokens == "words":
        assert set(texts) <= {f"{a} {b} {c} {d}" for a in ("zoë", "ana") for b in ("is", "was") for c, d in HERE}
    begun = charlm.sample(model, dataset.vocabulary, 9, prefix="zoë", seed=1)
    assert all(text.startswith("zoë") for text in begun)
    longest = charlm.sample(model, dataset.vocabulary, 3, seed=1, stop=False, max_length=50)
    if tokens == "words":
        assert [len(re.findall(r"\S+|\n", text.replace("!", " !").replace(".", " ."))) for text in longest] == [50] * 3
    with pytest.raises(ValueError, match="the boundary, where a text ends"):
        charlm.sample(model, dataset.vocabulary, 1, prefix="zoë\n\nana")


HERE = (("here", "."), ("here", "!"), ("there", "."))
