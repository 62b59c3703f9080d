"""charlm._text.Sampler: the random numbers it documents, exact tables, and errors that leave it usable."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from array import array
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from charlm import _text
from charlm._buffers import to_tensor

ROOT = Path(__file__).parents[1]
MASK = 0xFFFFFFFF


def philox(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x32-10 as figure 2 and section 3.3 of Salmon et al. 2011 have it, word by word."""
    words, (key0, key1) = counter, key
    for _ in range(10):
        product0, product1 = 0xD2511F53 * words[0], 0xCD9E8D57 * words[2]
        words = [
            product1 >> 32 ^ words[1] ^ key0,
            product1 & MASK,
            product0 >> 32 ^ words[3] ^ key1,
            product0 & MASK,
        ]
        key0, key1 = (key0 + 0x9E3779B9) & MASK, (key1 + 0xBB67AE85) & MASK
    return words


def bits(seed: int, text: int, position: int) -> int:
    """The 64 random bits that draw a token."""
    block = position // 2
    words = philox([block & MASK, block >> 32, text & MASK, text >> 32], [seed & MASK, seed >> 32])
    first, second = words[position % 2 * 2 :][:2]
    return first << 32 | second


def draw(
    sampler: _text.Sampler, weights: list[float], count: int, length: int, *, first: int = 0, seed: int = 1
) -> str:
    """`count` texts of `length` tokens, one after the other, where every context has the same weights."""
    sampler.start(array("i", [0]), seed, first, count, length, -1)
    while sampler.unfinished:
        missing = len(sampler.advance()) // 4
        sampler.add(array("d", weights * missing))
    return "".join(sampler.texts())


def test_philox_of_the_test_is_that_of_the_paper() -> None:
    # From kat_vectors of the authors' library Random123.
    assert philox([0] * 4, [0] * 2) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert philox([MASK] * 4, [MASK] * 2) == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]
    assert philox([0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344], [0xA4093822, 0x299F31D0]) == [
        0xD16CFE09,
        0x94FDCCEB,
        0x5001E420,
        0x24126EA1,
    ]


@pytest.mark.parametrize("seed", [0, 1, (1 << 64) - 1, 0x0123456789ABCDEF])
@pytest.mark.parametrize("first", [0, (1 << 32) - 2, (1 << 62) + 5])
def test_tokens_are_drawn_with_the_documented_numbers(seed: int, first: int) -> None:
    # With equal weights the token is the whole part of V times the 64-bit fraction.
    for characters in ("ab", "abc", "abcdefgh", "".join(map(chr, range(0x100, 0x3E8)))):
        sampler = _text.Sampler(characters, 1, 1000)
        size = len(characters)
        drawn = draw(sampler, [1.0] * size, 4, 9, first=first, seed=seed)
        expected = [bits(seed, first + i, p) * size >> 64 for i in range(4) for p in range(9)]
        assert drawn == "".join(characters[token] for token in expected)


@pytest.mark.parametrize(
    "weights",
    [
        [1.0, 1.0],
        [0.0, 1.0, 0.0],
        [5.0, 0.0, 3.0, 2.0],
        [0.5, 0.25, 0.125, 0.125],
        [1e-300, 3e-300, 0.0],
        [1e300, 1e300, 2e300],
        [0.001, 0.997, 0.001, 0.001],
        [float(i % 7) for i in range(300)],
    ],
)
def test_tokens_follow_their_weights(weights: list[float]) -> None:
    characters = "".join(map(chr, range(0x100, 0x100 + len(weights))))
    drawn = draw(_text.Sampler(characters, 1, 1000), weights, 200, 300)
    observed = torch.bincount(torch.tensor([ord(c) - 0x100 for c in drawn]), minlength=len(weights)).double()
    expected = torch.tensor(weights, dtype=torch.float64)
    expected *= 60_000 / expected.sum()
    assert not observed[expected == 0].any()
    possible = expected > 0
    degrees = int(possible.sum()) - 1
    statistic = ((observed - expected)[possible] ** 2 / expected[possible]).sum().item()
    assert statistic <= degrees + 6 * math.sqrt(2 * degrees)


def test_tables_of_any_shape_are_drawn_from_completely() -> None:
    generator = torch.Generator().manual_seed(0)
    characters = "".join(map(chr, range(0x100, 0x100 + 64)))
    for kept in range(1, 65):
        weights = torch.rand(64, generator=generator, dtype=torch.float64) ** 8 + 0.05
        weights[torch.randperm(64, generator=generator)[kept:]] = 0.0
        drawn = draw(_text.Sampler(characters, 1, 64), weights.tolist(), 8, 2000)
        observed = torch.bincount(torch.tensor([ord(c) - 0x100 for c in drawn]), minlength=64)
        assert torch.equal(observed > 0, weights > 0)
        assert ((observed / 16_000 - weights / weights.sum()).abs() < 0.02).all()


def test_a_token_that_underflows_is_left_out() -> None:
    assert set(draw(_text.Sampler("abc", 1, 3), [1e-30, 1.0, 0.0], 10, 500)) == {"b"}


@pytest.mark.parametrize("context_length", [1, 2, 5, 17])
def test_contexts_are_the_last_tokens(context_length: int) -> None:
    """The next token is the sum of the context's first and last, modulo 3, so the texts are known."""
    sampler = _text.Sampler("abc", context_length, 1000)
    context = [1] * context_length
    sampler.start(array("i", context), 0, 0, 2, 40, -1, prefix="x")
    while sampler.unfinished:
        contexts = to_tensor(sampler.advance(), torch.int32).view(-1, context_length).long()
        weights = torch.eye(3, dtype=torch.float64)[(contexts[:, 0] + contexts[:, -1]) % 3]
        sampler.add(array("d", weights.flatten().tolist()))
    while len(context) < context_length + 40:
        context.append((context[-context_length] + context[-1]) % 3)
    assert sampler.texts() == ["x" + "".join("abc"[token] for token in context[context_length:])] * 2


def test_at_most_the_limit_is_asked_for_and_all_is_dropped_beyond() -> None:
    """A cycle a b c d a ... of four contexts, of which three can be kept."""
    sampler = _text.Sampler("abcd", 1, 3)
    cycle = {token: [float(i == (token + 1) % 4) for i in range(4)] for token in range(4)}
    asked = []
    sampler.start(array("i", [0]), 0, 0, 5, 10, -1)
    while sampler.unfinished:
        contexts = array("i", bytes(sampler.advance()))
        asked += list(contexts)
        for token in contexts:
            sampler.add(array("d", cycle[token]))
    assert sampler.texts() == ["bcdabcdabc"] * 5
    assert asked == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]


def test_advance_repeats_what_is_missing_until_it_is_added() -> None:
    sampler = _text.Sampler("ab", 1, 10)
    sampler.start(array("i", [1]), 0, 0, 3, 4, 0, prefix=">")
    assert bytes(sampler.advance()) == bytes(sampler.advance()) == array("i", [1]).tobytes()
    assert sampler.unfinished == 3
    assert sampler.texts() == [">"] * 3
    sampler.add(array("d", []))
    sampler.add(array("d", [0.0, 1.0]))
    assert bytes(sampler.advance()) == b""
    assert sampler.unfinished == 0
    assert sampler.texts() == [">bbbb"] * 3
    # Tables stay for the next texts.
    sampler.start(array("i", [1]), 0, 3, 1, 2, -1)
    assert bytes(sampler.advance()) == b""
    assert sampler.texts() == ["bb"]
    sampler.start(array("i", [1]), 0, 3, 0, 2, -1)
    assert sampler.texts() == []
    sampler.start(array("i", [1]), 0, 0, 2, 0, -1, prefix="p")
    assert (sampler.unfinished, sampler.texts()) == (0, ["p", "p"])


def test_one_call_draws_a_bounded_number_of_tokens() -> None:
    sampler = _text.Sampler("ab", 1, 10)
    sampler.start(array("i", [1]), 0, 0, 3, 1 << 23, -1)
    sampler.advance()
    sampler.add(array("d", [0.0, 1.0]))
    assert bytes(sampler.advance()) == b""
    assert sampler.unfinished == 3
    assert sum(map(len, sampler.texts())) == 1 << 24
    sampler.advance()
    assert sampler.texts() == ["b" * (1 << 23)] * 3


def test_a_second_thread_gets_an_error() -> None:
    sampler = _text.Sampler("ab", 1, 10)
    sampler.start(array("i", [1]), 0, 0, 1, 1 << 24, -1)
    sampler.advance()
    sampler.add(array("d", [1.0, 1.0]))
    sampler.advance()
    sampler.add(array("d", [1.0, 1.0]))
    with ThreadPoolExecutor(1) as pool:
        drawing = pool.submit(sampler.advance)
        refused = 0
        while not drawing.done():
            try:
                assert sampler.unfinished in (0, 1)
            except RuntimeError as error:
                assert str(error) == "another thread is using this Sampler"  # noqa: PT017
                refused += 1
        drawing.result()
    # The lock of the interpreter was free meanwhile.
    assert refused > 0
    assert sampler.unfinished == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("", 1, 1), "characters must not be empty"),
        (("ab", 0, 1), "context_length must be at least 1"),
        (("ab", -1, 1), "context_length must be at least 1"),
        (("ab", 1, 0), "max_contexts must be at least 1"),
        (("ab", 1, -5), "max_contexts must be at least 1"),
        (("ab", 1, 1 << 30), "must be less than 2\\^31"),
        (("ab", 1, 1 << 62), "must be less than 2\\^31"),
    ],
)
def test_bad_sizes_are_refused(arguments: tuple[str, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _text.Sampler(*arguments)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"context": array("i", [1])}, "context must have context_length tokens"),
        ({"context": array("i", [0, 2])}, "context has a token out of range"),
        ({"context": array("i", [-1, 0])}, "context has a token out of range"),
        ({"context": bytes(7)}, "whole, aligned elements of 4 bytes"),
        ({"end": 2}, "end must be a token or -1"),
        ({"end": -2}, "end must be a token or -1"),
        ({"first": -1}, "first and max_tokens must not be negative"),
        ({"max_tokens": -1}, "first and max_tokens must not be negative"),
        ({"count": -1}, "count must be from 0"),
        ({"count": 1 << 32}, "count must be from 0"),
    ],
)
def test_a_bad_start_changes_nothing(changed: dict[str, object], message: str) -> None:
    arguments = {"context": array("i", [0, 0]), "seed": 0, "first": 0, "count": 1, "max_tokens": 1, "end": 0}
    sampler = _text.Sampler("ab", 2, 8)
    sampler.start(**arguments)
    with pytest.raises(ValueError, match=message):
        sampler.start(**{**arguments, **changed})
    assert sampler.unfinished == 1


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([0.5], "one number per character and context"),
        ([0.5, 0.5, 0.5, 0.5], "more contexts than miss them"),
        ([-0.1, 1.0], "must not be negative or NaN"),
        ([math.nan, 1.0], "must not be negative or NaN"),
        ([math.inf, 1.0], "positive, finite sum"),
        ([0.0, 0.0], "positive, finite sum"),
        ([1.7e308, 1.7e308], "positive, finite sum"),
    ],
)
def test_bad_weights_are_refused(weights: list[float], message: str) -> None:
    sampler = _text.Sampler("ab", 1, 8)
    sampler.start(array("i", [0]), 0, 0, 1, 1, -1)
    with pytest.raises(ValueError, match="more contexts than miss them"):
        sampler.add(array("d", [0.5, 0.5]))
    sampler.advance()
    with pytest.raises(ValueError, match=message):
        sampler.add(array("d", weights))
    sampler.add(array("d", [0.0, 1.0]))
    sampler.advance()
    assert sampler.texts() == ["b"]


OUT_OF_MEMORY = """
import resource
from array import array
from charlm import _text

sampler = _text.Sampler("ab", 1, 8)
sampler.start(array("i", [0]), 0, 0, 3, 5, -1)
resource.setrlimit(resource.RLIMIT_AS, (1 << 34, 1 << 34))
try:
    sampler.start(array("i", [0]), 0, 0, 2**32 - 2, 5, -1)
except MemoryError:
    print("out of memory")
for call in (sampler.advance, lambda: sampler.texts(), lambda: sampler.unfinished, lambda: sampler.add(b"")):
    try:
        call()
    except RuntimeError as error:
        print(error)
"""


def test_a_sampler_that_ran_out_of_memory_is_not_used_again() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}  # no sanitizer's limits
    run = subprocess.run(
        [sys.executable, "-c", OUT_OF_MEMORY], capture_output=True, text=True, env=environment, cwd=ROOT
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == ["out of memory", *["this Sampler ran out of memory, and cannot go on"] * 4]


# Rules


def constrained(**changed: object) -> _text.Sampler:
    """A sampler of "ab" and the end ".", whose automaton accepts texts with an "a" in them."""
    arguments = {"classes": array("I", [0, 1, 0]), "next": array("I", [0, 0, 1, 2, 2, 2])}
    arguments |= {"accepting": bytes([0, 0, 1]), "end": 0}
    sampler = _text.Sampler(".ab", 1, 8)
    sampler.constrain(**{**arguments, **changed})
    return sampler


def explored() -> _text.Sampler:
    """The same where after all tokens each is as likely."""
    sampler = constrained()
    sampler.open(array("i", [0]), 1)
    while missing := sampler.explore():
        sampler.add_explored(array("d", [1.0] * 3 * (len(missing) // 4)))
    return sampler


def test_the_probability_of_what_is_accepted() -> None:
    sampler = explored()
    assert sampler.solve(0, 2)
    # "a", "aa", "ab" and "ba".
    assert sampler.acceptance(array("i", [0]), 1, 0) == pytest.approx(1 / 9 + 3 / 27)
    assert sampler.acceptance(array("i", [2]), 1, 1) == pytest.approx(1 / 9)
    assert sampler.acceptance(array("i", [1]), 2, 2) == pytest.approx(1 / 3)
    for context, state, length in (([1], 1, 0), ([-1], 1, 0), ([7], 1, 0), ([1], 77, 0), ([1, 1], 1, 0), ([1], 2, 3)):
        assert sampler.acceptance(array("i", context), state, length) == 0.0
    assert sampler.solve(0, -1)
    # h = 1/3 h + 1/3 g where g = 1/3 + 2/3 g.
    assert sampler.acceptance(array("i", [0]), 1, 0) == pytest.approx(1 / 2)
    sampler.start(array("i", [0]), 0, 0, 300, 50, 0, chained=True, must_end=True)
    sampler.advance()
    assert all("a" in text for text in sampler.texts())
    assert (sampler.size, sampler.draws) == (300, 300)
    assert sampler.lines() == "".join(f"{text}\n" for text in sampler.texts()).encode()


def test_too_many_nodes_or_lengths_are_not_solved() -> None:
    sampler = _text.Sampler(".ab", 3, 2)
    sampler.constrain(array("I", [0, 0, 0]), array("I", [0, 1]), bytes([0, 1]), 0)
    sampler.open(array("i", [0, 0, 0]), 1)
    while missing := sampler.explore():
        sampler.add_explored(array("d", [1.0] * (len(missing) // 4)))
    assert not sampler.solve(0, 5)
    sampler = explored()
    assert not sampler.solve(0, (1 << 63) - 1)
    assert not sampler.solve((1 << 63) - 1, -1)


def test_what_is_excluded_is_drawn_again_to_the_last_attempt() -> None:
    sampler = _text.Sampler("ab", 1, 8)
    sampler.exclude_lines(bytes([0, 1, 0, 0]), 1, 0)
    sampler.exclude(b"bb")
    sampler.start(array("i", [0]), 0, 0, 3, 9, 0, attempts=50, must_end=True)
    while sampler.unfinished:
        sampler.add(array("d", [0.5, 0.5] * (len(sampler.advance()) // 4)))
    assert not {"b", "bb"} & set(sampler.texts())
    # After "b" there is nothing but the end, so the first text takes all attempts.
    sampler = _text.Sampler("ab", 1, 8)
    sampler.exclude(b"b")
    sampler.start(array("i", [0]), 0, 0, 3, 9, 0, attempts=50, must_end=True)
    while sampler.unfinished:
        contexts = array("i", bytes(sampler.advance()))
        sampler.add(array("d", [weight for token in contexts for weight in ((1.0, 0.0) if token else (0.0, 1.0))]))
    assert (sampler.size, sampler.texts(), sampler.lines()) == (0, [], b"")
    assert 50 <= sampler.draws <= 150


def test_a_million_distinct_texts_are_told_apart() -> None:
    """Of the 2^20 texts of 20 letters most are drawn once."""
    sampler = _text.Sampler(".ab", 1, 8)
    drawn = set()
    for first in range(0, 1 << 17, 1 << 15):
        sampler.start(array("i", [0]), 0, first, 1 << 15, 20, -1, unique=True, attempts=9)
        while sampler.unfinished:
            sampler.add(array("d", [0.0, 0.5, 0.5] * (len(sampler.advance()) // 4)))
        drawn |= set(sampler.texts())
    assert len(drawn) == 1 << 17


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"classes": array("I", [0, 1])}, "classes must have one number per character"),
        ({"classes": array("I", [0, 1, 2])}, "classes has one that is out of range"),
        ({"next": array("I", [0, 0, 1, 2, 2, 3])}, "next has a state that is out of range"),
        ({"next": array("I", [0, 1, 1, 2, 2, 2])}, "state 0 must lead to itself"),
        ({"next": array("I", [0, 0, 1, 2])}, "next must have shape"),
        ({"next": array("I", [])}, "next must have shape"),
        ({"next": bytes(7)}, "whole, aligned elements of 4 bytes"),
        ({"accepting": bytes([1, 0, 1])}, "state 0 must not be accepting"),
        ({"accepting": bytes([0])}, "an automaton must have at least 2 states"),
        ({"end": -1}, "end must be a token"),
        ({"end": 3}, "end must be a token"),
    ],
    ids=str,
)
def test_what_is_no_automaton_is_refused(changed: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        constrained(**changed)


def test_a_chain_is_used_in_its_order() -> None:
    sampler = constrained()
    with pytest.raises(ValueError, match="the chain is not solved"):
        sampler.acceptance(array("i", [0]), 1, 0)
    for context, state, message in (
        ([0, 0], 1, "context_length tokens"),
        ([3], 1, "token out of"),
        ([0], 3, "state is"),
    ):
        with pytest.raises(ValueError, match=message):
            sampler.open(array("i", context), state)
    with pytest.raises(ValueError, match="more contexts than miss them"):
        sampler.add_explored(array("d", [1.0] * 3))
    sampler.open(array("i", [0]), 1)
    with pytest.raises(ValueError, match="there are contexts to explore"):
        sampler.solve(0, 3)
    sampler.explore()
    for weights, message in (
        ([0.0] * 3, "positive, finite sum"),
        ([-1.0, 1, 1], "negative or NaN"),
        ([1.0], "one number"),
    ):
        with pytest.raises(ValueError, match=message):
            sampler.add_explored(array("d", weights))
    sampler = explored()
    with pytest.raises(ValueError, match="min_length must not be negative"):
        sampler.solve(-1, 3)
    sampler.solve(0, 3)
    # A state from which nothing is accepted is no start.
    sampler.open(array("i", [0]), 0)
    assert bytes(sampler.explore()) == b""


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"min_tokens": -1}, "min_tokens and length must not be negative"),
        ({"length": -1}, "min_tokens and length must not be negative"),
        ({"attempts": 0}, "attempts must be from 1"),
        ({"attempts": 1 << 32}, "attempts must be from 1"),
        ({"state": 0}, "state is out of range"),
        ({"state": 3}, "state is out of range"),
        ({"max_tokens": (1 << 63) - 1}, "max_tokens must be less than"),
        ({"end": -1}, "must_end needs an end"),
        ({"end": 1}, "end must be that of the chain"),
        ({"must_end": False}, "end must be that of the chain"),
        ({"context": array("i", [1])}, "no text from there is wanted"),
        ({"length": 4}, "no text from there is wanted"),
        ({"state": 2}, "no text from there is wanted"),
    ],
    ids=str,
)
def test_a_bad_start_from_a_chain_changes_nothing(changed: dict[str, object], message: str) -> None:
    arguments = {"context": array("i", [0]), "seed": 0, "first": 0, "count": 1, "max_tokens": 3, "end": 0}
    sampler = explored()
    with pytest.raises(ValueError, match="the chain is not solved"):
        sampler.start(**arguments, must_end=True, chained=True)
    sampler.solve(0, 3)
    sampler.start(**arguments, must_end=True, chained=True)
    with pytest.raises(ValueError, match=message):
        sampler.start(**{**arguments, "must_end": True, "chained": True, **changed})
    assert sampler.unfinished == 1


@pytest.mark.parametrize(
    ("tokens", "size", "message"),
    [
        (bytes([0, 3]), 1, "tokens has one that is out of range"),
        (array("h", [0, -1]), 2, "tokens has one that is out of range"),
        (array("i", [1 << 30]), 4, "tokens has one that is out of range"),
        (bytes(3), 2, "whole, aligned elements of 2 bytes"),
        (bytes(8), 8, "token_size must be 1, 2 or 4, got 8"),
    ],
    ids=str,
)
def test_tokens_that_are_none_are_not_excluded(tokens: bytes, size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _text.Sampler(".ab", 1, 8).exclude_lines(tokens, size, 0)
