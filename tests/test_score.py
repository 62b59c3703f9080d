"""Scores of given texts: the log-probability of every character, against the model asked for each."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import small_names
import torch
from command_line import CommandLine
from tiny_models import KINDS, VOCABULARY, log_prob, make

import charlm
from charlm import MLP, CountBigram, Vocabulary, evaluate, score

TEXTS = ["ab", "", "cabba", "b", "ab"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_character_has_its_log_probability(kind: str) -> None:
    model = make(kind)
    scores = score(model, VOCABULARY, TEXTS)
    assert scores.texts == tuple(TEXTS)
    assert scores.ends.tolist() == [3, 4, 10, 12, 15]
    assert scores.log_probs.dtype == torch.float64
    for i, text in enumerate(TEXTS):
        before = 0.0
        for position, found in enumerate(scores.of(i).tolist()):
            total = log_prob(model, text[: position + 1], ended=position == len(text))
            assert found == pytest.approx(total - before, rel=1e-5)
            before = total
        assert scores.totals[i].item() == pytest.approx(log_prob(model, text), rel=1e-5)
    assert scores.nll == pytest.approx(-sum(log_prob(model, text) for text in TEXTS), rel=1e-5)
    assert scores.nll_per_character == pytest.approx(scores.nll / 15)
    assert scores.perplexity == pytest.approx(math.exp(scores.nll / 15))
    assert (len(scores), scores.of(-1).tolist()) == (5, scores.of(0).tolist())
    with pytest.raises(IndexError):
        scores.of(5)


def test_the_mean_over_a_file_is_what_evaluate_measures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = small_names.load(tmp_path)
    names = (tmp_path / "small_names.txt").read_text().split()
    model = MLP(len(dataset.vocabulary), 3, 4, 16, generator=torch.Generator().manual_seed(1))
    expected = evaluate(model, dataset.all)
    whole = score(model, dataset.vocabulary, names)
    assert whole.nll_per_character == pytest.approx(expected, rel=1e-6)
    # Few contexts at a time.
    monkeypatch.setattr("charlm.scoring._ROWS_AT_ONCE", 7)
    assert torch.allclose(score(model, dataset.vocabulary, names).log_probs, whole.log_probs, rtol=1e-5, atol=0)


def test_what_was_never_counted_is_minus_infinity() -> None:
    model = CountBigram(4)
    model.counts.copy_(torch.tensor([[0, 1, 1, 0], [1, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]))
    scores = score(model, VOCABULARY, ["a", "ab"])
    assert scores.log_probs.tolist() == [math.log(0.5), 0.0, math.log(0.5), -math.inf, 0.0]
    assert scores.totals.tolist() == [math.log(0.5), -math.inf]
    assert (scores.nll, scores.nll_per_character, scores.perplexity) == (math.inf, math.inf, math.inf)


def test_no_texts_have_no_scores() -> None:
    scores = score(make("bigram"), VOCABULARY, [])
    assert (len(scores), scores.log_probs.tolist(), scores.totals.tolist(), scores.nll) == (0, [], [], 0.0)
    assert math.isnan(scores.nll_per_character)


@pytest.mark.parametrize(
    ("texts", "error", "message"),
    [
        (["ab", "aé"], ValueError, "'aé' has 'é', which is not in the vocabulary$"),
        (["Ab"], ValueError, "'Ab' has 'A', which is not in the vocabulary, but 'a' is"),
        (["ab", "a.b"], ValueError, r"'a\.b' has '\.', the boundary, where a text ends"),
        (["\udcff"], ValueError, "which is not in the vocabulary"),
        ("ab", TypeError, "texts must be a sequence of str, got str"),
        (3, TypeError, "texts must be a sequence of str, got int"),
        (["ab", b"a"], TypeError, r"texts\[1\] must be str, got bytes"),
    ],
    ids=repr,
)
def test_bad_texts_are_named(texts: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        score(make("bigram"), VOCABULARY, texts)


def test_a_vocabulary_of_another_model_is_refused() -> None:
    with pytest.raises(ValueError, match="vocabulary must have the model's 4 characters, got 3"):
        score(make("bigram"), Vocabulary("ab"), ["a"])


# The command


@pytest.fixture
def counts(run_charlm: CommandLine, names: Path) -> Any:
    """A run, loaded."""
    run_charlm.output("train", names, "--model", "count-bigram", "--smoothing", 1, "--out", "counts")
    return charlm.load("counts")


def test_words_are_shown_character_by_character(run_charlm: CommandLine, counts: Any) -> None:
    scores = counts.score(["mika", "a"])
    bits = [f"{-value / math.log(2):.2f}" for value in scores.of(0).tolist()]
    lines = run_charlm.output("score", "counts", "mika", "a").splitlines()
    assert lines[0] == f"mika: nll {-scores.totals[0]:.4f}, {-scores.totals[0] / 5:.4f} a character"
    assert lines[1].split() == ["m", "i", "k", "a", "."]
    assert lines[2].split() == ["bits", *bits]
    assert lines[4] == f"a: nll {-scores.totals[1]:.4f}, {-scores.totals[1] / 2:.4f} a character"
    assert lines[-2] == f"2 texts, 7 characters with their ends: nll {scores.nll:.2f}"
    first, second = map(json.loads, run_charlm.output("score", "counts", "mika", "a", "--json").splitlines())
    assert second["text"] == "a"
    assert first["nll"] == pytest.approx(-scores.totals[0].item())
    assert first["nll_per_character"] == pytest.approx(-scores.totals[0].item() / 5)
    assert [part["character"] for part in first["characters"]] == ["m", "i", "k", "a", "."]
    assert [part["nll"] for part in first["characters"]] == pytest.approx((-scores.of(0)).tolist())
    # A long one takes several rows.
    rows = run_charlm.output("score", "counts", "mikaelista" * 2).splitlines()
    assert [len(line.split()) for line in rows[1:]] == [12, 13, 9, 10]


def test_a_file_is_summed_up_with_its_most_and_least_likely_lines(
    run_charlm: CommandLine, counts: Any, names: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = names.read_text().split()
    scores = counts.score(words)
    ordered = sorted(zip((-scores.totals).tolist(), range(len(words)), words, strict=True))
    out = run_charlm.output("score", "counts", names, "--top", 3)
    lines = out.splitlines()
    assert lines[0] == f"50 texts, 300 characters with their ends: nll {scores.nll:,.2f}"
    assert lines[4].split() == [ordered[0][2], f"{ordered[0][0]:.4f}"]
    assert lines[9].split() == [ordered[-1][2], f"{ordered[-1][0]:.4f}"]
    assert len(lines) == 12
    # The run's own data are the same lines; so are those of standard input.
    assert run_charlm.output("score", "counts", "--top", 0).splitlines()[0] == lines[0]
    summary = json.loads(run_charlm.output("score", "counts", names, "--json", "--top", 2))
    assert (summary["texts"], summary["characters"]) == (50, 300)
    assert summary["nll"] == pytest.approx(scores.nll)
    assert [item["text"] for item in summary["most_likely"]] == [word for _, _, word in ordered[:2]]
    assert [item["text"] for item in summary["least_likely"]] == [word for _, _, word in ordered[:-3:-1]]
    each = run_charlm.output("score", "counts", names, "--each").splitlines()
    assert each == [f"{word}\t{total:.4f}" for word, total in zip(words, scores.totals.tolist(), strict=True)]


def test_standard_input_is_a_file(run_charlm: CommandLine, counts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xef\xbb\xbfmika  \r\n\r\nana\r\n")))
    total = counts.score(["mika", "ana"]).totals.tolist()
    assert run_charlm.output("score", "counts", "-", "--each") == f"mika\t{total[0]:.4f}\nana\t{total[1]:.4f}\n"


def test_what_is_infinite_is_null_in_json(run_charlm: CommandLine, names: Path) -> None:
    run_charlm.output("train", names, "--model", "count-bigram", "--out", "plain", "--quiet")
    text = json.loads(run_charlm.output("score", "plain", "eeee", "--json"))
    assert (text["nll"], text["perplexity"]) == (None, None)
    assert None in [part["nll"] for part in text["characters"]]
    assert "inf" in run_charlm.output("score", "plain", "eeee")
    (names.parent / "rare.txt").write_text("eeee\n")
    summary = json.loads(run_charlm.output("score", "plain", "rare.txt", "--json"))
    assert (summary["nll"], summary["least_likely"]) == (None, [{"text": "eeee", "nll": None}])


def test_an_unknown_character_is_one_line(run_charlm: CommandLine, counts: Any, names: Path) -> None:
    assert run_charlm.error("score", "counts", "mika", "éva") == "'éva' has 'é', which is not in the vocabulary"
    (names.parent / "blank.txt").write_text(" \n\n")
    assert run_charlm.error("score", "counts", "blank.txt") == "blank.txt has no line that is not blank"
