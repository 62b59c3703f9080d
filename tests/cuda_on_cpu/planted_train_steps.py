"""Faults in the kernels that train."""

from __future__ import annotations

from typing import Any

import simulator
import torch
from engine_runs import OPTIMIZERS, Run, make_batches, make_bigram, make_run
from planted import WRONG_NUMBERS, Fault, Planted, missing_barriers
from torch import Tensor

from charlm import engine

TILES, SOFTMAX, UPDATE, BLOCK = "train_tiles.cuh", "train_softmax.cuh", "train_update.cuh", "train_block.cuh"
MLP, BIGRAM = "train_mlp.cuh", "train_bigram.cuh"
OUTSIDE, UNSEEN, RACE = "out of bounds", "nothing has written", "a race"
MISTAKES = [
    Fault(TILES, "__syncwarp();", "if (!FAULT) __syncwarp();", f"{RACE}|{UNSEEN}"),
    Fault(TILES, "same < lane)", "same < lane - FAULT)", WRONG_NUMBERS),
    Fault(TILES, "t == length) break;", "t == length || FAULT) break;", WRONG_NUMBERS),
    Fault(TILES, "&& other < lane)", "&& !FAULT && other < lane)", f"{RACE}|{UNSEEN}|{WRONG_NUMBERS}"),
    Fault(TILES, "begin += other_row < lane;", "begin += other_row < lane + FAULT;", WRONG_NUMBERS),
    Fault(TILES, "value < limit ?", "value < limit + FAULT ?", f"{OUTSIDE}|{WRONG_NUMBERS}"),
    Fault(TILES, "context >= contexts.rows", "context >= contexts.rows + FAULT", OUTSIDE),
    Fault(TILES, "example < batches.examples", "example < batches.examples + FAULT", OUTSIDE),
    Fault(TILES, "entry < batch.entries ?", "entry < batch.entries + 1000 * FAULT ?", f"{OUTSIDE}|{WRONG_NUMBERS}"),
    Fault(TILES, "(row < rows ? row : rows)", "(FAULT || row < rows ? row : rows)", OUTSIDE),
    Fault(TILES, "entry >= batch.entries) return;", "entry >= batch.entries + FAULT) return;", OUTSIDE),
    Fault(SOFTMAX, "lane < rows ? losses", "lane < rows - FAULT ? losses", WRONG_NUMBERS),
    Fault(SOFTMAX, "j == j_of_target ?", "j == j_of_target + FAULT ?", WRONG_NUMBERS),
    Fault(SOFTMAX, "targets[entry] != kBad ?", "targets[entry] != kBad || FAULT ?", WRONG_NUMBERS),
    Fault(SOFTMAX, "g * (1 - ratio * ratio)", "g * (1 - !FAULT * ratio * ratio)", WRONG_NUMBERS),
    Fault(UPDATE, "ratio < 1 ? ratio", "ratio < 1 && !FAULT ? ratio", WRONG_NUMBERS),
    Fault(UPDATE, "options.momentum * m", "!FAULT * options.momentum * m", WRONG_NUMBERS),
    Fault(UPDATE, "weight_decay == 0 && scale", "weight_decay * !FAULT == 0 && scale", WRONG_NUMBERS),
    Fault(UPDATE, "p.values[j] * keep", "p.values[j] * (FAULT ? T(1) : keep)", WRONG_NUMBERS),
    Fault(TILES, "next_ == last_ ? first_", "next_ == last_ && !FAULT ? first_", f"{OUTSIDE}|{WRONG_NUMBERS}"),
    Fault(BLOCK, "cluster_barrier();", "if (!FAULT) cluster_barrier();", f"{RACE}|{UNSEEN}"),
    Fault(BLOCK, "is_only_here || rank_ == 0", "is_only_here || FAULT || rank_ == 0", RACE),
    Fault(BLOCK, "rank == rank_ ? place", "rank == rank_ || FAULT ? place", f"{UNSEEN}|{WRONG_NUMBERS}"),
    Fault(BLOCK, "number < p_.shared_arrays)", "number < p_.shared_arrays + FAULT)", OUTSIDE),
    Fault(BLOCK, "first = number_ * p_", "first = !FAULT * number_ * p_", f"{RACE}|{WRONG_NUMBERS}"),
    *(
        Fault(MLP, f"{before}\n    this->{barrier}", f"{before}\n    if (!FAULT) this->{barrier}", f"{RACE}|{UNSEEN}")
        for barrier in ("model_barrier();",)
        for before in ("add_logits<kGroups>();", "backward_inputs<kGroups>();", "      });\n    }")
    ),
    Fault(MLP, "strip_of(slice + 1) : outputs_", "strip_of(slice + 1) : outputs_ - FAULT", WRONG_NUMBERS),
    Fault(MLP, "first_slice_ * class_strips", "!FAULT * first_slice_ * class_strips", f"{RACE}|{UNSEEN}"),
    Fault(MLP, "strip >= 0 && strip < strips", "(FAULT || strip >= 0) && strip < strips", f"{OUTSIDE}|{RACE}"),
    Fault(MLP, "kMost - 1) * kTile ?", "kMost - 1 + FAULT) * kTile ?", f"{WRONG_NUMBERS}|{OUTSIDE}|{UNSEEN}"),
    Fault(MLP, "if (one >= kTile) continue;", "if (one >= kTile || FAULT) continue;", WRONG_NUMBERS),
    Fault(MLP, "+ j >= l_.vocab_size", "+ j >= l_.vocab_size + FAULT", WRONG_NUMBERS),
    Fault(MLP, "strip == first_input_strip())", "strip == first_input_strip() + FAULT)", WRONG_NUMBERS),
    Fault(MLP, "if (l_.direct) add(", "if (l_.direct && !FAULT) add(", WRONG_NUMBERS),
    Fault(MLP, "kEmbedding) continue;", "kEmbedding && !FAULT) continue;", f"{RACE}|{WRONG_NUMBERS}"),
    Fault(MLP, "== wanted ?", "== wanted + FAULT ?", WRONG_NUMBERS),
    Fault(MLP, "if (part != 0 ||", "if ((part != 0 && !FAULT) ||", RACE),
    Fault(MLP, "* (1 - h.values[j] *", "* (1 - !FAULT * h.values[j] *", WRONG_NUMBERS),
    Fault(BIGRAM, "token % groups != group", "(token % groups != group && !FAULT)", RACE),
    Fault(BIGRAM, "if (is_first) {", "if (is_first && !FAULT) {", WRONG_NUMBERS),
]


def run_everything() -> None:
    """Every way through the kernels."""
    batches, rates = make_batches(2, 40)
    for options in (
        {"direct": True, "softcap": 2.0, "max_grad_norm": 0.1, **OPTIMIZERS["momentum"]},
        OPTIMIZERS["weight_decay"],
        OPTIMIZERS["adamw"],
    ):
        compare(make_run((5, 2, 3, 5), torch.float64, **options), make_run((5, 2, 3, 5), torch.float64, **options))
    compare(make_run((7, 3, 2, 8), torch.float64), make_run((7, 3, 2, 8), torch.float64))
    for clip in (None, 0.05):
        compare(*(make_bigram(9, torch.float64, max_grad_norm=clip) for _ in range(2)))
    options = OPTIMIZERS["adamw"]
    with simulator.tensors_on(simulator.Gpu("8.0", 48)):
        compare(make_run((5, 2, 3, 40), torch.float64, **options), make_run((5, 2, 3, 40), torch.float64, **options))
    compare_population(batches, rates)
    for what in ("token", "target", "example", "context"):
        check_what_is_out_of_range(what)


def compare(eager: Run, fused: Run) -> None:
    """With eager PyTorch: steps on batches, then steps on all examples."""
    batches, rates = make_batches(2, 40)
    losses = fused.fused(batches, rates)
    everything = torch.arange(400).expand(2, 400)
    same(eager.eager(batches, rates), losses)
    full = engine.train_full_steps(fused.parameters, fused.new_state(), *fused.counts(), rates, **fused.options)
    same(eager.eager(everything, rates), full)
    for one, other in zip(eager.parameters, fused.parameters, strict=True):
        same(one, other)


def compare_population(batches: Tensor, rates: Tensor) -> None:
    """Two models that differ in their weights, with each alone."""
    alone, together = ([make_run((5, 2, 3, 5), torch.float64) for _ in range(2)] for _ in range(2))
    for runs in (alone, together):
        for parameter in runs[1].parameters:
            parameter.data *= 0.5
    expected = torch.stack([run.fused(batches, rates) for run in alone])
    parameters = [parameter.detach() for run in together for parameter in run.parameters]
    first = together[0]
    options = torch.tensor([[0.0, 0.9, 0.999, 1e-8, 0.0, 0.0, 0.0]] * 2, dtype=torch.float64)
    examples: tuple[Any, ...] = (first.contexts, first.targets, None, torch.stack([batches, batches]))
    both = torch.stack([rates, rates])
    losses = torch.ops.charlm.train_population(
        parameters, [], *examples, both, 0, options, torch.zeros(2, dtype=torch.int64)
    )
    same(expected, losses)
    for one, other in zip(alone, together, strict=True):
        same(one.parameters[0], other.parameters[0])


def check_what_is_out_of_range(what: str) -> None:
    run = make_run((5, 2, 3, 5), torch.float32)
    run.contexts, run.targets, batches = run.contexts.clone(), run.targets.clone(), torch.tensor([[0, 399]])
    if what == "token":
        run.contexts[399, 0] = 5
    elif what == "target":
        run.targets[399] = 5
    elif what == "example":
        batches[0, 1] = 400
    index = torch.arange(400)
    if what == "context":
        index[399] = 400
    rate = torch.full((1,), 0.1, dtype=torch.float64)
    (loss,) = run.fused(batches, rate, context_index=index).tolist()
    assert loss != loss, f"{loss} instead of NaN"
    contexts, row_ptr, targets, counts = make_run((5, 2, 3, 5), torch.float32).counts()
    row_ptr[3] = row_ptr[-1] + 500
    model = make_run((5, 2, 3, 5), torch.float32)
    engine.train_full_steps(model.parameters, [], contexts, row_ptr, targets, counts, rate, **model.options)


def same(expected: Tensor, found: Tensor) -> None:
    assert torch.allclose(expected, found, rtol=1e-10, atol=1e-10), f"{found} instead of {expected}"


PLANTED = Planted([*missing_barriers((BLOCK, MLP, BIGRAM, UPDATE, TILES)), *MISTAKES], run_everything)
