"""The ways in which a GPU is given an op to compute: at once, on a side stream, in a graph, with memory that runs out.

On a GPU they are torch's. On the simulator each has a stand-in, so that whoever uses them has run before a GPU runs it:
another stream of the simulator, on which every launch must be; and a graph that, when it is replayed, computes again
what was recorded, and when it is captured refuses what waits for a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import cases
import torch
from cases import Sample, normal
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from charlm import ops

Results = dict[str, Tensor]

# Cycles of a GPU: what a side stream waits for, and the default stream, which is still at it when the side stream ends.
_SHORT, _LONG = 5_000_000, 200_000_000
# Their results, or the sizes of these, are known to the CPU, which waits for the GPU to say.
_WAITING = {"_local_scalar_dense", "equal", "is_nonzero", "masked_select", "nonzero", "repeat_interleave", "_unique2"}


class Step:
    """Forward and backward of an op on tensors that stay where they are, as a graph needs them."""

    def __init__(self, sample: Sample) -> None:
        self._sample = sample.with_arguments(**{name: value.clone() for name, value in _tensors(sample).items()})
        result = sample.call(getattr(ops, sample.op), {})
        self._upstream = normal(*result.shape, seed=99).to(result)

    def fill(self, sample: Sample) -> None:
        """Other values from now on."""
        for name, value in _tensors(sample).items():
            self._sample.arguments[name].copy_(value)

    def users(self) -> list[int]:
        """How many hold each of the tensors, in Python or in C++: one more where a call has not let go of it."""
        return [value._use_count() for value in (*_tensors(self._sample).values(), self._upstream)]

    def __call__(self) -> Results:
        leaves = self._sample.leaves()
        result = self._sample.call(getattr(ops, self._sample.op), leaves)
        gradients = torch.autograd.grad(result, list(leaves.values()), self._upstream)
        return {"result": result.detach(), **dict(zip(leaves, gradients, strict=True))}


def _tensors(sample: Sample) -> Mapping[str, Tensor]:
    return {name: value for name, value in sample.arguments.items() if isinstance(value, Tensor)}


# What a step computes of other values than it has computed with before.
Way = Callable[[Step, Sample], Results]


def plainly(step: Step, values: Sample) -> Results:
    step.fill(values)
    return step()


def on_side_stream(step: Step, values: Sample) -> Results:
    """Behind other work there, and while the default stream, on which nothing may be, is at work for longer."""
    if not _on_gpu():
        import simulator

        with simulator.stream(1):
            return plainly(step, values)
    side = torch.cuda.Stream()
    torch.cuda.synchronize()
    torch.cuda._sleep(_LONG)
    with torch.cuda.stream(side):
        torch.cuda._sleep(_SHORT)
        results = plainly(step, values)
        read = {name: torch.empty_like(value, device="cpu", pin_memory=True) for name, value in results.items()}
        for name, value in results.items():
            read[name].copy_(value, non_blocking=True)
    side.synchronize()
    found = {name: value.clone() for name, value in read.items()}
    torch.cuda.synchronize()
    return {name: value.to(results[name].device) for name, value in found.items()}


def in_graph(step: Step, values: Sample) -> Results:
    """Captured with the values that the step has, and replayed with others."""
    replay, results = capture(step)
    for result in results.values():
        result.fill_(torch.nan)
    step.fill(values)
    replay()
    return results


def capture(step: Step) -> tuple[Callable[[], None], Results]:
    """What replays a step that was captured after one call of it, and where its results are then."""
    if not _on_gpu():
        return _simulated_capture(step)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step()
    return graph.replay, results


def _simulated_capture(step: Step) -> tuple[Callable[[], None], Results]:
    import simulator

    graph = RecordedGraph()
    with simulator.stream(2), graph.recording():
        results = step()
    return graph.replay, results


def capture_step(step: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """What stands in for `charlm.backends.graphed.capture` where there is no GPU."""
    graph = RecordedGraph()
    with graph.recording():
        step()
    return graph.replay


class RecordedGraph:
    """What torch was asked to compute, which a replay computes again into the same memory.

    As in a graph of CUDA, numbers of Python are what they were, and so is the way that the code went.
    """

    def __init__(self) -> None:
        self._calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], list[Tensor]]] = []

    @contextmanager
    def recording(self) -> Iterator[None]:
        with _Recording(self._calls):
            yield

    def replay(self) -> None:
        with torch.no_grad():
            for function, arguments, options, results in self._calls:
                for old, new in zip(results, _results(function(*arguments, **options)), strict=True):
                    if old.shape == new.shape:  # autograd empties what it saved, when it is done
                        old.copy_(new)


def _results(results: Any) -> list[Tensor]:
    several = results if isinstance(results, (tuple, list)) else [results]
    return [result for result in several if isinstance(result, Tensor)]


class NoWaiting(TorchDispatchMode):
    """Calls of torch for which the CPU would wait for the GPU are errors, as they are in a graph that is captured."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        by_mask = name in ("index", "index_put") and any(i is not None and i.dtype == torch.bool for i in args[1])
        if name in _WAITING or by_mask:
            raise RuntimeError(f"{name} waits for the GPU")
        return func(*args, **(kwargs or {}))


class _Recording(NoWaiting):
    def __init__(self, calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], list[Tensor]]]) -> None:
        super().__init__()
        self._calls = calls

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = super().__torch_dispatch__(func, types, args, kwargs)
        self._calls.append((func, args, kwargs or {}, _results(results)))
        return results


def at_once(steps: tuple[Step, Step]) -> tuple[Results, Results]:
    """Two steps, each on a stream of its own, three times and in turn; their last results."""
    streams: list[AbstractContextManager[Any]]
    for _ in range(3):
        if _on_gpu():
            sides = [torch.cuda.Stream(), torch.cuda.Stream()]
            for side in sides:
                side.wait_stream(torch.cuda.current_stream())
            streams = [torch.cuda.stream(side) for side in sides]
        else:
            import simulator

            streams = [simulator.stream(1), simulator.stream(2)]
        results = []
        for step, stream in zip(steps, streams, strict=True):
            with stream:
                results.append(step())
        if _on_gpu():
            torch.cuda.synchronize()
    return results[0], results[1]


@contextmanager
def current_device(index: int) -> Iterator[None]:
    """A GPU is the current one, and must still be so at the end."""
    if not _on_gpu():
        import simulator

        with simulator.current_device(index):
            yield
        return
    with torch.cuda.device(index):
        yield
        assert torch.cuda.current_device() == index


@contextmanager
def tensors_on(index: int) -> Iterator[None]:
    """What cases.py makes is on another GPU."""
    if not _on_gpu():
        import simulator

        with simulator.tensors_on(simulator.GPUS[index]) as found:
            assert found == index
            yield
        return
    before = cases.device
    cases.device = torch.device("cuda", index)
    try:
        yield
    finally:
        cases.device = before


def out_of_memory(call: Callable[[], object]) -> list[Exception]:
    """What a call raises where memory runs out in it: early, and later and later until it gets through."""
    errors: list[Exception] = []
    for shortage in _shortages(call) if _on_gpu() else _simulated_shortages():
        with shortage as is_short:
            try:
                call()
            except (RuntimeError, MemoryError) as error:
                errors.append(error)
                continue
            assert not is_short(), "memory has run out, and the call goes on"
        break
    return errors


def _shortages(call: Callable[[], object]) -> Iterator[AbstractContextManager[Callable[[], bool]]]:
    """Memory for a part of what the call takes."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    taken = torch.cuda.max_memory_allocated() - before
    total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory

    @contextmanager
    def limited(part: float) -> Iterator[Callable[[], bool]]:
        torch.cuda.empty_cache()
        reserved = torch.cuda.memory_reserved()
        is_short = reserved - torch.cuda.memory_allocated() < (1 - part) * taken
        torch.cuda.set_per_process_memory_fraction((reserved + part * taken) / total)
        try:
            yield lambda: is_short
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)

    for eighths in range(8):
        yield limited(eighths / 8)


def _simulated_shortages() -> Iterator[AbstractContextManager[Callable[[], bool]]]:
    """Memory for none of the allocations, for one, and so on."""
    import simulator

    for calls in range(1000):
        yield simulator.memory_for(calls)


def _on_gpu() -> bool:
    return cases.device.type == "cuda"
