"""Every way a step can go: which shape and options lead there, that its values are eager's, that its bits repeat."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from engine_runs import OPTIMIZERS, Run, assert_agrees, make_batches, make_bigram, make_run
from torch import Tensor

from charlm import _C, engine, ops

# How a batch is cut: (V, T, D, H, B) of which all contexts are different. The numbers of tiles follow from B; classes
# are shared out in slots, with any instruction set, from V = 1,100 on.
CUTS = {
    "one_tile": (27, 3, 4, 30, 40),
    "tiles": (27, 3, 4, 30, 300),
    "slots": (27, 3, 4, 30, 1100),
    "class_slots": (1100, 2, 3, 10, 40),
    "tiles_of_class_slots": (1100, 2, 3, 10, 300),
}
# When parameters change, by options; "sparse": of the embedding only the rows of the tokens present. On one tile the
# last is "in_place".
UPDATES: dict[str, dict[str, Any]] = {
    "at_once": OPTIMIZERS["adamw"],
    "clipped": {**OPTIMIZERS["momentum"], "max_grad_norm": 0.05},
    "clipped_sparse": {"max_grad_norm": 0.05},
    "at_once_sparse": {},
}
every_cut = pytest.mark.parametrize("cut", CUTS)


def different_contexts(cut: str, dtype: torch.dtype = torch.float64, **options: Any) -> Run:
    """A run of as many examples as a batch has, whose contexts count upwards: no two are equal."""
    vocab_size, length, *_, size = CUTS[cut]
    run = make_run(CUTS[cut], dtype, **options)
    numbers = torch.arange(size) * 17 % vocab_size**length
    run.contexts = torch.stack([numbers // vocab_size**t % vocab_size for t in range(length)], dim=1)
    run.targets = numbers % vocab_size
    return run


def whole_batches(run: Run, steps: int = 3) -> tuple[Tensor, Tensor]:
    return torch.arange(len(run.contexts)).expand(steps, -1), torch.linspace(0.1, 0.05, steps, dtype=torch.float64)


@every_cut
@pytest.mark.parametrize("update", UPDATES)
def test_every_branch_of_a_step_equals_eager(cut: str, update: str, instruction_set: str) -> None:
    eager, fused = (different_contexts(cut, **UPDATES[update]) for _ in range(2))
    batches, rates = whole_batches(eager)
    losses = eager.eager(batches, rates), fused.fused(batches, rates)
    if update == "at_once_sparse" and cut in ("one_tile", "class_slots"):
        update = "in_place"
    assert _C.last_branch() == f"mlp_step/{cut}/{update}"
    assert_agrees(eager, fused, losses, 1e-10)


@every_cut
def test_every_branch_of_a_loss_alone_and_of_a_gradient(cut: str) -> None:
    run = different_contexts(cut)
    expected = run.model.loss(run.contexts, run.targets)
    loss = engine.evaluate_full(run.parameters, *run.counts())
    assert _C.last_branch() == f"mlp_step/{cut}/loss"
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-12, atol=0)

    actual = ops.mlp_cross_entropy(run.contexts, run.targets, *run.parameters)
    assert _C.last_branch() == f"mlp_step/{cut}/gradient"
    for mine, eagers in zip(*(torch.autograd.grad(x, run.parameters) for x in (actual, expected)), strict=True):
        torch.testing.assert_close(mine, eagers, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("branch", "options"),
    [
        ("in_place", {}),
        ("at_once", OPTIMIZERS["weight_decay"]),
        ("at_once", OPTIMIZERS["adamw"]),
        ("clipped", {"max_grad_norm": 0.05}),
    ],
)
def test_every_branch_of_a_bigram(branch: str, options: dict[str, Any]) -> None:
    eager, fused = (make_bigram(150, torch.float64, **options) for _ in range(2))  # of two tiles and more
    batches, rates = whole_batches(eager)
    losses = eager.eager(batches, rates), fused.fused(batches, rates)
    assert _C.last_branch() == f"bigram_step/{branch}"
    assert_agrees(eager, fused, losses, 1e-10)

    loss = engine.evaluate_full(fused.parameters, *fused.counts())
    assert _C.last_branch() == "bigram_step/loss"
    torch.testing.assert_close(loss, fused.model.loss(fused.contexts, fused.targets).detach(), rtol=1e-12, atol=0)


def losses_one_apart(bigram: bool, logits: Tensor) -> list[float]:
    """The loss of the lesser of two classes with each of these logits, the other's being 1 more."""
    losses = []
    for logit in logits:
        run = make_bigram(2, logits.dtype) if bigram else make_run((2, 1, 1, 1), logits.dtype)
        with torch.no_grad():
            for parameter in run.parameters:
                parameter.zero_()
            run.parameters[-1].copy_(torch.stack([logit, logit + 1]))
        contexts, row_ptr, targets, counts = run.counts()
        losses.append(engine.evaluate_full(run.parameters, contexts, row_ptr, torch.zeros_like(targets), counts).item())
    return losses


@pytest.mark.parametrize("bigram", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_small_logits_are_not_shifted_and_large_ones_are(
    bigram: bool, dtype: torch.dtype, instruction_set: str
) -> None:
    # The loss is log(1 + e). Of logits without a fraction, shifted by the larger, it is always the same number; not
    # shifted, rounding makes others of it. Without a shift exp(1000) is infinite.
    expected = math.log1p(math.e)
    small = losses_one_apart(bigram, torch.arange(-20.0, 20.0, dtype=dtype))
    assert len(set(small)) > 1
    assert max(abs(loss - expected) for loss in small) < 40 * torch.finfo(dtype).eps
    large = losses_one_apart(bigram, torch.tensor([31.0, 64.0, 1000.0, -1000.0], dtype=dtype))
    assert len(set(large)) == 1
    assert abs(large[0] - expected) < 4 * torch.finfo(dtype).eps


# In float32, where the order of a sum shows.
REPEATED: dict[str, tuple[Any, dict[str, Any]]] = {
    "the lecture's, in one tile": ((27, 3, 10, 200, 32), {}),
    "several tiles": ((27, 3, 10, 64, 300), {"direct": True, "softcap": 5.0}),
    "several slots": ((27, 3, 10, 64, 1500), {}),
    "many classes": ((1100, 3, 5, 70, 600), {"momentum": 0.9, "direct": True}),
    "adamw": ((27, 3, 10, 64, 1500), OPTIMIZERS["adamw"]),
    "clip": ((27, 3, 10, 64, 1500), {"max_grad_norm": 0.1}),
    "bigram": (None, {"max_grad_norm": 0.1}),
}


@pytest.mark.parametrize("full_batch", [False, True])
@pytest.mark.parametrize("name", REPEATED)
def test_same_bits_for_any_number_of_threads_and_again(name: str, full_batch: bool, threads: None) -> None:
    shape, options = REPEATED[name]

    def bits() -> list[Tensor]:
        run = make_bigram(150, torch.float32, **options) if shape is None else make_run(shape, torch.float32, **options)
        if shape is not None:
            generator = torch.Generator().manual_seed(4)
            run.contexts = torch.randint(27, (2000, shape[1]), generator=generator)
            run.targets = torch.randint(shape[0], (2000,), generator=generator)
        state = run.new_state()
        batches, rates = make_batches(3, 300 if shape is None else shape[-1])
        if full_batch:
            losses = engine.train_full_steps(run.parameters, state, *run.counts(), rates, **run.options)
        else:
            losses = run.fused(batches * 5 % len(run.contexts), rates, state)
        return [losses, *run.parameters, *state, engine.evaluate_full(run.parameters, *run.counts())]

    results = []
    for count in (1, 1, 2, 4, 8):
        torch.set_num_threads(count)
        results.append(bits())
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
