"""The configuration of a training run: every option of it as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cache
from typing import Any, Literal, get_type_hints

import torch

from charlm import data
from charlm._rules import shown
from charlm.data import Dataset, Split
from charlm.models import MLP, CountBigram, LanguageModel, NeuralBigram
from charlm.optimizers import OptimizerOptions
from charlm.schema import checked
from charlm.token_arrays import OnRead
from charlm.trainer import Trainer
from charlm.vocabulary import TokensAre, Vocabulary

# How a configuration calls standard input, and the copy of it that a run has.
STANDARD_INPUT = "-"
# The options that name a text, and the files in the folder of a run that have what these read from a pipe.
KEPT_TEXTS = {"path": "text.txt", "dev": "dev.txt", "test": "test.txt"}


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(OptimizerOptions):
    """All options of a training run; the defaults are the lecture's model and optimizer.

    Model, data and trainer options have the meaning they have in `charlm.models`, `charlm.data.load` and
    `charlm.Trainer`; those of the optimizer are inherited. `steps` is the length of the run, which schedules decay
    over. `seed` draws initial weights and batches; the split has its own seed, so that runs with different seeds are
    measured on the same examples.

    A `path`, `dev` or `test` of "-" is standard input at the start of a run, and afterwards the copy in its folder of
    whatever was read from a pipe.
    """

    model: Literal["count-bigram", "bigram", "mlp"] = "mlp"
    context_length: int = 3
    embedding_dim: int = 10
    hidden_dim: int = 200
    direct: bool = False
    softcap: float | None = None
    smoothing: float = 0.0

    path: str | None = None
    dev: str | None = None
    test: str | None = None
    mode: Literal["lines", "stream"] = "lines"
    split: Literal["random", "makemore"] = "random"
    split_seed: int = 42
    tokens: TokensAre = "characters"
    limit_vocab: int | None = None
    min_count: int | None = None
    encoding: str | None = None

    steps: int = 200_000
    batch_size: int | Literal["full"] = 32
    learning_rate: float = 0.1
    schedule: Literal["constant", "step", "cosine", "linear"] = "constant"
    warmup_steps: int = 0
    milestones: tuple[int, ...] | None = None
    decay_factor: float = 0.1
    backend: str | None = None
    device: str | None = None
    seed: int = 42

    def __post_init__(self) -> None:
        for name, hint in _hints().items():
            # Of a frozen instance; 1 becomes the 1.0 that a float option is.
            object.__setattr__(self, name, checked(getattr(self, name), hint, name))
        super().__post_init__()

    def to_dict(self) -> dict[str, Any]:
        """The options by name; JSON types, but for tuples, which JSON writes as lists."""
        return asdict(self)

    @classmethod
    def from_dict(cls, options: Mapping[str, Any]) -> TrainingConfig:
        """The inverse of `to_dict`, also after a round trip through JSON.

        Raises:
            ValueError: an option is unknown, or its value has the wrong type.
        """
        if not isinstance(options, Mapping):
            raise ValueError(f"training options must be an object, got {shown(options)}")
        unknown = sorted(set(options) - {field.name for field in fields(cls)})
        if unknown:
            raise ValueError(f"unknown training options: {shown(', '.join(unknown))[1:-1]}")
        arguments: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in options.items()
        }
        return cls(**arguments)

    def load_data(
        self,
        vocabulary: Vocabulary | None = None,
        kept: Mapping[str, str] | None = None,
        on_read: OnRead | None = None,
    ) -> Dataset:
        """The dataset; a bigram reads one token, so its contexts have length 1.

        Args:
            vocabulary: of the model, if it is trained.
            kept: where a run keeps the text of each option that is "-"; None reads standard input.
            on_read: as in `charlm.data.load`.
        """
        texts = self.texts(kept)
        if self.path is not None and data.is_encoded(self.path):
            return data.load(
                self.path,
                context_length=self.context_length if self.model == "mlp" else None,
                mode=self.mode,
                vocabulary=vocabulary,
                tokens=self.tokens,
            )
        return data.load(
            texts["path"],
            dev=texts["dev"],
            test=texts["test"],
            context_length=self._contexts,
            mode=self.mode,
            split=self.split,
            seed=self.split_seed,
            vocabulary=vocabulary,
            tokens=self.tokens,
            limit_vocab=self.limit_vocab,
            min_count=self.min_count,
            encoding=self.encoding,
            on_read=on_read,
        )

    def load_whole(self, path: str, vocabulary: Vocabulary) -> Split:
        """All examples of another text, read as this data is."""
        return data.load_whole(
            path, context_length=self._contexts, mode=self.mode, vocabulary=vocabulary, encoding=self.encoding
        )

    def texts(self, kept: Mapping[str, str] | None = None) -> dict[str, str | None]:
        """Where `path`, `dev` and `test` are read."""
        paths = {name: getattr(self, name) for name in KEPT_TEXTS}
        return {name: kept[name] if kept and path == STANDARD_INPUT else path for name, path in paths.items()}

    def data_options(self) -> tuple[object, ...]:
        """All that `load_data` depends on: where it is equal, configurations have the same data."""
        names = (*KEPT_TEXTS, "mode", "split", "split_seed", "tokens", "limit_vocab", "min_count", "encoding")
        return (self.model == "mlp", self._contexts, *(getattr(self, name) for name in names))

    @property
    def _contexts(self) -> int:
        return self.context_length if self.model == "mlp" else 1

    def create_model(self, vocab_size: int) -> LanguageModel:
        """The model with its initial weights drawn from `seed`."""
        if self.model == "count-bigram":
            return CountBigram(vocab_size, self.smoothing)
        if self.model == "bigram":
            return NeuralBigram(vocab_size)
        return MLP(
            vocab_size,
            self.context_length,
            self.embedding_dim,
            self.hidden_dim,
            direct=self.direct,
            softcap=self.softcap,
            generator=torch.Generator().manual_seed(self.seed),
        )

    def create_trainer(self, model: LanguageModel, dataset: Dataset) -> Trainer:
        """The trainer; `steps` is its `total_steps`."""
        return Trainer(
            model,
            dataset,
            **{field.name: getattr(self, field.name) for field in fields(OptimizerOptions)},
            learning_rate=self.learning_rate,
            schedule=self.schedule,
            total_steps=self.steps,
            warmup_steps=self.warmup_steps,
            milestones=self.milestones,
            decay_factor=self.decay_factor,
            batch_size=self.batch_size,
            backend=self.backend,
            seed=self.seed,
            device=self.device,
        )


@cache
def _hints() -> dict[str, Any]:
    """The types of all options, which a sweep of a thousand models looks at a thousand times."""
    return get_type_hints(TrainingConfig)
