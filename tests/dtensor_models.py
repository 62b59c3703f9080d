"""Two small models, whole or spread over processes in the ways that PyTorch offers, and their training."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from cases import generator
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_module, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    loss_parallel,
    parallelize_module,
)

from charlm import ops
from charlm.nn import EmbeddingLinear, LinearCrossEntropyLoss

STEPS = 4
CLASSES, CONTEXT = 27, 6


class Names(nn.Module):
    """Bengio's model of the modules of charlm.nn."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = EmbeddingLinear(CLASSES, 4, CONTEXT, 9)
        self.output = LinearCrossEntropyLoss(9, CLASSES, bias=True, label_smoothing=0.1)

    def forward(self, ids: Tensor, target: Tensor) -> Tensor:
        loss: Tensor = self.output(self.hidden(ids), target[:, -1])
        return loss


class Text(nn.Module):
    """A token at a time, and its loss with the output layer or from the logits."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.fused = fused
        self.tokens = nn.Embedding(CLASSES, 8)
        self.up = nn.Linear(8, 16)
        self.down = nn.Linear(16, 8)
        self.norm = nn.LayerNorm(8)
        self.output = LinearCrossEntropyLoss(8, CLASSES, bias=True)

    def forward(self, ids: Tensor, target: Tensor) -> Tensor:
        hidden = self.tokens(ids)
        hidden = self.norm(hidden + self.down(torch.relu(self.up(hidden))))
        if self.fused:
            loss: Tensor = self.output(hidden, target)
            return loss
        return ops.cross_entropy(self.output.linear(hidden).flatten(0, 1), target.flatten())


def batches() -> list[tuple[Tensor, Tensor]]:
    """Of 8 examples, a part of whose targets is ignored."""
    draw = generator(1)
    tokens = [torch.randint(CLASSES, (8, CONTEXT + 1), generator=draw) for _ in range(STEPS)]
    return [(t[:, :-1], t[:, 1:].where(t[:, 1:] % 5 > 0, -100)) for t in tokens]


def train(
    model: nn.Module,
    mesh: DeviceMesh | None = None,
    within: Callable[[], AbstractContextManager[None]] = nullcontext,
    share: slice | None = None,
) -> list[float]:
    """The losses of a few steps on `share` of each batch; ids and targets are DTensors where there is a mesh."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    losses = []
    for batch in batches():
        ids, target = (t[share or slice(None)] for t in batch)
        if mesh is not None:
            ids, target = (distribute_tensor(t, mesh, [Replicate()], src_data_rank=None) for t in (ids, target))
        with within():
            loss = model(ids, target)
            loss = loss.full_tensor() if isinstance(loss, DTensor) else loss
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def train_in_halves(model: nn.Module) -> list[float]:
    """As data-parallel processes do: the mean of the losses of two halves, which need not be that of all targets."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    losses = []
    for ids, target in batches():
        loss = (model(ids[:4], target[:4]) + model(ids[4:], target[4:])) / 2
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def names() -> Names:
    torch.manual_seed(5)
    return Names().double()


def text(fused: bool = True) -> Text:
    torch.manual_seed(6)
    return Text(fused).double()


def sharded_names(mesh: DeviceMesh) -> nn.Module:
    """FSDP2: every rank has a part of each parameter, and all of them while it computes."""
    model = names()
    fully_shard(model.hidden, mesh=mesh)
    fully_shard(model.output, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def parallel_names(mesh: DeviceMesh) -> nn.Module:
    """Tensor parallelism: every rank has a part of the hidden units, and a part of the classes."""

    def by_hidden_units(name: str, module: nn.Module, mesh: DeviceMesh) -> None:
        for key, parameter in list(module.named_parameters()):
            placement = Replicate() if key == "embedding" else Shard(0)
            module.register_parameter(key, nn.Parameter(distribute_tensor(parameter.data, mesh, [placement])))

    model = names()
    distribute_module(model.hidden, mesh, by_hidden_units)
    parallelize_module(model.output.linear, mesh, ColwiseParallel())
    return model


def parallel_text(mesh: DeviceMesh, fused: bool) -> Text:
    """Tensor and sequence parallelism: between the layers every rank has a part of the positions."""
    plan = {
        "tokens": RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(1)),
        "up": ColwiseParallel(input_layouts=Shard(1)),
        "down": RowwiseParallel(output_layouts=Shard(1)),
        "norm": SequenceParallel(),
        "output.linear": ColwiseParallel(input_layouts=Shard(1), use_local_output=False),
    }
    if fused:
        layouts = (Shard(1), Replicate())
        plan["output"] = PrepareModuleInput(input_layouts=layouts, desired_input_layouts=layouts)
    model = text(fused)
    parallelize_module(model, mesh, plan)
    return model


def one_dimension(mesh: DeviceMesh) -> dict[str, list[float]]:
    """The losses of every way on a mesh of two ranks; FSDP2's are of this rank's half of each batch."""
    half = slice(0, 4) if mesh.get_local_rank() == 0 else slice(4, 8)
    return {
        "FSDP2": train(sharded_names(mesh), share=half),
        "tensor parallel, charlm.nn": train(parallel_names(mesh), mesh),
        "tensor parallel, output layer": train(parallel_text(mesh, fused=True)),
        "tensor parallel, logits": train(parallel_text(mesh, fused=False), mesh),
        "tensor parallel, loss_parallel": train(parallel_text(mesh, fused=False), within=loss_parallel),
    }


def sharded_twice(mesh: DeviceMesh) -> Text:
    """FSDP2 over the dimension "dp" of the mesh, tensor parallelism over "tp"."""
    model = parallel_text(mesh["tp"], fused=True)
    fully_shard(model, mesh=mesh["dp"])
    return model


def two_dimensions(mesh: DeviceMesh) -> list[float]:
    """The losses of this rank's half of each batch."""
    return train(sharded_twice(mesh), share=slice(0, 4) if mesh.get_local_rank("dp") == 0 else slice(4, 8))
