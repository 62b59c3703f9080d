"""`charlm sample`: new texts from a run."""

from __future__ import annotations

import json
import math
import sys
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Option

from charlm.cli.options import Run, file_name
from charlm.cli.texts import lines_of_file, lines_of_run

if TYPE_CHECKING:
    from charlm import checkpoint

_RULES = "Rules"
_OUTPUT = "Output"


def sample(
    run: Run,
    n: Annotated[int, Option("-n", help="How many, for each prefix.")] = 10,
    temperature: Annotated[float, Option(help="Below 1 plays safe, above 1 dares; 0 is the most probable.")] = 1.0,
    top_k: Annotated[int | None, Option(help="Draw from the k most probable characters only.")] = None,
    top_p: Annotated[
        float | None, Option(help="Draw from the most probable characters that have this probability together.")
    ] = None,
    prefix: Annotated[list[str] | None, Option(help="How samples start; may be given many times.")] = None,
    prefix_file: Annotated[
        str | None, Option(metavar="FILE", parser=file_name, help="The same, a beginning a line.")
    ] = None,
    seed: Annotated[int | None, Option(help="The same seed, the same samples (default: random).")] = None,
    stop: Annotated[
        bool, Option("--stop/--no-stop", help="End a sample at the end of a line, or go on to --max-length.")
    ] = True,
    novel: Annotated[bool, Option("--novel", help="Not a line of the run's data.", rich_help_panel=_RULES)] = False,
    unique: Annotated[bool, Option("--unique", help="No two are equal.", rich_help_panel=_RULES)] = False,
    min_length: Annotated[int, Option(help="Characters, at least.", rich_help_panel=_RULES)] = 0,
    max_length: Annotated[
        int | None,
        Option(
            help="Characters, at most (default: 1000, and what is longer is cut there).",
            rich_help_panel=_RULES,
        ),
    ] = None,
    suffix: Annotated[
        list[str] | None, Option(help="How a sample ends; of several, with any.", rich_help_panel=_RULES)
    ] = None,
    contains: Annotated[
        list[str] | None, Option(help="What a sample has in it; of several, all.", rich_help_panel=_RULES)
    ] = None,
    regex: Annotated[str | None, Option(help="What the whole sample matches.", rich_help_panel=_RULES)] = None,
    ban: Annotated[
        str | None,
        Option(metavar="FILE", parser=file_name, help="No line of it is in a sample.", rich_help_panel=_RULES),
    ] = None,
    exclude: Annotated[
        str | None,
        Option(metavar="FILE", parser=file_name, help="No line of it is a sample.", rich_help_panel=_RULES),
    ] = None,
    scores: Annotated[
        bool,
        Option("--scores", help="After a tab, the log-probability of each, in nats.", rich_help_panel=_OUTPUT),
    ] = False,
    as_json: Annotated[
        bool,
        Option("--json", help="An object a line: text, log_prob, and whether it is novel.", rich_help_panel=_OUTPUT),
    ] = False,
    count: Annotated[
        bool,
        Option("--count", help="Print how many there were, and how fast, in their place.", rich_help_panel=_OUTPUT),
    ] = False,
    interactive: Annotated[
        bool, Option("--interactive", help="Ask for beginnings, and for other options.", rich_help_panel=_OUTPUT)
    ] = False,
) -> None:
    """Print new names, or whatever the lines were that the run was trained on, one a line.

    A text that breaks a rule is drawn again; where the model is small, as that of names is, most rules go into the
    probabilities instead. `docs/sampling.md` says which.
    """
    outputs = {"--json": as_json, "--count": count, "--interactive": interactive}
    others = {
        "--scores": scores and count,
        "--prefix": prefix and interactive,
        "--prefix-file": prefix_file and interactive,
    }
    if len(given := [name for name, is_given in {**others, **outputs}.items() if is_given]) > 1:
        raise ValueError(f"{given[0]} and {given[1]} do not go together")
    from charlm import checkpoint

    loaded = checkpoint.load(run)
    prefixes = [*(prefix or ()), *([] if prefix_file is None else lines_of_file(prefix_file))]
    options: dict[str, Any] = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "prefix": prefixes[0] if len(prefixes) == 1 else prefixes or "",
        "suffix": suffix or "",
        "contains": contains or "",
        "regex": regex,
        "ban": [] if ban is None else lines_of_file(ban),
        "exclude": [] if exclude is None else lines_of_file(exclude),
        "novel": loaded.load_data() if novel else False,
        "unique": unique,
        "min_length": min_length,
        "max_length": max_length,
        "stop": stop,
        "seed": seed,
    }
    if interactive:
        from charlm.cli.interactive import Conversation

        Conversation(loaded, {**options, "n": n, "scores": scores}).hold()
    elif count:
        _count(loaded, n, options)
    elif as_json:
        _print_json(loaded, n, options)
    elif scores:
        from charlm.sampler import stream

        for texts in stream(loaded.model, loaded.vocabulary, n, scores=True, **options):
            _write("".join(f"{text}\t{log_prob:.4f}\n" for text, log_prob in texts))
    else:
        _print(loaded, n, options)


def _print(run: checkpoint.Run, n: int, options: dict[str, Any]) -> None:
    from charlm.sampler import stream_lines

    binary = getattr(sys.stdout, "buffer", None)
    for lines in stream_lines(run.model, run.vocabulary, n, **options):
        if binary is None or (sys.stdout.encoding or "").lower().replace("-", "") != "utf8":
            _write(lines.decode())
        else:
            sys.stdout.flush()
            binary.write(lines)
            binary.flush()


def _count(run: checkpoint.Run, n: int, options: dict[str, Any]) -> None:
    from charlm.sampler import Draw

    began = time.perf_counter()
    draw = Draw(run.model, run.vocabulary, n, **options)
    texts = sum(sampler.size for sampler in draw.blocks() if draw.lines(sampler))
    seconds = time.perf_counter() - began
    typer.echo(f"{texts:,} texts from {draw.draws:,} draws in {seconds:.2f} s: {texts / seconds:,.0f} texts/s")


def _print_json(run: checkpoint.Run, n: int, options: dict[str, Any]) -> None:
    from charlm.sampler import stream

    known = _known_texts(run)
    for texts in stream(run.model, run.vocabulary, n, scores=True, **options):
        for text, log_prob in texts:
            fields = {
                "text": text,
                "log_prob": log_prob if math.isfinite(log_prob) else None,
                "novel": None if known is None else text not in known,
            }
            sys.stdout.write(json.dumps(fields, ensure_ascii=False) + "\n")
        sys.stdout.flush()


def _known_texts(run: checkpoint.Run) -> set[str] | None:
    """The lines of the run's data, and the empty one; None where it is there no more."""
    try:
        return {*lines_of_run(run), ""}
    except (OSError, ValueError):
        return None


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
