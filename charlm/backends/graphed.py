"""Whole steps of `charlm.ops` as a CUDA graph: where a step is many launches, replaying it is one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from charlm.backends.eager import OpsBackend
from charlm.backends.examples import batches, kept
from charlm.backends.update import step_numbers, update
from charlm.optimizers import state_names

# Steps whose tokens and numbers are on the device at a time: those of a fifth of a second at 50 microseconds each, or
# as many as have so many tokens.
_STEPS_AT_ONCE = 4096
_TOKENS_AT_ONCE = 1 << 24
# A full batch stays on the device where its probabilities take no more. A step on a larger one takes so long that its
# launches do not matter.
_RESIDENT_BYTES = 1 << 30


@dataclass(frozen=True)
class _Chunk:
    """What differs from step to step, in memory of the device: a row of each tensor is for a step.

    Attributes:
        counter: (1,) int64, which row is next.
        numbers: (S, K), rows of `step_numbers`.
        losses: (S,), what steps leave here.
        tokens: contexts (S, B, T) and targets (S, B); None where every step takes the whole split.
    """

    counter: Tensor
    numbers: Tensor
    losses: Tensor
    tokens: tuple[Tensor, Tensor] | None

    def next(self, rows: Tensor) -> Tensor:
        """A copy of the row of the step that is next."""
        return rows.index_select(0, self.counter).squeeze(0)


@dataclass(frozen=True)
class _Graph:
    """A captured step.

    Attributes:
        batch_size: B; None where every step takes the whole split.
        addresses: of the parameters and state that it changes.
        chunk: what else it reads and writes.
        replay: makes the step that is next.
    """

    batch_size: int | None
    addresses: list[int]
    chunk: _Chunk
    replay: Callable[[], None]


class GraphedBackend(OpsBackend):
    """The steps of the backend "ops", captured: batch, forward, backward, clipping and update are one launch.

    What differs from step to step is in memory of the device, a chunk of steps at a time: their tokens, and the numbers
    that the update multiplies with. A step finds its own by a counter, and leaves its loss beside them. So a replay
    takes nothing from the CPU, and a chunk is as many replays and one wait. Parameters and state are the ordinary
    tensors, which a graph knows by their addresses: where these change, a step is captured anew.
    """

    _graph: _Graph | None = None

    def run(self, batch_indices: Tensor | None, learning_rates: Tensor) -> Tensor:
        if batch_indices is None and self._resident_parts is None:
            return super().run(batch_indices, learning_rates)
        example, states = self._parameters[0], self._states()
        first_step = int(states[0]["step"]) if "step" in states[0] else 0
        numbers = step_numbers(self._options, learning_rates, first_step, example.dtype, example.device)
        losses, steps_at_once = [example.new_empty(0)], self._steps_at_once(batch_indices)
        for start in range(0, len(numbers), steps_at_once):
            chunk = slice(start, start + steps_at_once)
            indices = None if batch_indices is None else batch_indices[chunk]
            losses.append(self._run_chunk(indices, numbers[chunk]))
            for state in states:
                if "step" in state:
                    state["step"] += len(losses[-1])
            for group in self._optimizer.param_groups:
                group["lr"] = float(learning_rates[chunk][-1])
        return torch.cat(losses)

    def _run_chunk(self, batch_indices: Tensor | None, numbers: Tensor) -> Tensor:
        """A step for each row of `numbers`; returns their losses."""
        tokens = None if batch_indices is None else self._tokens(batch_indices)
        graph = self._captured(tokens, numbers)
        chunk, steps = graph.chunk, len(numbers)
        chunk.numbers[:steps].copy_(numbers)
        if tokens is not None and chunk.tokens is not None:
            for memory, values in zip(chunk.tokens, tokens, strict=True):
                memory[:steps].copy_(values)
        chunk.counter.zero_()
        for _ in range(steps):
            graph.replay()
        return chunk.losses[:steps].clone()

    def _captured(self, tokens: tuple[Tensor, Tensor] | None, numbers: Tensor) -> _Graph:
        """The graph of a step on batches like these, of the parameters and the state as they are now."""
        batch_size = None if tokens is None else tokens[1].shape[1]
        changed = [*self._parameters, *(s[name] for s in self._states() for name in state_names(self._options))]
        addresses = [tensor.data_ptr() for tensor in changed]
        if self._graph is None or (self._graph.batch_size, self._graph.addresses) != (batch_size, addresses):
            self._graph = None  # its memory is free before another's is taken
            steps = self._steps_at_once(None if tokens is None else tokens[1])
            chunk = _Chunk(
                torch.zeros(1, dtype=torch.int64, device=numbers.device),
                numbers.new_zeros(steps, numbers.shape[1]),
                numbers.new_zeros(steps),
                None if tokens is None else (_room_for(steps, tokens[0]), _room_for(steps, tokens[1])),
            )
            before = [tensor.detach().clone() for tensor in changed]
            try:
                replay = capture(lambda: self._make_step(chunk), numbers.device)
            finally:
                # To capture a step takes making one.
                with torch.no_grad():
                    torch._foreach_copy_(changed, before)
            self._graph = _Graph(batch_size, addresses, chunk, replay)
        return self._graph

    def _make_step(self, chunk: _Chunk) -> None:
        """What is captured. It asks the device for nothing, and the CPU has no say in it."""
        if chunk.tokens is None:
            parts, reduction = self._resident_parts or [], "sum"
        else:
            contexts, targets = map(chunk.next, chunk.tokens)
            parts, reduction = [(contexts, targets)], "mean"
        loss = self._set_gradients(parts, reduction, 1)
        gradients = {parameter: parameter.grad for parameter in self._parameters if parameter.grad is not None}
        states = [self._optimizer.state[parameter] for parameter in gradients]
        update(list(gradients), list(gradients.values()), states, chunk.next(chunk.numbers), self._options)
        for parameter in gradients:
            parameter.grad = None  # it is memory of the graph
        chunk.losses.index_copy_(0, chunk.counter, loss.reshape(1))
        chunk.counter.add_(1)

    def _states(self) -> list[dict[str, Tensor]]:
        return [self._optimizer.state[parameter] for parameter in self._parameters]

    def _steps_at_once(self, batches: Tensor | None) -> int:
        """How many steps a chunk has at most, of batches (S, B)."""
        if batches is None:
            return _STEPS_AT_ONCE
        return max(1, min(_STEPS_AT_ONCE, _TOKENS_AT_ONCE // (batches.shape[1] * (self.model.context_length + 1))))

    def _tokens(self, batch_indices: Tensor) -> tuple[Tensor, Tensor]:
        """Contexts (S, B, T) and targets (S, B) of the examples (S, B), looked up on the device."""
        found = batches(self._split, self.model.context_length, self.model.device, batch_indices)
        contexts, targets = found.contexts, found.targets
        if found.context_index is not None:
            examples = found.indices.flatten().to(targets.device)
            contexts = contexts.index_select(0, found.context_index.index_select(0, examples))
            targets = targets.index_select(0, examples)
        return contexts.unflatten(0, batch_indices.shape), targets.unflatten(0, batch_indices.shape)

    @cached_property
    def _resident_parts(self) -> list[tuple[Tensor, Tensor]] | None:
        """The parts of a full batch, which all models on the split share; None where they are too large to keep."""
        example = self._parameters[0]
        distinct = self._split.kept_distinct(with_index=False)
        if len(distinct) * self.model.vocab_size * example.element_size() > _RESIDENT_BYTES:
            return None
        key = ("probabilities", example.dtype, example.device)
        parts: list[tuple[Tensor, Tensor]] = kept(self._split, key, lambda: list(self._parts(distinct)))
        return parts


def _room_for(steps: int, batches: Tensor) -> Tensor:
    return batches.new_zeros(steps, *batches.shape[1:])


def capture(step: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """Returns what replays `step` on the current stream of a GPU, after a call of it, which loads what the first loads.

    Another thread may use the GPU meanwhile, as long as it does not allocate on it.
    """
    with torch.cuda.device(device):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
            step()
    return graph.replay
