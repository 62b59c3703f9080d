"""The language models: contexts (..., T) of token ids in, logits (..., V) of the next token out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from charlm.models.base import LanguageModel
from charlm.models.bigram import CountBigram, NeuralBigram
from charlm.models.mlp import MLP

__all__ = ["MLP", "CountBigram", "LanguageModel", "NeuralBigram", "engine_parameters", "from_config"]

_KINDS: dict[str, type[LanguageModel]] = {model.kind: model for model in (CountBigram, NeuralBigram, MLP)}


def from_config(
    config: Mapping[str, Any], *, backend: str = "ops", generator: torch.Generator | None = None
) -> LanguageModel:
    """The model that `config` describes: the inverse of `LanguageModel.config`, with fresh weights.

    Args:
        config: "kind" and the arguments of that model's constructor.
        backend: whose ops compute, "ops" or "eager".
        generator: a CPU generator for the initial weights of an `MLP`; None is the global one.

    Raises:
        ValueError: an unknown kind, or an argument that is missing, unknown or out of range.
    """
    arguments = dict(config)
    kind = arguments.pop("kind", None)
    if kind not in _KINDS:
        raise ValueError(f"model kind must be one of {', '.join(_KINDS)}, got {kind!r}")
    if kind == MLP.kind:
        arguments["generator"] = generator
    try:
        model = _KINDS[kind](**arguments)
    except TypeError as error:
        raise ValueError(f"model configuration does not fit {kind!r}: {error}") from error
    model.backend = backend
    return model


def engine_parameters(model: LanguageModel) -> list[Tensor] | None:
    """The parameters in the order of `charlm.engine`; None where it does not know the model, as with a subclass."""
    if type(model) is NeuralBigram:
        return [model.weight]
    if type(model) is not MLP:
        return None
    parameters: list[Tensor] = [model.embedding, model.weight1, model.bias1, model.weight2, model.bias2]
    return parameters if model.direct_weight is None else [*parameters, model.direct_weight]
