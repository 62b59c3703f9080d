"""The ops in a model that DistributedDataParallel trains: each process its part of every batch, one model.

The loss of a part is its sum over the size of the whole batch, times the number of processes, as DDP takes the mean of
the gradients: so that of the whole batch comes out exactly, also where it does not divide. The losses are the same with
any number of processes. (`torchrun -m charlm train` does all of this for charlm's own models.)

    torchrun --nproc-per-node 2 examples/ddp_names.py [--steps 100]
"""

import argparse
import os

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from charlm import data
from charlm.nn import EmbeddingLinear, LinearCrossEntropyLoss

BATCH = 33


class Names(nn.Module):
    """Two hidden layers, of which the first reads the characters."""

    def __init__(self, vocab_size: int, context_length: int) -> None:
        super().__init__()
        self.first = EmbeddingLinear(vocab_size, 10, context_length, 64)
        self.second = nn.Sequential(nn.Linear(64, 64), nn.Tanh())
        self.loss = LinearCrossEntropyLoss(64, vocab_size, bias=True, reduction="sum")

    def forward(self, contexts: Tensor, targets: Tensor) -> Tensor:
        return self.loss(self.second(self.first(contexts)), targets)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    steps = parser.parse_args().steps

    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if size > 1:
        dist.init_process_group("gloo")
    train(steps, rank, size)  # a function, so that its model is gone before the group that it uses
    if size > 1:
        dist.destroy_process_group()


def train(steps: int, rank: int, size: int) -> None:
    torch.manual_seed(0)  # the same batches in all processes
    dataset = data.load(context_length=3)
    model: nn.Module = Names(len(dataset.vocabulary), 3)
    if size > 1:
        model = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for step in range(1, steps + 1):
        batch = torch.randint(len(dataset.train), (BATCH,))
        contexts, targets = dataset.train.batch(batch[BATCH * rank // size : BATCH * (rank + 1) // size])
        loss = model(contexts, targets) / BATCH
        optimizer.zero_grad()
        (loss * size).backward()
        optimizer.step()
        if step == 1 or step % 50 == 0 or step == steps:
            whole = loss.detach()
            if size > 1:
                dist.all_reduce(whole)
            if rank == 0:
                print(f"step {step}  loss {whole.item():.4f}")


if __name__ == "__main__":
    main()
