"""`charlm sample`: new texts from a run."""

from __future__ import annotations

import sys
from typing import Annotated

from typer import Option

from charlm.cli.options import Run


def sample(
    run: Run,
    n: Annotated[int, Option("-n", help="How many.")] = 10,
    temperature: Annotated[float, Option(help="Below 1 plays safe, above 1 dares; 0 is the most probable.")] = 1.0,
    top_k: Annotated[int | None, Option(help="Draw from the k most probable characters only.")] = None,
    prefix: Annotated[str, Option(help="How every sample starts.")] = "",
    seed: Annotated[int | None, Option(help="The same seed, the same samples (default: random).")] = None,
    max_length: Annotated[int, Option(help="Where a sample that does not end is cut.")] = 1000,
    stop: Annotated[
        bool, Option("--stop/--no-stop", help="End a sample at the end of a line, or go on to --max-length.")
    ] = True,
) -> None:
    """Print new names, or whatever the lines were that the run was trained on, one a line."""
    from charlm import checkpoint, sampler

    loaded = checkpoint.load(run)
    blocks = sampler.stream(
        loaded.model,
        loaded.vocabulary,
        n,
        temperature=temperature,
        top_k=top_k,
        prefix=prefix,
        seed=seed,
        max_length=max_length,
        stop=stop,
    )
    for texts in blocks:
        sys.stdout.write("".join(f"{text}\n" for text in texts))
        sys.stdout.flush()
