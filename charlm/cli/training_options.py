"""The options of the commands that train: `train` takes one value of each, `sweep` may take several."""

from __future__ import annotations

from typing import Annotated, Any

from typer import Argument, Option

from charlm.cli.options import file_name, integer_or_full, integers, one_of, two_numbers

MODEL, OPTIMIZATION, RUN = "Model", "Optimization", "Run"

# Those of charlm.presets and charlm.backends, which wait for torch.
_PRESETS = ("fast", "best", "makemore", "eureka", "bigram", "count-bigram")
BACKENDS = ("eager", "compile", "ops", "fused")

Path = Annotated[
    str | None,
    Argument(
        metavar="FILE",
        parser=file_name,
        help="Text, or TOKENS of charlm encode; - for standard input (default: US given names).",
    ),
]
CheckpointEvery = Annotated[
    int | None, Option(help="Steps between checkpoints (default: a tenth of the run).", rich_help_panel=RUN)
]
Quiet = Annotated[bool, Option("--quiet", "-q", help="No progress, only the result.", rich_help_panel=RUN)]
Preset = Annotated[
    str | None,
    one_of(_PRESETS, "Options to start from (default: those of the model, fast for mlp)", RUN),
]
Seed = Annotated[int | None, Option(help="Of initial weights and batches.", rich_help_panel=RUN)]
Backend = Annotated[str | None, one_of(BACKENDS, "What computes the steps", RUN)]
Device = Annotated[str | None, Option(help="cpu, cuda, cuda:1, ...", rich_help_panel=RUN)]

Model = Annotated[str | None, one_of("model", "Counts, one layer or two", MODEL)]
ContextLength = Annotated[int | None, Option(help="Characters the MLP reads.", rich_help_panel=MODEL)]
EmbeddingDim = Annotated[int | None, Option(help="Size of an embedding.", rich_help_panel=MODEL)]
HiddenDim = Annotated[int | None, Option(help="Size of the hidden layer.", rich_help_panel=MODEL)]
Direct = Annotated[
    bool | None, Option("--direct/--no-direct", help="Connect embeddings to logits.", rich_help_panel=MODEL)
]
Softcap = Annotated[float | None, Option(help="Bound of the logits.", rich_help_panel=MODEL)]

Steps = Annotated[int | None, Option(help="Length of the whole run.", rich_help_panel=OPTIMIZATION)]
BatchSize = Annotated[
    Any,
    Option(parser=integer_or_full, metavar="N|full", help="Examples a step; full: all.", rich_help_panel=OPTIMIZATION),
]
Optimizer = Annotated[str | None, one_of("optimizer", "What updates the parameters", OPTIMIZATION)]
LearningRate = Annotated[float | None, Option(help="Base rate.", rich_help_panel=OPTIMIZATION)]
Momentum = Annotated[float | None, Option(help="Of sgd.", rich_help_panel=OPTIMIZATION)]
Betas = Annotated[Any, Option(parser=two_numbers, metavar="B1,B2", help="Of adamw.", rich_help_panel=OPTIMIZATION)]
Eps = Annotated[float | None, Option(help="Of adamw.", rich_help_panel=OPTIMIZATION)]
WeightDecay = Annotated[float | None, Option(help="Decoupled with adamw.", rich_help_panel=OPTIMIZATION)]
Schedule = Annotated[str | None, one_of("schedule", "What becomes of the learning rate", OPTIMIZATION)]
WarmupSteps = Annotated[int | None, Option("--warmup", help="Steps of linear warm-up.", rich_help_panel=OPTIMIZATION)]
Milestones = Annotated[
    Any, Option(parser=integers, metavar="S1,S2,...", help="Where 'step' decays.", rich_help_panel=OPTIMIZATION)
]
DecayFactor = Annotated[float | None, Option(help="Of 'step'.", rich_help_panel=OPTIMIZATION)]
MaxGradNorm = Annotated[float | None, Option(help="Clip gradients to it.", rich_help_panel=OPTIMIZATION)]
