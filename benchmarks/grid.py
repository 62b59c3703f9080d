"""What the ops are measured at: shapes, arguments, and the least work that forward and backward can be.

One row stands for one of them. `bench_ops.py` and `python -m benchmarks ops` measure all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.ceilings import Floor
from benchmarks.opponents import HAS_TORCH_LINEAR, contestants, torch_linear
from benchmarks.timing import Run, forward_alone, forward_and_backward, repeated
from charlm import data
from charlm.presets import PRESETS

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Case:
    """The same steps by everyone, on arguments that they share.

    Attributes:
        floor: of a step.
        contestants: what prepares the steps of each, by name; "charlm" is one of them.
    """

    floor: Floor
    contestants: Mapping[str, Callable[[], Run]]


@dataclass(frozen=True)
class Row:
    """One op at one shape.

    Attributes:
        op: its name.
        name: with its sizes.
        create: draws the arguments in a dtype.
        dtypes: that it can be drawn in.
    """

    op: str
    name: str
    create: Callable[[torch.dtype], Case]
    dtypes: tuple[torch.dtype, ...] = DTYPES


class Inputs(NamedTuple):
    """Arguments of an op, by position; the floor of forward and backward; the gradient of a result that is no scalar;
    and options."""

    arguments: tuple[Any, ...]
    floor: Floor
    upstream: Tensor | None = None
    options: Mapping[str, Any] = {}


def row(
    op: str,
    draw: Callable[[torch.dtype], Inputs],
    *,
    note: str = "",
    dtypes: tuple[torch.dtype, ...] = DTYPES,
    is_forward: bool = False,
    **sizes: int,
) -> Row:
    """A row whose steps are forward and backward, or forward alone, of an op in `opponents.EAGER`."""

    def create(dtype: torch.dtype) -> Case:
        arguments, floor, upstream, options = draw(dtype)
        makers = contestants(op, **options)
        if op == "linear_cross_entropy" and HAS_TORCH_LINEAR:
            makers["torch_linear"] = partial(torch_linear, **options)

        def steps(name: str) -> Run:
            if is_forward:
                return repeated(forward_alone(makers[name](), arguments))
            return repeated(forward_and_backward(makers[name](), arguments, upstream))

        return Case(floor, {name: partial(steps, name) for name in makers})

    shown = " ".join(f"{letter}={size}" for letter, size in sizes.items())
    return Row(op, f"{op} {shown}{note}", create, dtypes)


def normal(*shape: int, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    """A leaf."""
    return (scale * torch.randn(shape)).to(dtype).requires_grad_()


def layer(*shape: int, dtype: torch.dtype) -> Tensor:
    """A leaf as a trained layer has it. Logits of +-50 instead would give eager gradients full of denormals, and make
    it 20 times slower; ours flushes them."""
    return normal(*shape, dtype=dtype, scale=shape[-1] ** -0.5)


def cross_entropy(rows: int, classes: int, *, weighted: bool = False, reduction: str = "mean") -> Row:
    def draw(dtype: torch.dtype) -> Inputs:
        logits, target = normal(rows, classes, dtype=dtype), torch.randint(classes, (rows,))
        weight = (torch.rand(classes).to(dtype),) if weighted else ()
        floor = Floor("logits read, gradient written", 2 * logits.nbytes)
        return Inputs((logits, target, *weight), floor, *_of_losses(rows, dtype, reduction))

    note = ", class weights" * weighted + _note(reduction)
    return row("cross_entropy", draw, note=note, N=rows, C=classes)


def linear_cross_entropy(
    rows: int, features: int, classes: int, *, frozen: bool = False, reduction: str = "mean"
) -> Row:
    """Products: logits, the gradient of the input, and that of the weight, unless it is frozen."""
    products = 2 if frozen else 3
    floor = Floor(f"{'two' if frozen else 'three'} matrix products", flops=products * 2 * rows * features * classes)

    def draw(dtype: torch.dtype) -> Inputs:
        weight = layer(classes, features, dtype=dtype).requires_grad_(not frozen)
        arguments = normal(rows, features, dtype=dtype), weight, torch.randint(classes, (rows,))
        return Inputs(arguments, floor, *_of_losses(rows, dtype, reduction))

    note = ", frozen weight" * frozen + _note(reduction)
    return row("linear_cross_entropy", draw, note=note, N=rows, D=features, C=classes)


def log_probs(rows: int, classes: int) -> Row:
    """No gradient is known before backward, which reads the logits again."""

    def draw(dtype: torch.dtype) -> Inputs:
        logits = normal(rows, classes, dtype=dtype)
        floor = Floor("logits read twice, gradient written", 3 * logits.nbytes)
        return Inputs((logits, torch.randint(classes, (rows,))), floor, torch.randn(rows).to(dtype))

    return row("log_probs", draw, N=rows, C=classes)


def linear_log_probs(rows: int, features: int, classes: int, *, is_forward: bool = False) -> Row:
    """Products as of `linear_cross_entropy`."""
    words, products = ("one matrix product", 1) if is_forward else ("three matrix products", 3)
    floor = Floor(words, flops=products * 2 * rows * features * classes)

    def draw(dtype: torch.dtype) -> Inputs:
        arguments = normal(rows, features, dtype=dtype), layer(classes, features, dtype=dtype)
        return Inputs((*arguments, torch.randint(classes, (rows,))), floor, torch.randn(rows).to(dtype))

    note = ", forward" * is_forward
    return row("linear_log_probs", draw, note=note, is_forward=is_forward, N=rows, D=features, C=classes)


def _of_losses(rows: int, dtype: torch.dtype, reduction: str) -> tuple[Tensor | None, dict[str, Any]]:
    """The upstream gradient of a loss, and the options that say of what shape the loss is."""
    upstream = torch.randn(rows).to(dtype) if reduction == "none" else None
    return upstream, {} if reduction == "mean" else {"reduction": reduction}


def _note(reduction: str) -> str:
    return "" if reduction == "mean" else f", reduction {reduction}"


def embedding_linear(rows: int, context_length: int, vocab_size: int, embedding_dim: int, hidden_dim: int) -> Row:
    """Forward writes the output, and backward reads it and the upstream gradient. A product of D and H for each of the
    distinct (position, token) pairs, three times: the table projected, the gradients of table and weight. At
    (4096, 3, 27, 10, 200) these are 0.5 million multiply-adds, where eager has 74 million; where nearly every pair is
    distinct, the floor is eager's own."""

    def draw(dtype: torch.dtype) -> Inputs:
        ids = torch.randint(vocab_size, (rows, context_length))
        embedding = normal(vocab_size, embedding_dim, dtype=dtype)
        weight, bias = layer(hidden_dim, context_length * embedding_dim, dtype=dtype), normal(hidden_dim, dtype=dtype)
        upstream = torch.randn(rows, hidden_dim).to(dtype)
        floor = Floor(
            "output written, output and gradient read, gradient of the table written; "
            "three products of the distinct tokens",
            3 * upstream.nbytes + embedding.nbytes,
            6 * _distinct_tokens(ids) * embedding_dim * hidden_dim,
        )
        return Inputs((ids, embedding, weight, bias), floor, upstream)

    return row("embedding_linear", draw, N=rows, T=context_length, V=vocab_size, D=embedding_dim, H=hidden_dim)


def mlp_cross_entropy(rows: int, context_length: int, embedding_dim: int, hidden_dim: int) -> Row:
    """Of the embedded names, whose contexts repeat as those of text do."""
    vocab_size = len(_names(context_length).vocabulary)

    def draw(dtype: torch.dtype) -> Inputs:
        ids, target = _batch(context_length, rows)
        first = layer(hidden_dim, context_length * embedding_dim, dtype=dtype), normal(hidden_dim, dtype=dtype)
        second = layer(vocab_size, hidden_dim, dtype=dtype), normal(vocab_size, dtype=dtype)
        arguments = (ids, target, normal(vocab_size, embedding_dim, dtype=dtype), *first, *second)
        return Inputs(arguments, _mlp_floor(ids, vocab_size, embedding_dim, hidden_dim))

    return row("mlp_cross_entropy", draw, N=rows, T=context_length, V=vocab_size, D=embedding_dim, H=hidden_dim)


def training_step() -> Row:
    """Of the lecture's model by each backend, as `charlm bench` has it: loss, gradients and update."""
    config = PRESETS["makemore"]
    assert isinstance(config.batch_size, int)
    batch_size = config.batch_size

    def create(dtype: torch.dtype) -> Case:
        dataset = _names(config.context_length)
        vocab_size = len(dataset.vocabulary)

        def steps(backend: str) -> Run:
            own = replace(config, backend=backend)
            return own.create_trainer(own.create_model(vocab_size), dataset).run

        ids, _ = _batch(config.context_length, batch_size)
        backends = {"charlm": "ops", "eager": "eager", "compile": "compile"}
        return Case(
            _mlp_floor(ids, vocab_size, config.embedding_dim, config.hidden_dim),
            {name: partial(steps, backend) for name, backend in backends.items()},
        )

    return Row("training step", f"training step, backend ops, N={batch_size}", create, (torch.float32,))


def _mlp_floor(ids: Tensor, vocab_size: int, embedding_dim: int, hidden_dim: int) -> Floor:
    """Products: of the output layer for each distinct context, and of the first layer for each distinct token."""
    products = len(ids.unique(dim=0)) * vocab_size + _distinct_tokens(ids) * embedding_dim
    return Floor("products of the distinct contexts and tokens", flops=6 * hidden_dim * products)


def _distinct_tokens(ids: Tensor) -> int:
    """Pairs of a position and a token there."""
    return sum(len(column.unique()) for column in ids.T)


@cache
def _names(context_length: int) -> data.Dataset:
    return data.load(context_length=context_length)


def _batch(context_length: int, rows: int) -> tuple[Tensor, Tensor]:
    split = _names(context_length).train
    contexts, targets = split.batch(torch.randint(len(split), (rows,)))
    return contexts.long(), targets.long()


# The lecture's model and its batches, small and large; heads and embeddings of larger vocabularies, up to the 50,257
# tokens of GPT-2; the word model of Bengio et al. 2003.
ROWS = [
    cross_entropy(1, 27),
    cross_entropy(32, 27),
    cross_entropy(32, 27, reduction="none"),
    cross_entropy(32, 27, weighted=True),
    cross_entropy(256, 27),
    cross_entropy(32, 1000),
    cross_entropy(4096, 27),
    cross_entropy(4096, 1000),
    cross_entropy(256, 50257),
    cross_entropy(2048, 32000),
    linear_cross_entropy(32, 64, 27),
    linear_cross_entropy(32, 64, 27, reduction="none"),
    linear_cross_entropy(512, 512, 32000),  # the logits lie in the memory of the weight's gradient
    linear_cross_entropy(2048, 256, 8000),  # in chunks
    linear_cross_entropy(2048, 256, 8000, frozen=True),
    linear_cross_entropy(256, 768, 50257),
    log_probs(32, 27),
    log_probs(4096, 27),
    log_probs(256, 50257),
    log_probs(2048, 32000),
    linear_log_probs(32, 64, 27),
    linear_log_probs(512, 512, 32000),
    linear_log_probs(512, 512, 32000, is_forward=True),
    linear_log_probs(2048, 256, 8000),
    linear_log_probs(256, 768, 50257),
    linear_log_probs(256, 768, 50257, is_forward=True),
    embedding_linear(32, 3, 27, 10, 200),
    embedding_linear(256, 3, 27, 10, 200),
    embedding_linear(4096, 3, 27, 10, 200),
    embedding_linear(256, 5, 16383, 60, 100),
    embedding_linear(4096, 8, 50000, 64, 512),
    mlp_cross_entropy(32, 3, 10, 200),
    mlp_cross_entropy(4096, 3, 10, 200),
]
TRAINING_STEP = training_step()
