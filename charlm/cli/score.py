"""`charlm score`: how likely given texts are."""

from __future__ import annotations

import json
import math
import os
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from charlm.cli.console import measures
from charlm.cli.options import Run, is_piped
from charlm.cli.texts import lines_of_file, lines_of_run

if TYPE_CHECKING:
    from charlm.scoring import Scores
    from charlm.vocabulary import Vocabulary

# Characters beside each other in the table of a text.
_COLUMNS = 12


def score(
    run: Run,
    texts: Annotated[
        list[str] | None,
        Argument(
            metavar="[FILE|WORDS...]",
            help="Words; or one file of a text a line, - for standard input (default: the run's own data).",
        ),
    ] = None,
    top: Annotated[int, Option(help="Of a file, show so many of the most and of the least likely texts.")] = 10,
    each: Annotated[
        bool, Option("--each", help="Print each text with, after a tab, its log-probability in nats.")
    ] = False,
    as_json: Annotated[
        bool, Option("--json", help="Print JSON, with --each or WORDS an object a line; what is infinite is null.")
    ] = False,
) -> None:
    """Say how likely a model finds words: the surprise of each character, -log2 of its probability, in bits.

    The last character of a text is its end. nll is the sum of all surprises in nats, -log of the text's probability.
    """
    from charlm import checkpoint
    from charlm.scoring import score as score_texts

    loaded = checkpoint.load(run)
    words = texts or []
    is_file = not words or (len(words) == 1 and (is_piped(words[0]) or os.path.exists(words[0])))
    if not words:
        words = lines_of_run(loaded)
    elif is_file:
        words = lines_of_file(words[0])
    scores = score_texts(loaded.model, loaded.vocabulary, words)
    if each:
        _print_each(scores, loaded.vocabulary, as_json)
    elif is_file:
        _print_summary(scores, loaded.vocabulary, top, as_json)
    elif as_json:
        _print_each(scores, loaded.vocabulary, as_json)
    else:
        _print_words(scores, loaded.vocabulary)


def _print_each(scores: Scores, vocabulary: Vocabulary, as_json: bool) -> None:
    totals = scores.totals.tolist()
    if not as_json:
        typer.echo("\n".join(f"{text}\t{total:.4f}" for text, total in zip(scores.texts, totals, strict=True)))
        return
    for i, (text, total) in enumerate(zip(scores.texts, totals, strict=True)):
        log_probs = scores.of(i).tolist()
        fields: dict[str, Any] = {
            "text": text,
            **_numbers(-total, len(log_probs), _unit(vocabulary)),
            vocabulary.tokens_are: [
                {_unit(vocabulary): symbol, "nll": _finite(-log_prob)}
                for symbol, log_prob in zip(_shown(text, vocabulary), log_probs, strict=True)
            ],
        }
        typer.echo(json.dumps(fields, ensure_ascii=False))


def _print_words(scores: Scores, vocabulary: Vocabulary) -> None:
    for i, text in enumerate(scores.texts):
        surprises = [-log_prob / math.log(2.0) for log_prob in scores.of(i).tolist()]
        nll = -float(scores.totals[i])
        if i > 0:
            typer.echo()
        typer.echo(f"{text}: nll {nll:.4f}, {nll / len(surprises):.4f} a {_unit(vocabulary)}")
        cells = list(zip(_shown(text, vocabulary), surprises, strict=True))
        for start in range(0, len(cells), _COLUMNS):
            row = cells[start : start + _COLUMNS]
            widths = [max(7, len(symbol) + 2) for symbol, _ in row]
            names, bits = zip(*row, strict=True)
            typer.echo(f"  {'':4}" + "".join(f"{symbol:>{width}}" for symbol, width in zip(names, widths, strict=True)))
            typer.echo(
                f"  {'bits':4}" + "".join(f"{value:{width}.2f}" for value, width in zip(bits, widths, strict=True))
            )
    if len(scores) > 1:
        typer.echo()
        _print_total(scores, vocabulary)


def _print_summary(scores: Scores, vocabulary: Vocabulary, top: int, as_json: bool) -> None:
    totals = scores.totals
    order = totals.argsort(descending=True, stable=True).tolist()
    most, least = order[:top], order[::-1][:top]
    if as_json:
        fields = {
            "texts": len(scores),
            vocabulary.tokens_are: len(scores.log_probs),
            **_numbers(scores.nll, len(scores.log_probs), _unit(vocabulary)),
            **{
                name: [{"text": scores.texts[i], "nll": _finite(-float(totals[i]))} for i in some]
                for name, some in (("most_likely", most), ("least_likely", least))
            },
        }
        typer.echo(json.dumps(fields, ensure_ascii=False))
        return
    _print_total(scores, vocabulary)
    width = max((len(scores.texts[i]) for i in (*most, *least)), default=0)
    for name, some in (("most likely", most), ("least likely", least)):
        if some:
            typer.echo(f"\n{name:{width + 2}} {'nll':>10}")
        for i in some:
            typer.echo(f"  {scores.texts[i]:{width}} {-float(totals[i]):10.4f}")


def _unit(vocabulary: Vocabulary) -> str:
    return vocabulary.tokens_are.removesuffix("s")


def _print_total(scores: Scores, vocabulary: Vocabulary) -> None:
    nll, perplexity, bits = measures(scores.nll_per_character).values()
    tokens = f"{len(scores.log_probs):,} {vocabulary.tokens_are}"
    typer.echo(f"{len(scores):,} texts, {tokens} with their ends: nll {scores.nll:,.2f}")
    typer.echo(f"a {_unit(vocabulary)}: nll {nll:.4f}, perplexity {perplexity:.4f}, {bits:.4f} bits")


def _shown(text: str, vocabulary: Vocabulary) -> list[str]:
    """The characters of a text and its end, or what else the tokens are, each as something to see."""
    tokens = [*vocabulary.encode(text).tolist(), vocabulary.boundary]
    symbols = [vocabulary.symbols[token] for token in tokens]
    return [symbol if symbol.isprintable() else repr(symbol)[1:-1] for symbol in symbols]


def _numbers(nll: float, tokens: int, unit: str) -> dict[str, float | None]:
    return {
        "nll": _finite(nll),
        **{
            {"nll": f"nll_per_{unit}"}.get(name, name): _finite(value)
            for name, value in measures(nll / tokens, unit).items()
        },
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
