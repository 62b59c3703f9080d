"""The options of the commands that read texts to train on."""

from __future__ import annotations

from typing import Annotated

from typer import Option

from charlm.cli.options import file_name, one_of

PANEL = "Data"

Dev = Annotated[
    str | None,
    Option(parser=file_name, metavar="FILE", help="Dev has a file of its own; so has test.", rich_help_panel=PANEL),
]
Test = Annotated[str | None, Option(parser=file_name, metavar="FILE", help="That of test.", rich_help_panel=PANEL)]
Mode = Annotated[str | None, one_of("mode", "A text a line, or one text", PANEL)]
Split = Annotated[str | None, one_of("split", "Which lines are train, dev and test", PANEL)]
SplitSeed = Annotated[int | None, Option(help="Of the random split.", rich_help_panel=PANEL)]
Tokens = Annotated[str | None, one_of("tokens", "What a model reads and writes", PANEL)]
LimitVocab = Annotated[
    int | None, Option(metavar="N", help="Only the N most frequent have a token.", rich_help_panel=PANEL)
]
MinCount = Annotated[
    int | None, Option(metavar="N", help="Only what is there N times has a token.", rich_help_panel=PANEL)
]
Encoding = Annotated[
    str | None,
    Option(metavar="NAME", help="latin-1, cp1252, utf-16, ... (default: UTF-8).", rich_help_panel=PANEL),
]
