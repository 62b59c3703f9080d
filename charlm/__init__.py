"""charlm: character-level neural language models in PyTorch, and the fused kernels behind them.

What is public here is imported at its first use (PEP 562): `import charlm`, and with it `charlm --help`, does not wait
for torch, and an extension that does not load is an error of what needs it only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from charlm._version import __version__

if TYPE_CHECKING:
    from charlm import (
        backends,
        checkpoint,
        data,
        distributed,
        export,
        models,
        nn,
        ops,
        plots,
        presets,
        sampler,
        scoring,
        search_space,
    )
    from charlm.checkpoint import load
    from charlm.configuration import TrainingConfig
    from charlm.evaluation import evaluate
    from charlm.models import MLP, CountBigram, NeuralBigram
    from charlm.population import Population
    from charlm.presets import PRESETS
    from charlm.sampler import sample
    from charlm.scoring import score
    from charlm.sweep import Sweep, SweepConfig
    from charlm.trainer import NonFiniteLossError, Trainer
    from charlm.training_run import TrainingRun
    from charlm.vocabulary import Vocabulary

__all__ = [
    "MLP",
    "PRESETS",
    "CountBigram",
    "NeuralBigram",
    "NonFiniteLossError",
    "Population",
    "Sweep",
    "SweepConfig",
    "Trainer",
    "TrainingConfig",
    "TrainingRun",
    "Vocabulary",
    "__version__",
    "backends",
    "checkpoint",
    "data",
    "distributed",
    "evaluate",
    "export",
    "load",
    "models",
    "nn",
    "ops",
    "plots",
    "presets",
    "sample",
    "sampler",
    "score",
    "scoring",
    "search_space",
]

# The module that defines each name; the rest of `__all__` are modules themselves.
_HOMES = {
    "MLP": "models",
    "PRESETS": "presets",
    "CountBigram": "models",
    "NeuralBigram": "models",
    "NonFiniteLossError": "trainer",
    "Population": "population",
    "Sweep": "sweep",
    "SweepConfig": "sweep",
    "Trainer": "trainer",
    "TrainingConfig": "configuration",
    "TrainingRun": "training_run",
    "Vocabulary": "vocabulary",
    "evaluate": "evaluation",
    "load": "checkpoint",
    "sample": "sampler",
    "score": "scoring",
}

# Type checkers read the imports above, and know no other name.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        home = f"charlm.{_HOMES.get(name, name)}"
        try:
            module = import_module(home)
        except AttributeError as error:
            # Left as it is, it would be read as `name` not existing.
            raise ImportError(f"{home} cannot be imported: {error}") from error
        value = getattr(module, name) if name in _HOMES else module
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
