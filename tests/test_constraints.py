"""Texts that keep rules: they come with their conditional probabilities, exactly or by drawing again."""

from __future__ import annotations

import copy
import math
import re
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import small_names
import torch
from tiny_models import KINDS, VOCABULARY, assert_drawn_from, conditional, log_prob, make, texts

from charlm import CountBigram, Vocabulary, data, sample, score
from charlm.sampler import Draw, TooFewTextsError, probabilities, stream, stream_lines
from charlm.sampler._automata import Contains, ContainsNone, EndsWith, combine
from charlm.sampler._regex import Matches

TOKENS = {character: token for token, character in enumerate(VOCABULARY.characters)}

# Options, and what they mean in plain Python.
RULES: list[tuple[dict[str, Any], Callable[[str], bool]]] = [
    ({"suffix": "b"}, lambda t: t.endswith("b")),
    ({"suffix": ["ab", "cac"]}, lambda t: t.endswith(("ab", "cac"))),
    ({"contains": "aa"}, lambda t: "aa" in t),
    ({"contains": ["ab", "ba"]}, lambda t: "ab" in t and "ba" in t),
    ({"ban": ["ab", "cc", "bab"]}, lambda t: not any(word in t for word in ("ab", "cc"))),
    ({"ban": ["c", "é", ""]}, lambda t: "c" not in t),
    ({"regex": "a.*|b{2}c?"}, lambda t: re.fullmatch("a.*|b{2}c?", t) is not None),
    ({"min_length": 3}, lambda t: len(t) >= 3),
    ({"min_length": 2, "suffix": "c", "contains": "b"}, lambda t: len(t) >= 2 and t.endswith("c") and "b" in t),
    ({"contains": "a", "ban": ["aa"], "regex": "[^b]*"}, lambda t: "a" in t and "aa" not in t and "b" not in t),
]
RULE_IDS = [str(options) for options, _ in RULES]


def automaton(options: dict[str, Any]) -> Any:
    return Draw(make("bigram"), VOCABULARY, 1, **options)._automaton


@pytest.fixture
def by_rejection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every model is too large for rules to go into its probabilities."""
    constrain = Draw._constrain

    def fail(self: Draw, sampler: Any) -> None:
        constrain(self, sampler)
        self.is_exact = False

    monkeypatch.setattr(Draw, "_constrain", fail)


# Automata


@pytest.mark.parametrize(("options", "is_wanted"), RULES, ids=RULE_IDS)
def test_an_automaton_accepts_what_the_rules_say(options: dict[str, Any], is_wanted: Callable[[str], bool]) -> None:
    without_lengths = {name: value for name, value in options.items() if name != "min_length"}
    made = automaton(without_lengths)
    for text in texts(6):
        if made is not None and len(text) >= options.get("min_length", 0):
            state = made.after(TOKENS[character] for character in text)
            assert (state != 0 and made.accepting[state]) == is_wanted(text), text


@pytest.mark.parametrize(
    "regex",
    [
        *(
            "a*b",
            "(a|bc)+",
            "^a.*c$",
            "[^a]b?c{2,3}",
            "(?i:A)b|",
            "(ab|a)(c|bc)*?",
            "(?i)ABC",
            "a|b|^c",
            "x*",
            "$a",
            "",
        ),
        *("(a*)*b", "(|a)+b", "a$|b", "(^a|b)c", "a{0}", "(a|$)", "[a-b]{,2}", "a*$^", "^$|a", r"\w\D", "((a){2}){2}"),
    ],
)
def test_a_regular_expression_matches_what_re_does(regex: str) -> None:
    made = combine([Matches(regex, VOCABULARY.characters)], 4)
    for text in texts(5):
        state = made.after(TOKENS[character] for character in text)
        assert (state != 0 and made.accepting[state]) == (re.fullmatch(regex, text) is not None), text


@pytest.mark.parametrize(
    ("regex", "message"),
    [
        ("(", "regex '\\(' is not a regular expression: missing \\)"),
        (r"(a)\1", "regex has a reference to a group, which is not supported"),
        ("(?=a)b", "regex has a look around, which is not supported"),
        (r"\ba", "regex has a word boundary, which is not supported"),
        ("(?m)^a", "regex must not have the flag m"),
        ("a{99999}", "regex is too large"),
        ("(" * 5000 + ")" * 5000, "regex is too large"),
        ("(a|b)*a" + "(a|b)" * 20, "suffix, contains, ban and regex take more than 65,536 states together"),
    ],
)
def test_what_no_automaton_can_follow_is_refused(regex: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if "states" in message:
        monkeypatch.setattr("charlm.sampler._automata.MAX_STATES", 64)
        message = message.replace("65,536", "64")
    with pytest.raises(ValueError, match=message):
        sample(make("bigram"), VOCABULARY, 1, regex=regex)


def test_automata_have_no_state_that_is_not_needed() -> None:
    # A state for each length of the suffix that a text ends with, and the one that accepts nothing.
    assert len(combine([EndsWith([[1, 2, 1]])], 4).next) == 1 + 4
    assert len(combine([Contains([[1, 2]])], 4).next) == 1 + 3
    # Of "aa" and "aaa" the first is enough.
    assert len(combine([ContainsNone([[1, 1], [1, 1, 1]])], 4).next) == 1 + 2
    made = combine([EndsWith([[1, 2, 1]])], 4)
    assert (made.shortest[made.start], made.shortest[made.after([1, 2])], made.classes[0]) == (3, 1, made.classes[3])


# Exactly


def acceptance(options: dict[str, Any], kind: str, prefixes: list[str]) -> dict[str, float]:
    """What the sampler says that the probability of the rules is, after each prefix."""
    draw = Draw(make(kind), VOCABULARY, 1, prefix=prefixes, **options)
    sampler = draw._prepare()
    assert draw.is_exact
    return {
        beginning.text: sampler.acceptance(array("i", beginning.context.tolist()), beginning.state, len(beginning.text))
        for beginning in draw._beginnings
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("options", "is_wanted"), RULES, ids=RULE_IDS)
def test_the_probability_of_each_text_is_the_conditional_one(
    options: dict[str, Any], is_wanted: Callable[[str], bool], kind: str
) -> None:
    """A text's is the product over its characters of p(character) h(after it) / h(before it), and h is compared."""
    model = make(kind)
    expected, _ = conditional(model, 5, is_wanted)
    text = max(expected, key=lambda text: (len(text), expected[text]))
    beginnings = [text[:length] for length in range(len(text) + 1)]
    found = acceptance({**options, "max_length": 5}, kind, beginnings)
    for beginning in beginnings:
        assert found[beginning] == pytest.approx(conditional(model, 5, is_wanted, beginning)[1], rel=1e-12)
    # h after the last character is the end's probability.
    drawn = math.exp(log_prob(model, text, ended=False)) * found[text] / found[""]
    with_end = sum(probability for other, probability in expected.items() if other.startswith(text))
    assert drawn == pytest.approx(with_end, rel=1e-12)


def test_without_a_greatest_length_the_probability_is_that_of_all_texts() -> None:
    """Of a bigram, by the fundamental matrix of an absorbing chain: Kemeny and Snell 1960, theorem 3.2.4."""
    model = make("bigram")
    with torch.no_grad():
        table = model(torch.arange(4)[:, None]).double().softmax(dim=1)
    visits = torch.linalg.inv(torch.eye(3, dtype=torch.float64) - table[1:, 1:])
    last = (table[0, 1:] @ visits) * table[1:, 0]
    assert acceptance({"suffix": "b"}, "bigram", [""])[""] == pytest.approx(last[1].item(), rel=1e-12)
    # A text that ends with "ab": there is an a, after it a b, and then the end.
    expected = (table[0, 1:] @ visits)[0] * table[1, 2] * table[2, 0]
    assert acceptance({"suffix": "ab"}, "bigram", [""])[""] == pytest.approx(expected.item(), rel=1e-12)
    # Of at least two characters: all but the empty one and those of one.
    short = table[0, 0] + (table[0, 1:] * table[1:, 0]).sum()
    assert acceptance({"min_length": 2}, "bigram", [""])[""] == pytest.approx(1.0 - short.item(), rel=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("options", "is_wanted"), RULES, ids=RULE_IDS)
def test_texts_are_drawn_with_their_probabilities(
    options: dict[str, Any], is_wanted: Callable[[str], bool], kind: str
) -> None:
    model = make(kind)
    expected, _ = conditional(model, 5, is_wanted)
    draw = Draw(model, VOCABULARY, 3000, seed=3, max_length=5, **options)
    drawn = [text for sampler in draw.blocks() for text in sampler.texts()]
    assert (draw.is_exact, draw.draws) == (True, 3000)
    assert_drawn_from(drawn, expected)


@pytest.mark.parametrize(("options", "is_wanted"), RULES, ids=RULE_IDS)
def test_drawing_again_gives_the_same_distribution(
    options: dict[str, Any], is_wanted: Callable[[str], bool], by_rejection: None
) -> None:
    model = make("bigram")
    expected, total = conditional(model, 5, is_wanted)
    draw = Draw(model, VOCABULARY, 1000, seed=3, max_length=5, **options)
    drawn = [text for sampler in draw.blocks() for text in sampler.texts()]
    assert draw.is_exact is False
    assert_drawn_from(drawn, expected)
    # Geometric, with standard deviation sqrt(1 - p) / p.
    assert abs(draw.draws - 1000 / total) <= 6 * math.sqrt(1000 * (1 - total)) / total


@pytest.mark.parametrize("options", [{"top_k": 3}, {"top_p": 0.9}, {"temperature": 0.6}], ids=str)
def test_temperature_and_the_most_probable_come_before_the_rules(options: dict[str, Any]) -> None:
    """A model that has such probabilities itself gives the same texts."""
    model, narrowed = make("bigram"), copy.deepcopy(make("bigram"))
    with torch.no_grad():
        logits = model(torch.arange(4)[:, None])
        given = {"temperature": 1.0, "top_k": None, "top_p": None, **options}
        narrowed.double().weight.copy_(probabilities(logits, **given).log())
    rules: dict[str, Any] = {"contains": "b", "min_length": 2, "max_length": 6}
    drawn = sample(model, VOCABULARY, 100, seed=1, **rules, **options)
    assert drawn == sample(narrowed, VOCABULARY, 100, seed=1, **rules)
    assert drawn != sample(model, VOCABULARY, 100, seed=1, **rules)


def test_a_model_of_many_contexts_is_drawn_from_again_and_again(by_rejection: None) -> None:
    model = make("mlp")
    drawn = sample(model, VOCABULARY, 40, seed=1, min_length=2, max_length=4, suffix="b")
    assert all(2 <= len(text) <= 4 and text.endswith("b") for text in drawn)
    assert sample(model, VOCABULARY, 7, seed=1, min_length=2, max_length=4, suffix="b") == drawn[:7]


# The seed's promise


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {"suffix": "b", "max_length": 6},
        {"min_length": 2, "max_length": 5},
        {"unique": True},
        {"exclude": ["a", "b", ""], "contains": "a"},
    ],
    ids=str,
)
def test_a_text_depends_on_its_number_the_seed_and_the_options(
    options: dict[str, Any], exact: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not exact:
        monkeypatch.setattr("charlm.sampler._drawing._MAX_ENTRIES", 3 * 4)
    model = make("bigram")
    drawn = sample(model, VOCABULARY, 30, seed=5, **options)
    assert sample(model, VOCABULARY, 30, seed=5, **options) == drawn
    assert sample(model, VOCABULARY, 13, seed=5, **options) == drawn[:13]
    assert sample(model, VOCABULARY, 30, seed=6, **options) != drawn
    monkeypatch.setattr("charlm.sampler._drawing._MAX_TEXTS", 5)
    assert sample(model, VOCABULARY, 30, seed=5, **options) == drawn
    assert b"".join(stream_lines(model, VOCABULARY, 30, seed=5, **options)).decode().split("\n")[:-1] == drawn


def test_a_text_that_keeps_the_rules_stays_where_it_was() -> None:
    """Only those that do not are drawn again."""
    model = make("bigram")
    free = sample(model, VOCABULARY, 200, seed=5)
    excluded = ["a", "b", "ab", ""]
    drawn = sample(model, VOCABULARY, 200, seed=5, exclude=excluded)
    assert any(text in excluded for text in free)
    for text, before in zip(drawn, free, strict=True):
        assert text not in excluded
        assert text == before or before in excluded


def test_unique_texts_are_the_first_of_their_kind() -> None:
    model = make("bigram")
    free = sample(model, VOCABULARY, 150, seed=5)
    drawn = sample(model, VOCABULARY, 150, seed=5, unique=True)
    seen: set[str] = set()
    for text, before in zip(drawn, free, strict=True):
        assert text not in seen
        assert text == before or before in seen
        seen.add(text)
    assert len(set(free)) < 100


def test_what_follows_a_prefix_does_not_depend_on_the_others() -> None:
    model = make("bigram")
    together = {prefix: sample(model, VOCABULARY, 20, seed=5, prefix=[prefix, "c"])[:20] for prefix in ("ab", "", "b")}
    assert sample(model, VOCABULARY, 20, seed=5, prefix=["b", "ab", ""]) == [
        *together["b"],
        *together["ab"],
        *together[""],
    ]
    # Nor does it go as what follows another one, though the model only sees the last character.
    assert [text[2:] for text in together["ab"]] != [text[1:] for text in together["b"]]
    assert sample(model, VOCABULARY, 20, seed=5, prefix=["ab"]) == sample(model, VOCABULARY, 20, seed=5, prefix="ab")
    assert all(text.startswith("ab") for text in together["ab"])
    assert sample(model, VOCABULARY, 20, seed=5, prefix=[]) == []
    ruled = sample(
        model, VOCABULARY, 20, seed=5, prefix=["b", "ab"], suffix="c", min_length=3, max_length=7, unique=True
    )
    assert all(text.endswith("c") and 3 <= len(text) <= 7 for text in ruled)
    assert all(text.startswith("b") for text in ruled[:20])
    assert all(text.startswith("ab") for text in ruled[20:])
    assert len(set(ruled)) == 40


# What is excluded


def test_novel_texts_are_in_no_split_of_the_data(tmp_path: Path) -> None:
    dataset = small_names.load(tmp_path)
    known = set((tmp_path / "small_names.txt").read_text().split())
    model = CountBigram(len(dataset.vocabulary)).fit(dataset.train)
    free = sample(model, dataset.vocabulary, 3000, seed=1)
    assert known & set(free)
    novel = sample(model, dataset.vocabulary, 3000, seed=1, novel=dataset)
    assert not ({*known, ""} & set(novel))
    changed = [before for text, before in zip(novel, free, strict=True) if text != before]
    assert changed
    assert set(changed) <= {*known, ""}


@pytest.mark.parametrize("characters", ["ab", "é中😀ab" + "".join(map(chr, range(0x400, 0x500)))])
def test_novel_in_a_stream_of_any_characters(tmp_path: Path, characters: str) -> None:
    path = tmp_path / "text.txt"
    path.write_text("ab\nb\n\naa\n" + "\n".join(characters) + "\n" + "a\n" * 40 + "a")
    dataset = data.load(path, mode="stream", context_length=1)
    model = CountBigram(len(dataset.vocabulary), smoothing=0.1).fit(dataset.all)
    texts = sample(model, dataset.vocabulary, 500, seed=1, novel=dataset, max_length=3)
    assert not ({"ab", "b", "aa", "a", "", *characters} & set(texts))


# Where there are too few


def two_texts() -> CountBigram:
    """A model of "a" and "b"."""
    model = CountBigram(4)
    model.counts.copy_(torch.tensor([[0, 1, 1, 0], [1, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]))
    return model


def test_an_end_of_all_texts_is_said_after_those_that_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("charlm.sampler._drawing.ATTEMPTS", 100)
    blocks = stream(two_texts(), VOCABULARY, 5, seed=1, unique=True)
    assert sorted(next(blocks)) == ["a", "b"]
    with pytest.raises(TooFewTextsError) as raised:
        next(blocks)
    assert raised.value.found == 2
    assert str(raised.value) == (
        f"found 2 of 5 texts in {raised.value.draws:,} draws: "
        "the next one was drawn 100 times, and never kept the rules"
    )
    assert 102 <= raised.value.draws < 110
    with pytest.raises(
        TooFewTextsError, match=r"found 1 of 4 texts .* the next one after prefix 'b' was drawn 100 times"
    ):
        sample(two_texts(), VOCABULARY, 2, prefix=["b", "a"], unique=True)


def test_what_a_model_cannot_say_is_known_before_anything_is_drawn() -> None:
    for options, said in (
        ({"suffix": "c"}, "suffix='c'"),
        ({"min_length": 2, "unique": True}, "unique, min_length=2"),
        ({"contains": "ab", "max_length": 9}, "contains='ab', max_length=9"),
    ):
        with pytest.raises(TooFewTextsError, match=rf"this model has no text that keeps {said}$"):
            sample(two_texts(), VOCABULARY, 1, **options)
    with pytest.raises(TooFewTextsError, match="this model has no text after prefix 'a' that keeps contains='b'"):
        sample(two_texts(), VOCABULARY, 1, prefix=["b", "a"], contains="b")


def test_a_model_that_never_ends_has_no_text_that_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("charlm.sampler._drawing.ATTEMPTS", 3)
    endless = CountBigram(4)
    endless.counts.copy_(torch.tensor([[0, 1, 0, 0], [0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]]))
    assert sample(endless, VOCABULARY, 2) == ["ab" * 500] * 2
    with pytest.raises(TooFewTextsError, match="was drawn 3 times, and never kept the rules"):
        sample(endless, VOCABULARY, 2, unique=True)
    with pytest.raises(TooFewTextsError, match="no text that keeps max_length=20"):
        sample(endless, VOCABULARY, 2, max_length=20)


# Arguments


def test_lengths_are_of_whole_texts_with_their_prefix() -> None:
    model = make("bigram")
    for options in ({"min_length": 4}, {"max_length": 4}, {"min_length": 4, "max_length": 4}):
        lengths = {len(text) for text in sample(model, VOCABULARY, 300, seed=1, prefix="ab", **options)}
        assert min(lengths) == (4 if "min_length" in options else 2)
        assert (max(lengths) == 4) == ("max_length" in options)
    assert sample(model, VOCABULARY, 2, prefix="abc", max_length=3) == ["abc"] * 2


def test_top_p_keeps_the_fewest_that_have_it() -> None:
    logits = torch.tensor([[0.1, 0.4, 0.2, 0.3], [0.25, 0.25, 0.25, 0.25]], dtype=torch.float64).log()
    for top_p, first, second in [
        (1.0, [0.1, 0.4, 0.2, 0.3], [0.25] * 4),
        (0.85, [0.0, 4 / 9, 2 / 9, 3 / 9], [0.25] * 4),
        (0.6, [0.0, 4 / 7, 0.0, 3 / 7], [1 / 3, 1 / 3, 1 / 3, 0.0]),
        (1e-9, [0.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]),
    ]:
        found = probabilities(logits, 1.0, None, top_p).tolist()
        assert found == [pytest.approx(first, rel=1e-14, abs=0), pytest.approx(second, rel=1e-14, abs=0)]
    # Of the two that are kept, the first has more than half.
    assert probabilities(logits[:1], 1.0, 2, 0.5).tolist() == [[0.0, 1.0, 0.0, 0.0]]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"top_p": 0.0}, ValueError, r"top_p must be a number in \(0, 1\] or None, got 0.0"),
        ({"top_p": math.nan}, ValueError, "top_p must be a number in"),
        ({"min_length": -1}, ValueError, "min_length must be an integer >= 0, got -1"),
        ({"min_length": 3, "max_length": 2}, ValueError, "min_length must be at most max_length=2, got 3"),
        ({"prefix": "Ab"}, ValueError, r"prefix\[0\] = 'A' is not in the vocabulary, but 'a' is"),
        ({"suffix": "aé"}, ValueError, r"suffix\[1\] = 'é' is not in the vocabulary"),
        ({"contains": ["a", "b."]}, ValueError, r"contains\[1\]\[1\] = '\.' is the boundary, where a text ends"),
        ({"prefix": ["a", "é"]}, ValueError, r"prefix\[1\]\[0\] = 'é' is not in the vocabulary"),
        ({"prefix": 3}, TypeError, "prefix must be str or a sequence of str, got int"),
        ({"ban": "ab"}, TypeError, "ban must be a sequence of str, got str"),
        ({"exclude": [b"ab"]}, TypeError, r"exclude\[0\] must be str, got bytes"),
        ({"regex": b"a"}, TypeError, "regex must be str or None, got bytes"),
        ({"novel": True}, TypeError, "novel must be the data that texts must not be in, a Dataset, got True"),
        ({"unique": 1}, TypeError, "unique must be bool, got int"),
        (
            {"unique": True, "stop": False},
            ValueError,
            "unique must not be given without stop: it is for texts that end",
        ),
        ({"prefix": "ab", "ban": ["b"]}, ValueError, "no text after prefix 'ab' can keep ban"),
        ({"suffix": "abc", "max_length": 2}, ValueError, "no text can keep suffix='abc', max_length=2"),
        ({"regex": "b", "suffix": "a"}, ValueError, "no text can keep suffix='a', regex='b'"),
        ({"nonsense": 1}, TypeError, "unexpected keyword argument 'nonsense'"),
    ],
    ids=str,
)
def test_bad_arguments_are_named(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        stream(make("bigram"), VOCABULARY, 2, **options)


def test_data_of_another_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match="novel must be data of the same vocabulary"):
        stream(make("bigram"), VOCABULARY, 2, novel=data.load())


def test_scores_are_those_of_the_model_whatever_was_drawn_from() -> None:
    model = make("mlp")
    options: dict[str, Any] = {"seed": 1, "temperature": 0.5, "top_k": 3, "max_length": 9}
    plain = sample(model, VOCABULARY, 20, **options)
    for text, scored in zip(plain, sample(model, VOCABULARY, 20, scores=True, **options), strict=True):
        assert scored.text == text
        assert scored.log_prob == pytest.approx(log_prob(model, text), rel=1e-5)
    # What is cut has no end.
    (cut,) = sample(model, VOCABULARY, 1, scores=True, stop=False, max_length=7, seed=1)
    assert cut.log_prob == pytest.approx(log_prob(model, cut.text, ended=False), rel=1e-5)


def test_wide_characters_and_many_of_them() -> None:
    """Several classes of tokens, beside those that no rule names."""
    characters = Vocabulary("".join(map(chr, range(0x4E00, 0x4E00 + 300))))
    model = CountBigram(301, smoothing=1.0)
    a, b = characters.characters[5], characters.characters[9]
    drawn = sample(model, characters, 20, seed=1, suffix=a + b, contains=b + a, max_length=6)
    assert all(text.endswith(a + b) and b + a in text and len(text) <= 6 for text in drawn)


@pytest.mark.parametrize(
    ("tokens", "rules", "wanted"),
    [
        (
            "words",
            {"suffix": "a cat", "contains": "the", "ban": ["dog", "cow"], "max_length": 6},
            r"(?!.*dog).*the.*a cat",
        ),
        ("words", {"prefix": "the", "min_length": 3, "exclude": ["the cat sees a cat"]}, r"the \w+ \w+.*"),
        ("bytes", {"suffix": "é", "contains": "s", "ban": ["dog"]}, r"(?!.*dog).*s.*é"),
    ],
)
def test_rules_of_words_and_bytes(tokens: Any, rules: dict[str, Any], wanted: str, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("the cat sees a dog\nthe dog sees a cat\na cat sees the dog\na dog sees café\nthe cat sees a cat\n")
    dataset = data.load(path, tokens=tokens, context_length=1)
    model = CountBigram(len(dataset.vocabulary), smoothing=0.001).fit(dataset.all)
    scored = sample(model, dataset.vocabulary, 20, seed=1, novel=dataset, scores=True, **rules)
    known = path.read_text().split("\n")
    for text, found in scored:
        assert re.fullmatch(wanted, text), text
        assert text not in known
        if "\ufffd" not in text:
            assert found == pytest.approx(score(model, dataset.vocabulary, [text]).totals.item())
    lines = b"".join(stream_lines(model, dataset.vocabulary, 20, seed=1, novel=dataset, **rules)).decode()
    assert lines.split("\n")[:-1] == [text for text, _ in scored]
    with pytest.raises(ValueError, match=f"regex must not be given of a model of {tokens}: it matches characters"):
        sample(model, dataset.vocabulary, 1, regex="a")


def blocks(draw: Draw) -> Iterator[int]:
    for sampler in draw.blocks():
        yield sampler.size


def test_the_first_texts_are_there_at_once() -> None:
    draw = Draw(make("bigram"), VOCABULARY, 1 << 40, unique=False, seed=1, suffix="a")
    sizes = blocks(draw)
    assert [next(sizes), next(sizes), next(sizes)] == [64, 128, 256]
