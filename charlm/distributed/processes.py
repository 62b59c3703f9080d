"""The processes that train one model together, and all that they say to each other."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


class OtherProcessError(ConnectionError):
    """Another process of the group has failed or is gone; what it printed itself says why."""


@dataclass(frozen=True)
class Processes:
    """The default process group of `torch.distributed`, as one of its processes sees it.

    All methods but `shard` and `check_device` are collective: every process calls them, in the same order, or waits
    for those that do not. One process alone has nobody to talk to, and needs no group.

    Attributes:
        rank: of this process, in 0 .. size-1.
        size: the number of processes.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that prints and saves."""
        return self.rank == 0

    def shard(self, count: int) -> slice:
        """This process' part of `count` items: contiguous, in the order of ranks, of sizes that differ by at most 1."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def sum_gradients(self, parameters: Sequence[Tensor], loss: Tensor) -> Tensor:
        """Sums the gradients of all processes, and their losses, in one message.

        Args:
            parameters: of one dtype and device; each `grad` becomes the sum. None counts as zero.
            loss: this process' scalar.

        Returns:
            The sum of the losses.
        """
        if self.size == 1:
            return loss
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        message = torch.cat([*(gradient.flatten() for gradient in gradients), loss.reshape(1)])
        _all_reduce(message)
        sums = message.split([*(p.numel() for p in parameters), 1])
        for parameter, total in zip(parameters, sums, strict=False):
            parameter.grad = total.view_as(parameter)
        return sums[-1].squeeze(0)

    def sum(self, value: float) -> float:
        """The sum of one number of every process, in float64: the same on all of them."""
        if self.size == 1:
            return value
        message = torch.tensor([value], dtype=torch.float64, device=_message_device())
        _all_reduce(message)
        return message.item()

    def largest(self, *values: int) -> list[int]:
        """The largest that any process gives, for each of the values."""
        if self.size == 1:
            return list(values)
        message = torch.tensor(values, dtype=torch.int64, device=_message_device())
        _all_reduce(message, dist.ReduceOp.MAX)
        return message.tolist()

    def copy_from_first(self, tensors: Iterable[Tensor]) -> None:
        """Overwrites the tensors by those of the first process."""
        if self.size > 1:
            for tensor in tensors:
                with _lost_processes():
                    dist.broadcast(tensor, src=0)

    def on_first(self, action: Callable[[], None]) -> None:
        """Runs `action` in the first process while the others wait for its end.

        Raises:
            OtherProcessError: in the others, where `action` raises in the first.
        """
        failure: BaseException | None = None
        if self.is_first:
            try:
                action()
            except BaseException as error:
                failure = error
        (failed,) = self.largest(failure is not None)
        if failure is not None:
            raise failure
        if failed:
            raise OtherProcessError("the process of rank 0 has failed")

    def check_same(self, **values: int) -> None:
        """ValueError, in all processes, unless they agree in every value: the message names the first that differs."""
        numbers = list(values.values())
        largest, smallest = self.largest(*numbers), self.largest(*(-number for number in numbers))
        for name, high, low in zip(values, largest, smallest, strict=True):
            if high != -low:
                raise ValueError(f"{name} must be the same in all processes, got {-low} in one and {high} in another")

    def check_device(self, device: str | None) -> None:
        """ValueError unless each process of this machine has a device of its own: any number of them share the CPU."""
        if self.size == 1 or device is None or torch.device(device).type != "cuda":
            return
        if torch.device(device).index is not None:
            raise ValueError(
                f"device must be 'cuda' with several processes, so that each takes its own, got {device!r}"
            )
        if _local_rank() >= torch.cuda.device_count():
            raise ValueError(
                f"device 'cuda' needs a GPU for every process of a machine: this one has {torch.cuda.device_count()}, "
                f"and a process of local rank {_local_rank()}"
            )


ALONE = Processes()


def current() -> Processes:
    """The default process group; this process alone where there is none."""
    if dist.is_available() and dist.is_initialized():
        return Processes(dist.get_rank(), dist.get_world_size())
    return ALONE


@contextmanager
def joined() -> Iterator[Processes]:
    """Joins the processes that `torchrun` has started this one with, for the time of the block.

    Messages go through gloo, those of GPU tensors through NCCL, and CUDA's current device is the one of the local rank.
    Where a group exists it is taken as it is, and without torchrun this process is alone.
    """
    started_by_torchrun = {"RANK", "WORLD_SIZE"} <= os.environ.keys()
    if current().size > 1 or not started_by_torchrun or os.environ["WORLD_SIZE"] == "1":
        yield current()
        return
    has_gpus = torch.cuda.is_available()
    if has_gpus:
        torch.cuda.set_device(_local_rank() % torch.cuda.device_count())
    dist.init_process_group("cpu:gloo,cuda:nccl" if has_gpus else "gloo")
    yield current()
    # Not after an error: leaving waits for the others, who may have left without a word.
    dist.destroy_process_group()


def _local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", dist.get_rank()))


def _message_device() -> str:
    return "cuda" if dist.get_backend() == "nccl" else "cpu"


def _all_reduce(message: Tensor, operation: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM) -> None:
    with _lost_processes():
        dist.all_reduce(message, operation)


@contextmanager
def _lost_processes() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise OtherProcessError(f"another process of the group is gone: {error}") from error
