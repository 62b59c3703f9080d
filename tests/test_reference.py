"""The reference: F.cross_entropy where the options are torch's, formulas written out where they are ours."""

from __future__ import annotations

import inspect
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import (
    ACTIVATIONS,
    LOSS_OPTIONS,
    REDUCTIONS,
    TARGETS,
    cross_entropy_sample,
    embedding_linear_sample,
    linear_cross_entropy_sample,
    linear_log_probs_sample,
    log_probs_sample,
    names_of,
    normal,
)
from torch import Tensor

from charlm import ops
from charlm.ops import reference


@pytest.mark.parametrize(
    "name", ["embedding_linear", "cross_entropy", "linear_cross_entropy", "log_probs", "linear_log_probs"]
)
def test_op_and_reference_have_one_signature(name: str) -> None:
    def parameters(function: object) -> list[tuple[str, Any, Any]]:
        signature = inspect.signature(function)  # type: ignore[arg-type]
        return [(parameter.name, parameter.kind, parameter.default) for parameter in signature.parameters.values()]

    assert parameters(getattr(ops, name)) == parameters(getattr(reference, name))


def losses_by_hand(sample_arguments: dict[str, Any]) -> tuple[list[float], float]:
    """The loss of each row and the denominator of their mean, number by number."""
    arguments = {"softcap": None, "z_loss": 0.0, "label_smoothing": 0.0, "token_weights": None, **sample_arguments}
    logits, target = arguments["input"].tolist(), arguments["target"].tolist()
    vocab_size = len(logits[0])
    weight = [1.0] * vocab_size if arguments["weight"] is None else arguments["weight"].tolist()
    smoothing, cap = arguments["label_smoothing"], arguments["softcap"]
    token_weights = [1.0] * len(logits) if arguments["token_weights"] is None else arguments["token_weights"].tolist()
    losses, denominator = [], 0.0
    for row, wanted, token_weight in zip(logits, target, token_weights, strict=True):
        if wanted == -100:
            losses.append(0.0)
            continue
        z = row if cap is None else [cap * math.tanh(value / cap) for value in row]
        lse = math.log(sum(map(math.exp, z)))
        p = wanted if isinstance(wanted, list) else [float(v == wanted) for v in range(vocab_size)]
        p = [(1.0 - smoothing) * value + smoothing / vocab_size for value in p]
        loss = sum(w * q * (lse - value) for w, q, value in zip(weight, p, z, strict=True))
        losses.append(token_weight * (loss + arguments["z_loss"] * lse**2))
        denominator += token_weight * (1.0 if isinstance(wanted, list) else weight[wanted])
    return losses, denominator


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("options", LOSS_OPTIONS, ids=names_of)
def test_cross_entropy_is_its_formula(options: dict[str, Any], targets: str) -> None:
    sample = cross_entropy_sample(7, 5, targets=targets, **options)
    losses, denominator = losses_by_hand(dict(sample.arguments))
    for reduction, expected in (("none", losses), ("sum", sum(losses)), ("mean", sum(losses) / denominator)):
        actual = reference.cross_entropy(**{**sample.arguments, "reduction": reduction})
        torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("shape", [(5,), (7, 5), (3, 5, 4), (3, 5, 4, 2), (0, 5)])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_both_ways_to_reduce_agree(reduction: str, shape: tuple[int, ...], targets: str) -> None:
    """With a z-loss the rows are reduced here, without one in torch; a tiny coefficient joins the two."""
    sample = cross_entropy_sample(*shape, targets=targets, weighted=True, label_smoothing=0.1, reduction=reduction)
    with_z_loss = sample.with_arguments(z_loss=1e-300)
    torch.testing.assert_close(
        reference.cross_entropy(**with_z_loss.arguments), F.cross_entropy(**sample.arguments), equal_nan=True
    )


def test_softcap_is_a_scaled_tanh() -> None:
    sample = cross_entropy_sample(7, 5)
    capped = 2.0 * torch.tanh(sample.arguments["input"] / 2.0)
    torch.testing.assert_close(
        reference.cross_entropy(**sample.arguments, softcap=2.0), F.cross_entropy(capped, sample.arguments["target"])
    )
    for softcap in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="softcap must be positive"):
            reference.cross_entropy(**sample.arguments, softcap=softcap)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("leading", [(), (4,), (2, 3)])
def test_embedding_linear_is_its_formula(leading: tuple[int, ...], activation: str) -> None:
    sample = embedding_linear_sample(leading, 2, 5, 3, 4, activation=activation)
    ids, embedding, weight, bias = (sample.arguments[name] for name in ("ids", "embedding", "weight", "bias"))
    functions = {
        "tanh": math.tanh,
        "relu": lambda x: max(x, 0.0),
        "gelu": lambda x: 0.5 * x * (1.0 + math.erf(x / math.sqrt(2.0))),
        "silu": lambda x: x / (1.0 + math.exp(-x)),
        "none": lambda x: x,
    }
    result = reference.embedding_linear(**sample.arguments)
    assert result.shape == (*leading, 4)
    for context, hidden in zip(ids.reshape(-1, 2).tolist(), result.reshape(-1, 4), strict=True):
        concatenated = [x for token in context for x in embedding[token].tolist()]
        for h in range(4):
            pre = bias[h].item() + sum(w * x for w, x in zip(weight[h].tolist(), concatenated, strict=True))
            assert hidden[h].item() == pytest.approx(functions[activation](pre), rel=1e-12, abs=1e-15)
    with pytest.raises(ValueError, match="activation must be one of tanh, relu, gelu, silu, none, got 'softmax'"):
        reference.embedding_linear(ids, embedding, weight, activation="softmax")


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("leading", [(), (4,), (2, 3)])
def test_linear_cross_entropy_is_linear_then_cross_entropy(
    leading: tuple[int, ...], reduction: str, targets: str
) -> None:
    sample = linear_cross_entropy_sample(leading, targets=targets, weighted=True, z_loss=0.1, softcap=3.0)
    features, weight, bias = (sample.arguments[name] for name in ("input", "linear_weight", "linear_bias"))
    target = sample.arguments["target"]
    logits = (features.reshape(-1, 5) @ weight.t() + bias).reshape(-1, 27)
    expected = reference.cross_entropy(
        logits,
        target.reshape(-1, 27) if targets == "probabilities" else target.reshape(-1),
        sample.arguments["weight"],
        reduction=reduction,
        z_loss=0.1,
        softcap=3.0,
    )
    actual = reference.linear_cross_entropy(**{**sample.arguments, "reduction": reduction})
    torch.testing.assert_close(actual, expected.reshape(leading) if reduction == "none" else expected)


@pytest.mark.parametrize("options", [{}, {"temperature": 0.5}, {"softcap": 2.0, "temperature": 1.5}], ids=names_of)
def test_log_probs_are_their_formulas(options: dict[str, Any]) -> None:
    sample = log_probs_sample(7, 5, ids_per_row=3, ignored=True, **options)
    found = reference.log_probs(**sample.arguments)
    temperature, cap = options.get("temperature", 1.0), options.get("softcap")
    for n, (row, ids) in enumerate(
        zip(sample.arguments["input"].tolist(), sample.arguments["ids"].tolist(), strict=True)
    ):
        z = [(value if cap is None else cap * math.tanh(value / cap)) / temperature for value in row]
        lse = math.log(sum(map(math.exp, z)))
        counts = any(k != -100 for k in ids)
        assert found.log_probs[n].tolist() == pytest.approx([0.0 if k == -100 else z[k] - lse for k in ids])
        entropy = -sum(math.exp(value - lse) * (value - lse) for value in z)
        assert found.entropy[n].item() == pytest.approx(entropy if counts else 0.0)
        assert found.logsumexp[n].item() == pytest.approx(lse if counts else 0.0)
        assert found.argmax[n] == (row.index(max(row)) if counts else -1)
        assert found.rank[n] == (-1 if ids[0] == -100 else sum(value > row[ids[0]] for value in row))


def test_linear_log_probs_is_linear_then_log_probs() -> None:
    sample = linear_log_probs_sample((2, 3), ids_per_row=2, ignored=True, softcap=3.0)
    features, weight, bias, ids = (sample.arguments[name] for name in ("input", "linear_weight", "linear_bias", "ids"))
    expected = reference.log_probs(features @ weight.t() + bias, ids, softcap=3.0)
    torch.testing.assert_close(tuple(reference.linear_log_probs(**sample.arguments)), tuple(expected))


@pytest.mark.parametrize("softcap", [None, 1.0])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_mlp_cross_entropy_is_the_lecture_written_out(reduction: str, softcap: float | None) -> None:
    embedding, weight1, bias1 = normal(27, 4), normal(9, 12, seed=1), normal(9, seed=2)
    weight2, bias2 = normal(27, 9, seed=3), normal(27, seed=4)
    ids, target = torch.randint(27, (8, 3)), torch.randint(27, (8,))
    hidden = torch.tanh(embedding[ids].view(8, 12) @ weight1.t() + bias1)
    logits = hidden @ weight2.t() + bias2
    logits = logits if softcap is None else torch.tanh(logits)
    actual = reference.mlp_cross_entropy(
        ids, target, embedding, weight1, bias1, weight2, bias2, reduction=reduction, softcap=softcap
    )
    torch.testing.assert_close(actual, F.cross_entropy(logits, target, reduction=reduction))


@pytest.mark.parametrize(
    "sample",
    [
        embedding_linear_sample(4, 2, 5, 2, 3),
        cross_entropy_sample(3, 4, weighted=True, label_smoothing=0.1, softcap=2.0, z_loss=0.1, scale=1.0),
        cross_entropy_sample(3, 4, targets="probabilities", weighted=True, softcap=2.0, z_loss=0.1, scale=1.0),
        linear_cross_entropy_sample(3, 2, 4, targets="probabilities", softcap=2.0, z_loss=0.1),
        linear_log_probs_sample(3, 2, 4, ids_per_row=2, ignored=True, softcap=2.0),
    ],
    ids=lambda sample: sample.op,
)
def test_second_derivatives(sample: Any) -> None:
    leaves = sample.leaves()

    def op(*values: Tensor) -> Tensor:
        return sample.call(getattr(reference, sample.op), dict(zip(leaves, values, strict=True)))

    assert torch.autograd.gradgradcheck(op, tuple(leaves.values()))
