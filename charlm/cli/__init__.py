"""The command line `charlm`: `commands.py` has the table of its commands.

Nothing is imported here that takes time, so that Ctrl-C is answered from the start.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext

from charlm.cli import startup, streams

# Shows the traceback of an error instead of its message.
DEBUG_VARIABLE = "CHARLM_DEBUG"
EXIT_FAILURE, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130


def main(arguments: Sequence[str] | None = None, program: str = "charlm") -> int:
    """Runs one command.

    Args:
        arguments: without the program's name; None takes them from `sys.argv`.
        program: how it was called.

    Returns:
        The exit code: 0, 2 for usage and bad input, 130 after Ctrl-C, 143 after SIGTERM, 1 for anything else that went
        wrong.
    """
    try:
        return _run(sys.argv[1:] if arguments is None else arguments, program)
    except KeyboardInterrupt:
        # Where there is no command.
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    finally:
        startup.end()


def _run(arguments: Sequence[str], program: str) -> int:
    streams.open_closed()
    startup.begin()
    if sys.stdout is None:
        print("error: standard output is closed", file=sys.stderr)
        return EXIT_USAGE
    with streams.warnings_as_lines() if not os.environ.get(DEBUG_VARIABLE) else nullcontext():
        return _run_command(arguments, program)


def _run_command(arguments: Sequence[str], program: str) -> int:
    from charlm.cli.commands import Interrupted, app

    try:
        code = int(app(list(arguments), prog_name=program, standalone_mode=False) or 0)
        sys.stdout.flush()
        return code
    except Interrupted as interruption:
        print("interrupted", file=sys.stderr)
        return interruption.exit_code
    except Exception as error:
        # What cannot be written must not be tried again when the interpreter ends.
        streams.flush_or_discard()
        if isinstance(error, BrokenPipeError):
            # The reader, such as `head`, has what it wanted.
            return EXIT_FAILURE
        if os.environ.get(DEBUG_VARIABLE):
            raise
        from charlm.cli.errors import explain

        message, code = explain(error)
        streams.complain("error", message)
        return code
