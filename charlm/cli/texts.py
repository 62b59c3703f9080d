"""The texts that commands are given, or that a run was trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from charlm.checkpoint import Run


def lines_of_file(path: str) -> list[str]:
    """The lines of a file, without white space behind them; those that are blank are none."""
    from charlm import sources

    source = sources.read(path)
    try:
        text = b"".join(source.pieces("\n")).decode()
    finally:
        source.close()
    lines = [line for piece in text.split("\n") if (line := piece.rstrip())]
    if not lines:
        raise ValueError(f"{path} has no line that is not blank")
    return lines


def lines_of_run(run: Run) -> list[str]:
    """The lines of the data of a run; OSError or ValueError where it is not there any more."""
    vocabulary, tokens = run.vocabulary, run.load_data().all.tokens
    if vocabulary.tokens_are != "words":
        return [line for line in vocabulary.decode(tokens).split(vocabulary.symbols[vocabulary.boundary]) if line]
    # Those of words are joined by spaces.
    bounds = (tokens == vocabulary.boundary).nonzero()[:, 0].tolist()
    pieces = zip([-1, *bounds], [*bounds, len(tokens)], strict=True)
    return [vocabulary.decode(tokens[start + 1 : stop]) for start, stop in pieces if stop > start + 1]
