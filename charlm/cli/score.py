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
        boundary = loaded.vocabulary.characters[loaded.vocabulary.boundary]
        known = loaded.vocabulary.decode(loaded.load_data().all.tokens)
        words = [line for line in known.split(boundary) if line]
    elif is_file:
        words = _lines(words[0])
    scores = score_texts(loaded.model, loaded.vocabulary, words)
    if each:
        _print_each(scores, loaded.vocabulary, as_json)
    elif is_file:
        _print_summary(scores, top, as_json)
    elif as_json:
        _print_each(scores, loaded.vocabulary, as_json)
    else:
        _print_words(scores, loaded.vocabulary)


def _lines(path: str) -> list[str]:
    """The lines of a text, without white space behind them; those that are blank are none."""
    from charlm import sources

    lines = [line for text in sources.read(path).text.decode().split("\n") if (line := text.rstrip())]
    if not lines:
        raise ValueError(f"{path} has no line that is not blank")
    return lines


def _print_each(scores: Scores, vocabulary: Vocabulary, as_json: bool) -> None:
    totals = scores.totals.tolist()
    if not as_json:
        typer.echo("\n".join(f"{text}\t{total:.4f}" for text, total in zip(scores.texts, totals, strict=True)))
        return
    for i, (text, total) in enumerate(zip(scores.texts, totals, strict=True)):
        log_probs = scores.of(i).tolist()
        fields: dict[str, Any] = {
            "text": text,
            **_numbers(-total, len(log_probs)),
            "characters": [
                {"character": character, "nll": _finite(-log_prob)}
                for character, log_prob in zip(_shown(text, vocabulary), log_probs, strict=True)
            ],
        }
        typer.echo(json.dumps(fields, ensure_ascii=False))


def _print_words(scores: Scores, vocabulary: Vocabulary) -> None:
    for i, text in enumerate(scores.texts):
        surprises = [-log_prob / math.log(2.0) for log_prob in scores.of(i).tolist()]
        nll = -float(scores.totals[i])
        if i > 0:
            typer.echo()
        typer.echo(f"{text}: nll {nll:.4f}, {nll / len(surprises):.4f} a character")
        cells = list(zip(_shown(text, vocabulary), surprises, strict=True))
        for start in range(0, len(cells), _COLUMNS):
            row = cells[start : start + _COLUMNS]
            typer.echo(f"  {'':4}" + "".join(f"{character:>7}" for character, _ in row))
            typer.echo(f"  {'bits':4}" + "".join(f"{surprise:7.2f}" for _, surprise in row))
    if len(scores) > 1:
        typer.echo()
        _print_total(scores)


def _print_summary(scores: Scores, top: int, as_json: bool) -> None:
    totals = scores.totals
    order = totals.argsort(descending=True, stable=True).tolist()
    most, least = order[:top], order[::-1][:top]
    if as_json:
        fields = {
            "texts": len(scores),
            "characters": len(scores.log_probs),
            **_numbers(scores.nll, len(scores.log_probs)),
            **{
                name: [{"text": scores.texts[i], "nll": _finite(-float(totals[i]))} for i in some]
                for name, some in (("most_likely", most), ("least_likely", least))
            },
        }
        typer.echo(json.dumps(fields, ensure_ascii=False))
        return
    _print_total(scores)
    width = max((len(scores.texts[i]) for i in (*most, *least)), default=0)
    for name, some in (("most likely", most), ("least likely", least)):
        if some:
            typer.echo(f"\n{name:{width + 2}} {'nll':>10}")
        for i in some:
            typer.echo(f"  {scores.texts[i]:{width}} {-float(totals[i]):10.4f}")


def _print_total(scores: Scores) -> None:
    nll, perplexity, bits = measures(scores.nll_per_character).values()
    typer.echo(f"{len(scores):,} texts, {len(scores.log_probs):,} characters with their ends: nll {scores.nll:,.2f}")
    typer.echo(f"a character: nll {nll:.4f}, perplexity {perplexity:.4f}, {bits:.4f} bits")


def _shown(text: str, vocabulary: Vocabulary) -> list[str]:
    """The characters of a text and its end, each as something to see."""
    end = vocabulary.symbols[vocabulary.boundary]
    return [character if character.isprintable() else repr(character)[1:-1] for character in (*text, end)]


def _numbers(nll: float, characters: int) -> dict[str, float | None]:
    return {
        "nll": _finite(nll),
        **{
            {"nll": "nll_per_character"}.get(name, name): _finite(value)
            for name, value in measures(nll / characters).items()
        },
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
