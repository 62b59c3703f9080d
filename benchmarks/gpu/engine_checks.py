"""Whether the engine trains on this GPU: every optimizer and option, against plain PyTorch in float64 on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu import checks, measure
from benchmarks.gpu.results import Entry
from benchmarks.gpu.task import Task, in_a_line
from benchmarks.options import dtype_name
from charlm import _C, MLP, NeuralBigram, engine, optimizers
from charlm.models import engine_parameters
from charlm.optimizers import OptimizerOptions, state_names

DTYPES = (torch.float32, torch.float64)
EXAMPLES, BATCH, STEPS = 300, 32, 5
MOST_HIDDEN = 4096
_FIRST_STEP = 3
_BAD = (-1, 27, 2**31 - 1)


@dataclass(frozen=True)
class Case:
    """What is trained, and how.

    Attributes:
        shape: (V, T, D, H) of an MLP, or (V,) of a bigram.
        options: of the optimizer.
        direct, softcap: of the MLP.
        is_full: steps take all examples.
    """

    shape: Sequence[int]
    options: dict[str, Any] = field(default_factory=dict)
    direct: bool = False
    softcap: float | None = None
    is_full: bool = False

    def parameters(self, dtype: torch.dtype, device: str) -> list[Tensor]:
        vocab_size, *layers = self.shape
        sizes: list[tuple[int, ...]] = [(vocab_size, vocab_size)]
        if layers:
            length, dim, hidden = layers
            sizes = [(vocab_size, dim), (hidden, length * dim), (hidden,), (vocab_size, hidden), (vocab_size,)]
            sizes += [(vocab_size, length * dim)] if self.direct else []
        # The same numbers in both dtypes.
        drawn = [checks.normal(*size, dtype=torch.float32, seed=seed) for seed, size in enumerate(sizes)]
        return [(0.3 * values).to(device, dtype) for values in drawn]

    def tokens(self) -> tuple[Tensor, Tensor]:
        """Contexts (N, T), which repeat, and targets (N,), on the CPU."""
        generator = torch.Generator().manual_seed(9)
        length = self.shape[1] if len(self.shape) > 1 else 1
        contexts = torch.randint(min(5, self.shape[0]), (EXAMPLES, length), generator=generator)
        return contexts, torch.randint(self.shape[0], (EXAMPLES,), generator=generator)


# (V, T, D, H) of the lecture, a smaller one, and a bigram's V.
LECTURE, SMALL, BIGRAM = (27, 3, 10, 200), (65, 2, 5, 33), (27,)
_ADAMW = {"optimizer": "adamw", "betas": (0.9, 0.98), "eps": 1e-4, "weight_decay": 0.1}
CASES = {
    "sgd": Case(LECTURE),
    "adamw": Case(LECTURE, _ADAMW),
    "momentum, decay, clipped": Case(LECTURE, {"momentum": 0.9, "weight_decay": 1e-3, "max_grad_norm": 0.05}),
    "direct, softcap": Case(SMALL, {"max_grad_norm": 0.5}, direct=True, softcap=2.0),
    "all examples": Case(SMALL, _ADAMW, is_full=True),
    "a bigram": Case(BIGRAM, {"momentum": 0.9, "max_grad_norm": 0.5}),
    "a bigram on all examples": Case(BIGRAM, _ADAMW, is_full=True),
}
BATCHES = torch.randint(EXAMPLES, (STEPS, BATCH), generator=torch.Generator().manual_seed(3))
RATES = torch.linspace(0.1, 0.02, STEPS, dtype=torch.float64)


def smoke() -> Iterator[tuple[str, Task]]:
    for name, check in {"values": _values, "repeated": _repeated}.items():
        for dtype in DTYPES:
            word = dtype_name(dtype)
            facts = {"op": "engine", "dtype": word}
            yield "smoke", Task(f"engine {word}: {name}", partial(_every_case, check, dtype), facts)


def risky() -> Iterator[tuple[str, Task]]:
    runs: dict[str, Callable[[], Entry]] = {
        **{f"largest model of {dtype_name(dtype)}": partial(_largest_model, dtype) for dtype in DTYPES},
        "bad numbers in the engine": _bad_numbers,
    }
    for name, run in runs.items():
        yield "risky", Task(name, run)


def train(case: Case, dtype: torch.dtype, device: str, contexts: Tensor | None = None) -> dict[str, Tensor]:
    """The losses, and parameters and state after some steps, by name."""
    parameters = case.parameters(dtype, device)
    options = OptimizerOptions(**case.options)
    state = [torch.zeros_like(parameter) for _ in state_names(options) for parameter in parameters]
    own, targets = case.tokens()
    contexts = own if contexts is None else contexts
    if case.is_full:
        distinct, row_ptr, targets, counts = (t.to(device) for t in _counted(contexts, targets, case.shape[0]))
        examples = distinct, row_ptr, targets, counts
        losses = engine.train_full_steps(
            parameters, state, *examples, RATES, options, softcap=case.softcap, first_step=_FIRST_STEP
        )
    else:
        batches = contexts.to(device), targets.to(device), BATCHES
        losses = engine.train_steps(
            parameters, state, *batches, RATES, options, softcap=case.softcap, first_step=_FIRST_STEP
        )
    return _named(losses, parameters, state)


def truth(case: Case) -> dict[str, Tensor]:
    """The same by autograd and `torch.optim`, from one step to the next."""
    model: MLP | NeuralBigram
    vocab_size, *layers = case.shape
    if layers:
        model = MLP(vocab_size, *layers, direct=case.direct, softcap=case.softcap, backend="eager")
    else:
        model = NeuralBigram(vocab_size, backend="eager")
    model.double()
    parameters = engine_parameters(model)
    assert parameters is not None
    with torch.no_grad():
        for parameter, value in zip(parameters, case.parameters(torch.float64, "cpu"), strict=True):
            parameter.copy_(value)
    options = OptimizerOptions(**case.options)
    optimizer = optimizers.create(model, options, 1.0)
    for entry in optimizer.state.values():
        if "step" in entry:
            entry["step"] += _FIRST_STEP
    contexts, targets = case.tokens()
    losses = []
    for batch, rate in zip(BATCHES, RATES.tolist(), strict=True):
        examples = slice(None) if case.is_full else batch
        loss = model.loss(contexts[examples], targets[examples])
        optimizer.zero_grad()
        loss.backward()
        if options.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(parameters, options.max_grad_norm)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        losses.append(loss.detach())
    state = [optimizer.state[parameter][name] for name in state_names(options) for parameter in parameters]
    return _named(torch.stack(losses), [parameter.detach() for parameter in parameters], state)


def _named(losses: Tensor, parameters: Sequence[Tensor], state: Sequence[Tensor]) -> dict[str, Tensor]:
    after = {f"parameter {number}": value for number, value in enumerate(parameters)}
    return {"losses": losses, **after, **{f"state {number}": value for number, value in enumerate(state)}}


def _counted(contexts: Tensor, targets: Tensor, vocab_size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    distinct, index = contexts.unique(dim=0, return_inverse=True)
    dense = torch.zeros(len(distinct), vocab_size, dtype=torch.int64)
    dense.index_put_((index, targets), torch.ones_like(targets), accumulate=True)
    row_ptr = torch.cat([torch.zeros(1, dtype=torch.int64), (dense > 0).sum(1).cumsum(0)])
    return distinct, row_ptr, dense.nonzero()[:, 1], dense[dense > 0]


def _every_case(check: Callable[[Case, torch.dtype], float], dtype: torch.dtype) -> Entry:
    """The largest difference; all cases that failed are named."""
    errors, largest = [], 0.0
    for name, case in CASES.items():
        try:
            largest = max(largest, check(case, dtype))
        except Exception as error:
            errors.append(f"{name}: {in_a_line(error)}")
            if measure.is_broken():
                break
    return {"error": "; ".join(errors)} if errors else {"largest_difference": largest}


def _values(case: Case, dtype: torch.dtype) -> float:
    expected = truth(case)
    checks.poison(value.to(dtype) for value in expected.values())
    found = {name: value.cpu() for name, value in train(case, dtype, measure.DEVICE).items()}
    return checks.compare(found, expected, dtype)


def _repeated(case: Case, dtype: torch.dtype) -> float:
    found = train(case, dtype, measure.DEVICE)
    checks.poison(found.values())
    checks.same_bits(found, train(case, dtype, measure.DEVICE))
    return 0.0


def _largest_model(dtype: torch.dtype) -> Entry:
    """The most hidden units that the engine takes of the lecture's model; one more is an error."""
    vocab_size, length, dim, _ = LECTURE

    def fits(hidden: int) -> bool:
        is_double = dtype == torch.float64
        return _C.trains_in_one_launch(torch.cuda.current_device(), vocab_size, length, dim, hidden, False, is_double)

    low, high = 1, MOST_HIDDEN
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    difference = _values(Case((vocab_size, length, dim, low), {"momentum": 0.9, "max_grad_norm": 0.5}), dtype)
    try:
        train(Case((vocab_size, length, dim, high)), dtype, measure.DEVICE)
    except (RuntimeError, ValueError):
        return {"largest_difference": difference, "hidden_dim": low}
    raise ValueError(f"H={high} trains, but is said not to fit")


def _bad_numbers() -> Entry:
    """From the step on that meets an id out of range, losses and parameters are NaN; those before are as ever."""
    case = CASES["sgd"]
    expected = train(case, torch.float32, measure.DEVICE)["losses"]
    first = 2
    for bad in _BAD:
        contexts, _ = case.tokens()
        contexts[BATCHES[first, 0], 1] = bad
        met = [step for step in range(STEPS) if (BATCHES[step] == BATCHES[first, 0]).any()]
        found = train(case, torch.float32, measure.DEVICE, contexts)
        losses = found["losses"]
        if not torch.equal(losses[: met[0]], expected[: met[0]]):
            raise ValueError(f"id {bad} in step {met[0]} has changed the losses before")
        if not (losses[met[0] :].isnan().all() and found["parameter 3"].isnan().all()):
            raise ValueError(f"id {bad} in step {met[0]}: losses {losses.tolist()}, and parameters are not all NaN")
    return {"largest_difference": 0.0}
