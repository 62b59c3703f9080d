"""The random batches of a training run: a stream of example indices that does not depend on how it is read."""

from __future__ import annotations

import torch
from torch import Tensor

from charlm._memory import check_memory
from charlm._rules import check

# Indices of a block: 8 MiB, if they were drawn at once.
_BLOCK_ELEMENTS = 1 << 20


class BatchSampler:
    """Uniform examples, with replacement: step s uses row s of an endless sequence of (B,) index rows.

    Rows come in blocks, each `torch.randint(num_examples, (S, B), generator=g)` on the CPU with S = 2^20 // B, at least
    1. The first block is drawn from `g = torch.Generator().manual_seed(seed)`, and the state of g is remembered as it
    was before the current block: with the step it determines everything that follows. Rows are drawn as they are read,
    which gives the numbers of the whole block: hundreds of samplers take no more memory than what is read of them.

    Args:
        num_examples: N >= 1.
        batch_size: B >= 1.
        seed: of the generator, -2^63 <= seed < 2^64.

    Raises:
        ValueError: an argument is out of range, or a batch is more than memory holds.
    """

    def __init__(self, num_examples: int, batch_size: int, seed: int) -> None:
        check("seed", seed)
        check("batch_size", batch_size)
        # Indices, where their contexts start, and their targets.
        check_memory(f"a batch with batch_size={batch_size}", 24 * batch_size)
        self._num_examples = num_examples
        self._batch_size = batch_size
        self._rows = max(1, _BLOCK_ELEMENTS // batch_size)
        self._generator = torch.Generator().manual_seed(int(seed))
        self._drawn = 0
        self._start_block(0)

    def rows_left(self, step: int) -> int:
        """How many rows the block of `step` has from there on."""
        return self._rows - step % self._rows

    def read(self, step: int, steps: int) -> Tensor:
        """The indices (S, B), int64, of the steps from `step` on; 1 <= S <= steps, as many as the block of `step` has.

        Steps are read forwards: `step` is not before the current block.
        """
        while step >= self._start + self._rows:
            # Drawing is what moves the generator on, also past rows that nobody reads.
            self._draw(self._rows - self._drawn)
            self._start_block(self._start + self._rows)
        offset = step - self._start
        if offset < self._drawn:
            self._generator.set_state(self._state)
            self._drawn = 0
        self._draw(offset - self._drawn)
        return self._draw(min(steps, self._rows - offset))

    def state_dict(self) -> dict[str, Tensor]:
        """`generator` (uint8), its state before the current block, and `start`, the first step of that block."""
        return {"generator": self._state.clone(), "start": torch.tensor(self._start, device="cpu")}

    def load_state_dict(self, state: dict[str, Tensor], step: int) -> None:
        """Continues from `state`, taken at `step`; ValueError, and no change, if it is not a state of this class."""
        start = int(state["start"])
        # The block of a step that comes next, or that before it, of which all rows were read.
        first = max(0, step - self._rows)
        if not first <= start <= step:
            raise ValueError(f"batches state 'start' must be in {first} .. step={step}, got {start}")
        if start % self._rows != 0:
            raise ValueError(f"batches state 'start' must be a multiple of {self._rows} steps, got {start}")
        try:
            self._generator.set_state(state["generator"])
        except RuntimeError as error:
            raise ValueError(f"batches state 'generator' is not the state of a generator: {error}") from error
        self._start_block(start)

    def _start_block(self, start: int) -> None:
        self._start = start
        self._state = self._generator.get_state()
        self._drawn = 0

    def _draw(self, rows: int) -> Tensor:
        """The next rows of the current block."""
        self._drawn += rows
        return torch.randint(self._num_examples, (rows, self._batch_size), generator=self._generator, device="cpu")
