"""A model as an ONNX graph, for the runtimes that read it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from charlm._version import __version__
from charlm.export._parts import Parts, little_endian, parts
from charlm.models import CountBigram, LanguageModel
from charlm.vocabulary import Vocabulary

if TYPE_CHECKING:
    from onnx import ModelProto

# Of 2022: old enough for runtimes in use, and every operator below is in it.
_OPSET, _IR_VERSION = 17, 8


def to_onnx(model: LanguageModel, vocabulary: Vocabulary) -> ModelProto:
    """The model as an ONNX graph: int64 `contexts` (N, T) to `log_probs` (N, V), for any N.

    `log_probs` are the log-probabilities of the next token, log_softmax of the model's logits, in float32, or float64
    where the model is (a count bigram is). The metadata has what a program needs beside the graph: "symbols", a list in
    JSON that says what each token stands for, "tokens_are", which says what these are, "characters" mostly, "boundary",
    the token that a text begins and ends with, and "context_length", T. A text starts from a context of T boundaries.

    Args:
        model: of any dtype, on any device.
        vocabulary: of the model.

    Returns:
        An `onnx.ModelProto` in opset 17; `onnx.save` writes it.

    Raises:
        ImportError: onnx is not installed.
        TypeError: the model is of another class than charlm's own.
        ValueError: the vocabulary has another size, or a weight is NaN or infinite.
    """
    try:
        from onnx import checker, helper
    except ImportError as error:
        raise ImportError("ONNX needs the package onnx. Run: pip install onnx") from error
    model_parts = parts(model, vocabulary)
    graph = _Graph(helper)
    logits = _mlp(graph, model_parts) if model_parts.kind == "mlp" else _bigram(graph, model, model_parts)
    graph.add("LogSoftmax", logits, output="log_probs", axis=-1)

    contexts = helper.make_tensor_value_info("contexts", _type_of(torch.int64), ["N", model_parts.context_length])
    dtype = torch.float64 if model_parts.is_double or isinstance(model, CountBigram) else torch.float32
    log_probs = helper.make_tensor_value_info("log_probs", _type_of(dtype), ["N", len(model_parts.symbols)])
    exported = helper.make_model(
        helper.make_graph(graph.nodes, model_parts.kind, [contexts], [log_probs], graph.constants),
        opset_imports=[helper.make_opsetid("", _OPSET)],
        ir_version=_IR_VERSION,
        producer_name="charlm",
        producer_version=__version__,
    )
    helper.set_model_props(
        exported,
        {
            "symbols": json.dumps(model_parts.symbols),
            "tokens_are": model_parts.tokens_are,
            "boundary": str(model_parts.boundary),
            "context_length": str(model_parts.context_length),
        },
    )
    checker.check_model(exported, full_check=True)
    return exported


class _Graph:
    """The nodes of a graph, and its constants, as they are added."""

    def __init__(self, helper: Any) -> None:
        self._helper = helper
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, name: str, tensor: Tensor) -> str:
        shape, raw = list(tensor.shape), little_endian(tensor)
        self.constants.append(self._helper.make_tensor(name, _type_of(tensor.dtype), shape, raw, raw=True))
        return name

    def add(self, operator: str, *inputs: str, output: str, **attributes: object) -> str:
        self.nodes.append(self._helper.make_node(operator, list(inputs), [output], name=output, **attributes))
        return output


def _mlp(graph: _Graph, model_parts: Parts) -> str:
    """The logits of `charlm.MLP`."""
    weights = {name: graph.constant(name, tensor) for name, tensor in model_parts.tensors.items()}
    embedded = graph.add("Gather", weights["embedding"], "contexts", output="embedded", axis=0)
    x = graph.add("Flatten", embedded, output="x", axis=1)
    sums = graph.add("Gemm", x, weights["weight1"], weights["bias1"], output="hidden_sums", transB=1)
    hidden = graph.add("Tanh", sums, output="hidden")
    logits = graph.add("Gemm", hidden, weights["weight2"], weights["bias2"], output="hidden_logits", transB=1)
    if "direct_weight" in weights:
        # Gemm adds its third input, the logits so far.
        logits = graph.add("Gemm", x, weights["direct_weight"], logits, output="sum_of_logits", transB=1)
    if model_parts.softcap is not None:
        cap = graph.constant("softcap", torch.tensor(model_parts.softcap, dtype=model_parts.tensors["bias2"].dtype))
        scaled = graph.add("Div", logits, cap, output="scaled")
        bounded = graph.add("Tanh", scaled, output="bounded")
        logits = graph.add("Mul", bounded, cap, output="logits")
    return logits


def _bigram(graph: _Graph, model: LanguageModel, model_parts: Parts) -> str:
    """The logits of either bigram: the row of the last token."""
    if isinstance(model, CountBigram):
        every_token = torch.arange(model.vocab_size, device=model.device).unsqueeze(1)
        table = graph.constant("log_probabilities", model(every_token).cpu())
    else:
        table = graph.constant("weight", model_parts.tensors["weight"])
    rows = graph.add("Gather", table, "contexts", output="rows", axis=0)
    axis = graph.constant("axis", torch.tensor([1]))
    return graph.add("Squeeze", rows, axis, output="logits")


def _type_of(dtype: torch.dtype) -> int:
    """The number of a dtype in `onnx.TensorProto.DataType`."""
    return {torch.float32: 1, torch.int64: 7, torch.float64: 11}[dtype]
