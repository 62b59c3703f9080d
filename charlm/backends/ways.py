"""Which of two ways the backend "fused" makes a step on a GPU, by what each is estimated to take.

The engine's kernel trains a model in one block of threads, on one multiprocessor, or where a GPU has clusters in a few
blocks that share it, without a launch in between; it is for models that fit into their shared memory. A captured graph
of the ops has all multiprocessors, but dozens of launches to make. Small steps are for the first, large ones for the
second, and where both take the same either will do.

The numbers are judgements on an H100, and no measurement yet.
"""

from __future__ import annotations

from typing import Literal

import torch

from charlm.models import MLP, LanguageModel
from charlm.ops._extension import _C

Way = Literal["engine", "graph"]

# What a multiprocessor multiplies and adds in a second: 128 numbers in float32 a clock, at 1.7 GHz, 60 % of the time.
_BLOCK_RATE = 128 * 1.7e9 * 0.6
# How much faster a cluster is that has an MLP to itself, barriers and all; and the compute capability that has them.
_CLUSTER_SPEED = 3.0
_CLUSTER_CAPABILITY = 9
# What the launches of a step take within a graph.
_GRAPH_SECONDS = 50e-6


def way_on_gpu(model: LanguageModel, rows: int) -> Way:
    """The way that takes less for a step; "engine" for a model in a dtype that it alone has an error for.

    Which it is depends on the model, the batch and the GPU alone: a model in a population trains as it would by itself.

    Args:
        model: an `MLP` or a `NeuralBigram` on a GPU.
        rows: examples of a batch, or distinct contexts of the whole split.
    """
    parameter = next(model.parameters())
    if parameter.dtype not in (torch.float32, torch.float64):
        return "engine"
    device = torch.cuda.current_device() if model.device.index is None else model.device.index
    embedding_dim, hidden_dim, direct = _layers(model)
    is_double = parameter.dtype == torch.float64
    sizes = model.vocab_size, model.context_length, embedding_dim, hidden_dim
    if not _C.trains_in_one_launch(device, *sizes, direct, is_double):
        return "graph"
    gpu = torch.cuda.get_device_properties(device)
    speed = _CLUSTER_SPEED if hidden_dim > 0 and gpu.major >= _CLUSTER_CAPABILITY else 1.0
    block_seconds = multiply_adds(model, rows) * (2 if is_double else 1) / _BLOCK_RATE
    graph_seconds = _GRAPH_SECONDS + block_seconds / gpu.multi_processor_count
    return "engine" if block_seconds / speed <= graph_seconds else "graph"


def multiply_adds(model: LanguageModel, rows: int) -> int:
    """Those of a step: forward, and as many for each of the two gradients of a product.

    A bigram multiplies nothing. Its softmax and gradient take about as much as three for each logit.
    """
    embedding_dim, hidden_dim, direct = _layers(model)
    inputs = model.context_length * embedding_dim
    products = inputs * hidden_dim + hidden_dim * model.vocab_size + direct * inputs * model.vocab_size
    return 3 * rows * (products or model.vocab_size)


def _layers(model: LanguageModel) -> tuple[int, int, bool]:
    """D, H, and whether there is a direct connection; of a bigram 0, 0, and none."""
    if isinstance(model, MLP):
        return model.embedding_dim, model.hidden_dim, model.direct_weight is not None
    return 0, 0, False
