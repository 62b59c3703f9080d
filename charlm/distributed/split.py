"""How an op on DTensors is split among the ranks of a mesh, and what that makes of its tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard

Row = Callable[[int], Placement]  # of a dimension of the rows


@dataclass(frozen=True)
class Split:
    """How an op is split: for each dimension of the mesh, at most one of rows and columns.

    Attributes:
        mesh: the ranks.
        rows: for each dimension of the mesh, the dimension of the rows that it splits, or None.
        column_dim: the dimension of the mesh that splits columns, or None.
    """

    mesh: DeviceMesh
    rows: tuple[int | None, ...]
    column_dim: int | None

    @classmethod
    def of(cls, first: DTensor, row_dims: Sequence[int], columns: Tensor | None = None, dim: int = 0) -> Split:
        """By the rows of `first`, which are its dimensions `row_dims`, and dimension `dim` of `columns`."""
        if first.device_mesh.get_coordinate() is None:
            raise RuntimeError(f"this process is not in the mesh of the DTensors, {_ranks(first.device_mesh)}")
        column_dim = next(iter(shards(columns, dim)), None)
        rows = [
            row_dims.index(p.dim) if type(p) is Shard and p.dim in row_dims and mesh_dim != column_dim else None
            for mesh_dim, p in enumerate(first.placements)
        ]
        return cls(first.device_mesh, tuple(rows), column_dim)

    @property
    def by_columns_alone(self) -> bool:
        return self.column_dim is not None and all(row is None for row in self.rows)

    @property
    def is_split(self) -> bool:
        return self.column_dim is not None or any(row is not None for row in self.rows)

    def joined(self, allow_plain: bool = False, **tensors: Tensor | None) -> list[Any]:
        """The tensors as DTensors of this mesh; a plain one is whole on every rank where torch takes it for that."""
        return [None if tensor is None else self._join(name, tensor, allow_plain) for name, tensor in tensors.items()]

    def _join(self, name: str, tensor: Tensor, allow_plain: bool) -> DTensor:
        if isinstance(tensor, DTensor):
            if tensor.device_mesh != self.mesh:
                raise ValueError(
                    f"{name} must be on the mesh of the other DTensors, {_ranks(self.mesh)}, got one "
                    f"{_ranks(tensor.device_mesh)}"
                )
            return tensor
        implicitly = getattr(DTensor._op_dispatcher, "_allow_implicit_replication", False)
        if allow_plain or implicitly or tensor.numel() == 1:
            return DTensor.from_local(tensor, self.mesh, self.place(), run_check=False)
        raise RuntimeError(
            f"got mixed torch.Tensor and DTensor: {name} must be a DTensor too, as by "
            "torch.distributed.tensor.distribute_tensor"
        )

    def check_shape(self, name: str, tensor: Tensor | None, *shapes: Sequence[int]) -> None:
        """Refuses a shape that could look wrong on some ranks only, and leave the others waiting.

        What is wrong on all of them the kernels refuse, in their own words.
        """
        if self.is_split and tensor is not None and tensor.shape not in [torch.Size(shape) for shape in shapes]:
            expected = " or ".join(str(tuple(shape)) for shape in shapes)
            raise ValueError(f"{name} must have shape {expected}, got {tuple(tensor.shape)}")

    def place(self, row: Row = lambda row: Replicate(), column: Placement | None = None) -> list[Placement]:
        """A placement for each dimension of the mesh: row(dimension of the rows), column, or Replicate."""
        return [
            (column or Replicate()) if dim == self.column_dim else Replicate() if split is None else row(split)
            for dim, split in enumerate(self.rows)
        ]

    def local(self, tensor: Any, row: Row = lambda row: Replicate(), column: Placement | None = None) -> Any:
        """This rank's part of a tensor that is placed so; differentiable."""
        if tensor is None:
            return None
        placements = self.place(row, column)
        if list(tensor.placements) != placements:
            tensor = tensor.redistribute(placements=placements)  # its gradient goes back
        is_split = [dim == self.column_dim or split is not None for dim, split in enumerate(self.rows)]
        gradient = [Partial() if s and p.is_replicate() else p for s, p in zip(is_split, placements, strict=True)]
        return tensor.to_local(grad_placements=gradient)

    def first_column(self, columns: int) -> int:
        """The first of this rank's, of so many that are sharded."""
        assert self.column_dim is not None
        # Shard cuts as torch.chunk does.
        chunk = -(-columns // self.mesh.size(self.column_dim))
        return min(self.mesh.get_local_rank(self.column_dim) * chunk, columns)

    def joint(self, own: Tensor, shape: Sequence[int], row: Row, column: Placement | None = None) -> Tensor:
        """The DTensor of which `own` is this rank's part."""
        joint: Tensor = _Joint.apply(own, self.mesh, self.place(row, column), torch.Size(shape))
        return joint

    def sum_over_rows(self, own: Tensor) -> Tensor:
        """The sum of a number over the ranks that the rows are split among; differentiable."""
        if all(row is None for row in self.rows):
            return own
        # What it divides is each rank's part of a sum, and so is its gradient.
        joint: Any = self.joint(own, (), lambda row: Partial())
        total: Tensor = joint.full_tensor(grad_placements=self.place(lambda row: Partial()))
        return total


class _Joint(torch.autograd.Function):
    """`DTensor.from_local`, for numbers that are each rank's part of a sum where the placement is Partial.

    torch has a mean over classes' indices as Partial("avg"): the average of numbers so many times as large. And the
    second derivative of its own `from_local` is wrong where that is Partial (2.13): what a gradient came from was used
    on all ranks, so that its own gradient is a sum over them.
    """

    @staticmethod
    def forward(ctx: Any, own: Tensor, mesh: DeviceMesh, placements: list[Placement], shape: torch.Size) -> DTensor:
        ctx.placements = placements
        number = math.prod([mesh.size(dim) for dim, p in enumerate(placements) if p == Partial("avg")])
        stride = torch.empty(shape, device="meta").stride()
        return DTensor.from_local(
            own if number == 1 else own * number, mesh, placements, run_check=False, shape=shape, stride=stride
        )

    @staticmethod
    def backward(ctx: Any, grad_output: Any) -> tuple[Tensor | None, ...]:
        whole = [Replicate() if p.is_partial() else p for p in ctx.placements]
        gradient = [Partial() if p.is_partial() else p for p in ctx.placements]
        return grad_output.redistribute(placements=whole).to_local(grad_placements=gradient), None, None, None


def _ranks(mesh: DeviceMesh) -> str:
    return f"of ranks {mesh.mesh.tolist()}"


def shards(tensor: Tensor | None, dim: int) -> list[int]:
    """The dimensions of the mesh that shard dimension `dim`."""
    if not isinstance(tensor, DTensor):
        return []
    return [mesh_dim for mesh_dim, p in enumerate(tensor.placements) if type(p) is Shard and p.dim == dim]
