"""charlm.vocabulary: characters to tokens and back."""

from __future__ import annotations

import copy
import json
import pickle
import re
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from charlm.vocabulary import Vocabulary

CHARACTERS_OF_A_LARGE_VOCABULARY = "".join(map(chr, range(0x20, 0xD800)))


@given(st.text(min_size=1))
def test_encode_gives_positions_among_the_sorted_characters(text: str) -> None:
    vocabulary = Vocabulary.from_text(text)
    boundary = "\n" if "." in text else "."
    characters = sorted({*text, boundary})
    assert vocabulary.characters == tuple(characters)
    assert vocabulary.characters[vocabulary.boundary] == boundary
    assert vocabulary.encode(text).tolist() == [characters.index(character) for character in text]


@given(st.text(min_size=1), st.characters(codec="utf-8"))
def test_decode_undoes_encode(text: str, boundary: str) -> None:
    vocabulary = Vocabulary.from_text(text, boundary=boundary)
    assert vocabulary.decode(vocabulary.encode(text)) == text
    assert vocabulary.characters[vocabulary.boundary] == boundary


def test_names() -> None:
    vocabulary = Vocabulary.from_text("emma")
    assert vocabulary.characters == (".", "a", "e", "m")
    assert vocabulary.boundary == 0
    assert len(vocabulary) == 4
    assert vocabulary.encode("emma.").tolist() == [2, 3, 3, 1, 0]
    assert vocabulary.decode([2, 3, 3, 1, 0]) == "emma."


def test_every_character_of_unicode_has_a_token() -> None:
    text = "".join(map(chr, [*range(0xD800), *range(0xE000, sys.maxunicode + 1)]))
    vocabulary = Vocabulary.from_text(text)
    assert len(vocabulary) == 0x110000 - 0x800
    assert torch.equal(vocabulary.encode(text), torch.arange(len(text), dtype=torch.int32))
    assert vocabulary.decode(torch.arange(len(text))) == text


@pytest.mark.parametrize(
    ("size", "dtype"),
    [(1, torch.uint8), (256, torch.uint8), (257, torch.int16), (32768, torch.int16), (32769, torch.int32)],
)
def test_dtype_is_the_smallest_that_holds_every_token(size: int, dtype: torch.dtype) -> None:
    characters = "." + CHARACTERS_OF_A_LARGE_VOCABULARY.replace(".", "")[: size - 1]
    vocabulary = Vocabulary(characters)
    tokens = vocabulary.encode("".join(vocabulary.characters))
    assert vocabulary.dtype == tokens.dtype == dtype
    assert tokens.tolist() == list(range(size))
    assert vocabulary.decode(tokens) == "".join(sorted(characters))


@pytest.mark.parametrize("characters", ["cab", ["c", "a", "b"], "abcabc.", ("b", "a", "c", "b")])
def test_order_and_repetition_do_not_matter(characters: str) -> None:
    assert Vocabulary(characters).characters == (".", "a", "b", "c")


def test_empty_text_has_no_tokens() -> None:
    vocabulary = Vocabulary("ab")
    tokens = vocabulary.encode("")
    assert tokens.tolist() == []
    assert tokens.dtype == torch.uint8
    assert vocabulary.decode(tokens) == ""
    assert vocabulary.decode([]) == ""


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_decode_takes_any_integers_in_any_layout(dtype: torch.dtype) -> None:
    vocabulary = Vocabulary("abc")
    tokens = torch.tensor([[1, 9], [2, 9], [3, 9]], dtype=dtype)[:, 0]
    assert not tokens.is_contiguous()
    assert vocabulary.decode(tokens) == "abc"
    assert vocabulary.decode(tuple(tokens.tolist())) == "abc"


def test_tokens_are_writable_and_owned_by_the_caller() -> None:
    vocabulary = Vocabulary("ab")
    tokens = vocabulary.encode("aa")
    tokens[1] = 2
    assert vocabulary.decode(tokens) == "ab"
    assert vocabulary.encode("aa").tolist() == [1, 1]


def test_equality_is_that_of_characters_and_boundary() -> None:
    vocabulary = Vocabulary("abc")
    assert vocabulary == Vocabulary("cba.")
    assert hash(vocabulary) == hash(Vocabulary("cba."))
    assert vocabulary != Vocabulary("abd")
    assert Vocabulary("ab.", boundary="a") != Vocabulary("ab.", boundary="b")
    assert vocabulary != "abc"


def test_membership() -> None:
    vocabulary = Vocabulary("ab")
    assert "." in vocabulary
    assert "a" in vocabulary
    assert "c" not in vocabulary
    assert "ab" not in vocabulary


@given(st.text(min_size=1), st.characters(codec="utf-8"))
def test_to_dict_survives_json_pickle_and_copy(text: str, boundary: str) -> None:
    vocabulary = Vocabulary.from_text(text, boundary=boundary)
    assert Vocabulary.from_dict(json.loads(json.dumps(vocabulary.to_dict()))) == vocabulary
    assert pickle.loads(pickle.dumps(vocabulary)) == vocabulary
    assert copy.deepcopy(vocabulary).encode(text).equal(vocabulary.encode(text))


def test_to_dict_and_repr() -> None:
    vocabulary = Vocabulary("ba", boundary="\n")
    assert vocabulary.to_dict() == {"characters": "\nab", "boundary": "\n"}
    assert repr(vocabulary) == r"Vocabulary('\nab', boundary='\n')"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("abx", "text[2] = 'x' is not in the vocabulary of 4 characters"),
        ("abA", "text[2] = 'A' is not in the vocabulary, but 'a' is"),
        ("é", "text[0] = 'é' is not in the vocabulary of 4 characters"),
        ("a🎉b🎈", "text[3] = '🎈' is not in the vocabulary of 4 characters"),
        ("🎉\ud83d", "text[1] = '\\ud83d' is not in the vocabulary of 4 characters"),
        ("\udfff", "text[0] = '\\udfff' is not in the vocabulary of 4 characters"),
        ("x\ud800", "text[0] = 'x' is not in the vocabulary of 4 characters"),
    ],
)
def test_encode_names_the_unknown_character(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Vocabulary("ab🎉").encode(text)


@pytest.mark.parametrize(
    ("tokens", "error", "message"),
    [
        ([0, 1, 3], IndexError, "tokens[2] = 3 is out of range for 3 characters"),
        ([0, -1], IndexError, "tokens[1] = -1 is out of range for 3 characters"),
        (torch.tensor([2**40]), IndexError, "tokens[0] = 1099511627776 is out of range for 3 characters"),
        (torch.tensor([256]), IndexError, "tokens[0] = 256 is out of range for 3 characters"),
        (torch.tensor([1.0]), TypeError, "tokens must be integers, got torch.float32"),
        (torch.tensor([True]), TypeError, "tokens must be integers, got torch.bool"),
        (torch.tensor([1j]), TypeError, "tokens must be integers, got torch.complex64"),
        (torch.tensor([[1]]), ValueError, "tokens must have one dimension, got shape (1, 1)"),
        (torch.tensor(1), ValueError, "tokens must have one dimension, got shape ()"),
    ],
)
def test_decode_names_the_wrong_token(tokens: torch.Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        Vocabulary("ab").decode(tokens)


@pytest.mark.parametrize(
    ("characters", "boundary", "message"),
    [
        ("", ".", "characters must not be empty"),
        ([], ".", "characters must not be empty"),
        (["a", "bc"], ".", "characters[1] = 'bc' is not a single character"),
        (["a", ""], ".", "characters[1] = '' is not a single character"),
        ([1], ".", "characters[0] = 1 is not a single character"),
        ("a\ud800", ".", "characters[1] = '\\ud800' is a lone surrogate, not a character"),
        ("ab", "", "boundary = '' is not a single character"),
        ("ab", "--", "boundary = '--' is not a single character"),
        ("ab", "\udfff", "boundary = '\\udfff' is a lone surrogate, not a character"),
    ],
)
def test_constructor_names_what_is_no_character(characters: str, boundary: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Vocabulary(characters, boundary=boundary)


@pytest.mark.parametrize(
    ("text", "message"), [("", "text must not be empty"), ("ab\ud800", "text[2] = '\\ud800' is a lone surrogate")]
)
def test_from_text_wants_characters(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Vocabulary.from_text(text)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"characters": "ab"}, "a vocabulary must have the keys 'characters' and 'boundary', got {'characters': 'ab'}"),
        ("ab", "a vocabulary must have the keys 'characters' and 'boundary', got 'ab'"),
        (
            {"characters": "ab", "boundary": 3},
            "characters and boundary must be strings, got {'characters': 'ab', 'boundary': 3}",
        ),
        ({"characters": "", "boundary": "."}, "characters must not be empty"),
    ],
)
def test_from_dict_names_what_is_wrong(values: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Vocabulary.from_dict(values)


def test_tokens_are_shown_by_symbols() -> None:
    vocabulary = Vocabulary("ab\n")
    assert vocabulary.symbols == vocabulary.characters == ("\n", ".", "a", "b")
    assert (vocabulary.tokens_are, vocabulary.unknown) == ("characters", None)
