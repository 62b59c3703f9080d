"""charlm: character-level neural language models in PyTorch, and the fused kernels behind them."""

from charlm import checkpoint, data, models, ops, presets
from charlm._version import __version__
from charlm.evaluation import evaluate
from charlm.models import MLP, CountBigram, NeuralBigram
from charlm.presets import PRESETS, TrainingConfig
from charlm.sampler import sample
from charlm.trainer import NonFiniteLossError, Trainer
from charlm.vocabulary import Vocabulary

__all__ = [
    "MLP",
    "PRESETS",
    "CountBigram",
    "NeuralBigram",
    "NonFiniteLossError",
    "Trainer",
    "TrainingConfig",
    "Vocabulary",
    "__version__",
    "checkpoint",
    "data",
    "evaluate",
    "models",
    "ops",
    "presets",
    "sample",
]
