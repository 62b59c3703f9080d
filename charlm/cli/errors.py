"""Errors as one line each."""

from __future__ import annotations

from charlm._memory import is_out_of_memory
from charlm.cli import DEBUG_VARIABLE, EXIT_FAILURE, EXIT_USAGE
from charlm.cli.commands import UsageError
from charlm.cli.options import as_options

# Of a single word: what was typed may be long.
_LONGEST_WORD = 300


def explain(error: Exception) -> tuple[str, int]:
    """The line that is shown for an error, and the exit code."""
    if isinstance(error, UsageError):
        return _one_line(error.format_message()), EXIT_USAGE  # type: ignore[attr-defined]
    if isinstance(error, ConnectionError):
        return _one_line(str(error)), EXIT_FAILURE
    if isinstance(error, OSError) and error.strerror:
        # What has no name is standard output.
        where = "cannot write" if error.filename is None else error.filename
        return _one_line(f"{where}: {error.strerror}"), EXIT_USAGE
    if is_out_of_memory(error):
        return (
            "memory has run out: a smaller --batch-size, --context-length, --embedding-dim or --hidden-dim takes less"
        ), EXIT_FAILURE
    if type(error) is ValueError:
        # Of what was given; that of a subclass is about what is in a file.
        return as_options(_one_line(str(error))), EXIT_USAGE
    if isinstance(error, (ValueError, OSError, ImportError)):
        return _one_line(str(error)), EXIT_USAGE
    if isinstance(error, ArithmeticError):
        return as_options(_one_line(str(error))), EXIT_FAILURE
    return (
        f"{type(error).__name__}: {_one_line(str(error))} (a bug in charlm: please report it with the output of "
        f"`charlm info` and the traceback, which {DEBUG_VARIABLE}=1 shows)"
    ), EXIT_FAILURE


def _one_line(message: str) -> str:
    words = message.split()
    return " ".join(word if len(word) <= _LONGEST_WORD else f"{word[:_LONGEST_WORD]}..." for word in words)
