"""The modules: the values of their ops, the initial values and state of torch.nn, copies and repr."""

from __future__ import annotations

import copy
import io
import math
import pickle
from typing import Any

import pytest
import torch
from cases import ACTIVATIONS, device, integers, joined, normal, same_bits
from torch import Tensor, nn

from charlm import ops
from charlm.nn import CrossEntropyLoss, EmbeddingLinear, LinearCrossEntropyLoss, LinearLogProbs
from charlm.ops import reference

LOSS_OPTIONS: dict[str, Any] = {
    "ignore_index": 2,
    "reduction": "sum",
    "label_smoothing": 0.1,
    "softcap": 3.0,
    "z_loss": 0.01,
}
LOG_PROBS_OPTIONS: dict[str, Any] = {"temperature": 0.7, "softcap": 3.0, "ignore_index": 2}


class LinearLayerAndLoss(nn.Module):
    """What torch's own module stands for."""

    def __init__(self, in_features: int, num_classes: int, **options: Any) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, num_classes, **options)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return nn.functional.cross_entropy(self.linear(input), target)


# torch 2.11 has none.
TorchsLinearCrossEntropyLoss = getattr(nn, "LinearCrossEntropyLoss", LinearLayerAndLoss)


def class_weights() -> Tensor:
    return torch.tensor([0.5, 1.0, 2.0, 0.25], device=device)


def single(*shape: int) -> Tensor:
    return normal(*shape, dtype=torch.float32)


def modules() -> dict[str, tuple[nn.Module, tuple[Tensor, ...]]]:
    """Every module with its arguments."""
    logits, features, target = single(6, 4), single(6, 5), integers(4, (6,))
    return {
        "EmbeddingLinear": (EmbeddingLinear(11, 3, 2, 7, device=device), (integers(11, (6, 2)),)),
        "CrossEntropyLoss": (CrossEntropyLoss(class_weights(), **LOSS_OPTIONS), (logits.requires_grad_(), target)),
        "LinearCrossEntropyLoss": (
            LinearCrossEntropyLoss(5, 4, bias=True, weight=class_weights(), device=device, **LOSS_OPTIONS),
            (features, target),
        ),
        "LinearLogProbs": (LinearLogProbs(5, 4, bias=True, device=device, **LOG_PROBS_OPTIONS), (features, target)),
    }


def output(module: nn.Module, arguments: tuple[Tensor, ...]) -> Tensor:
    """What the module returns, as one tensor that can be differentiated."""
    found = module(*arguments)
    return joined(found) if isinstance(found, ops.LogProbs) else found


@pytest.fixture(params=["EmbeddingLinear", "CrossEntropyLoss", "LinearCrossEntropyLoss", "LinearLogProbs"])
def module_and_arguments(request: pytest.FixtureRequest) -> tuple[nn.Module, tuple[Tensor, ...]]:
    return modules()[request.param]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bias", [True, False])
def test_embedding_linear_is_its_op(bias: bool, activation: str) -> None:
    module = EmbeddingLinear(11, 3, 2, 7, bias=bias, activation=activation, device=device, dtype=torch.float64)
    ids = integers(11, (4, 6, 2))
    hidden = module(ids)
    expected = reference.embedding_linear(ids, module.embedding, module.weight, module.bias, activation=activation)
    torch.testing.assert_close(hidden, expected)
    assert (module.bias is None) == (not bias)


def test_cross_entropy_loss_is_its_op_and_torchs() -> None:
    logits, target = single(6, 4, 5), integers(4, (6, 5))
    torch.testing.assert_close(CrossEntropyLoss()(logits, target), nn.CrossEntropyLoss()(logits, target))
    options: dict[str, Any] = {"ignore_index": 1, "reduction": "none", "label_smoothing": 0.2}
    torch.testing.assert_close(
        CrossEntropyLoss(class_weights(), **options)(logits, target),
        nn.CrossEntropyLoss(class_weights(), **options)(logits, target),
    )
    torch.testing.assert_close(
        CrossEntropyLoss(class_weights(), **LOSS_OPTIONS)(logits, target),
        reference.cross_entropy(logits, target, class_weights(), **LOSS_OPTIONS),
    )


@pytest.mark.parametrize("bias", [True, False])
def test_linear_cross_entropy_loss_is_its_op_and_torchs(bias: bool) -> None:
    features, target = single(6, 5), integers(4, (6,))
    module = LinearCrossEntropyLoss(5, 4, bias=bias, device=device)
    theirs = TorchsLinearCrossEntropyLoss(5, 4, bias=bias, device=device)
    theirs.load_state_dict(module.state_dict())
    torch.testing.assert_close(module(features, target), theirs(features, target))

    module = LinearCrossEntropyLoss(5, 4, bias=bias, weight=class_weights(), device=device, **LOSS_OPTIONS)
    expected = reference.linear_cross_entropy(
        features, module.linear.weight, target, linear_bias=module.linear.bias, weight=class_weights(), **LOSS_OPTIONS
    )
    torch.testing.assert_close(module(features, target), expected)


def test_losses_pass_the_weights_of_rows_on() -> None:
    logits, target, token_weights = single(6, 4, 5), integers(4, (6, 5)), single(6, 5)
    torch.testing.assert_close(
        CrossEntropyLoss(class_weights(), **LOSS_OPTIONS)(logits, target, token_weights),
        reference.cross_entropy(logits, target, class_weights(), token_weights=token_weights, **LOSS_OPTIONS),
    )
    module = LinearCrossEntropyLoss(5, 4, weight=class_weights(), device=device, **LOSS_OPTIONS)
    arguments = single(6, 3, 5), integers(4, (6, 3)), single(6, 3)
    expected = reference.linear_cross_entropy(
        arguments[0],
        module.linear.weight,
        arguments[1],
        weight=class_weights(),
        token_weights=arguments[2],
        **LOSS_OPTIONS,
    )
    torch.testing.assert_close(module(*arguments), expected)
    torch.testing.assert_close(module(arguments[0], arguments[1], token_weights=arguments[2]), expected)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("output_dtype", [None, torch.float64])
def test_linear_log_probs_is_its_op(output_dtype: torch.dtype | None, bias: bool) -> None:
    features, ids = single(6, 5), integers(4, (6, 3))
    options = {**LOG_PROBS_OPTIONS, "output_dtype": output_dtype}
    for module, given in (
        (LinearLogProbs(5, 4, bias=bias, device=device, **options), options),
        (LinearLogProbs(5, 4, bias=bias, device=device), {}),
    ):
        found = module(features, ids)
        assert type(found) is ops.LogProbs
        weight, linear_bias = module.linear.weight, module.linear.bias
        expected = reference.linear_log_probs(features, weight, ids, linear_bias=linear_bias, **given)
        torch.testing.assert_close(tuple(found), tuple(expected), rtol=1e-5, atol=1e-5)  # computed in float32


def test_initial_values_are_those_of_torch() -> None:
    module = EmbeddingLinear(211, 30, 3, 200)
    assert module.embedding.mean().item() == pytest.approx(0.0, abs=0.05)
    assert module.embedding.std().item() == pytest.approx(1.0, abs=0.05)
    linear = nn.Linear(90, 200)
    assert linear.bias is not None
    assert module.bias is not None
    for parameter, torchs in ((module.weight, linear.weight), (module.bias, linear.bias)):
        assert parameter.shape == torchs.shape
        assert parameter.abs().max().item() == pytest.approx(90**-0.5, rel=0.05)
        assert parameter.abs().max().item() <= 90**-0.5
        assert parameter.std().item() == pytest.approx((90**-0.5) / 3**0.5, rel=0.15)

    torch.manual_seed(3)
    theirs = TorchsLinearCrossEntropyLoss(5, 4, bias=True).state_dict()
    torch.manual_seed(3)
    ours = LinearCrossEntropyLoss(5, 4, bias=True).state_dict()
    assert ours.keys() == theirs.keys()
    assert all(same_bits(ours[name], theirs[name]) for name in ours)
    torch.manual_seed(3)
    ours = LinearLogProbs(5, 4, bias=True).state_dict()
    assert all(same_bits(ours[name], theirs[name]) for name in theirs)


def test_state_names() -> None:
    assert list(EmbeddingLinear(4, 2, 3, 5).state_dict()) == ["embedding", "weight", "bias"]
    assert list(EmbeddingLinear(4, 2, 3, 5, bias=False).state_dict()) == ["embedding", "weight"]
    assert list(CrossEntropyLoss(class_weights()).state_dict()) == ["weight"]
    assert not CrossEntropyLoss().state_dict()
    assert set(LinearCrossEntropyLoss(5, 4, bias=True, weight=class_weights()).state_dict()) == {
        "weight",
        "linear.weight",
        "linear.bias",
    }
    assert list(LinearLogProbs(5, 4, bias=True).state_dict()) == ["linear.weight", "linear.bias"]


def test_dtype_and_device_reach_the_parameters() -> None:
    for module in (
        EmbeddingLinear(4, 2, 3, 5, device="meta", dtype=torch.bfloat16),
        LinearCrossEntropyLoss(4, 2, bias=True, device="meta", dtype=torch.bfloat16),
        LinearLogProbs(4, 2, bias=True, device="meta", dtype=torch.bfloat16),
    ):
        assert {(p.device.type, p.dtype) for p in module.parameters()} == {("meta", torch.bfloat16)}
    moved = LinearCrossEntropyLoss(5, 4, weight=class_weights(), device=device).double()
    assert moved.weight is not None
    assert moved.weight.dtype == moved.linear.weight.dtype == torch.float64


def test_gradients_reach_the_parameters(module_and_arguments: tuple[nn.Module, tuple[Tensor, ...]]) -> None:
    module, arguments = module_and_arguments
    output(module, arguments).sum().backward()
    leaves = [*module.parameters(), *(a for a in arguments if a.requires_grad)]
    assert leaves
    for leaf in leaves:
        assert leaf.grad is not None
        assert leaf.grad.abs().sum() > 0.0


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save", "state_dict"])
def test_copies_compute_the_same(how: str, module_and_arguments: tuple[nn.Module, tuple[Tensor, ...]]) -> None:
    module, arguments = module_and_arguments
    if how == "deepcopy":
        twin = copy.deepcopy(module)
    elif how == "pickle":
        twin = pickle.loads(pickle.dumps(module))
    elif how == "torch.save":
        buffer = io.BytesIO()
        torch.save(module, buffer)
        buffer.seek(0)
        twin = torch.load(buffer, weights_only=False)
    else:
        twin = modules()[type(module).__name__][0]
        twin.load_state_dict(module.state_dict())
    assert repr(twin) == repr(module)
    assert same_bits(output(twin, arguments).detach(), output(module, arguments).detach())
    assert all(ours is not theirs for ours, theirs in zip(module.parameters(), twin.parameters(), strict=True))


def test_output_layer_can_share_the_embedding() -> None:
    first, loss = EmbeddingLinear(4, 7, 2, 7, device=device), LinearCrossEntropyLoss(7, 4, device=device)
    loss.linear.weight = first.embedding
    ids, target = integers(4, (6, 2)), integers(4, (6,), seed=1)
    loss(first(ids), target).backward()
    gradient = first.embedding.grad
    assert gradient is not None

    table = first.embedding.detach().requires_grad_()
    hidden = reference.embedding_linear(ids, table, first.weight.detach(), first.bias)
    (expected,) = torch.autograd.grad(reference.linear_cross_entropy(hidden, table, target), table)
    torch.testing.assert_close(gradient, expected)


def test_repr() -> None:
    assert repr(EmbeddingLinear(27, 10, 3, 200, activation="gelu", bias=False)) == (
        "EmbeddingLinear(27, 10, context_length=3, out_features=200, bias=False, activation='gelu')"
    )
    assert repr(CrossEntropyLoss()) == (
        "CrossEntropyLoss(reduction='mean', ignore_index=-100, label_smoothing=0.0, softcap=None, z_loss=0.0, "
        "output_dtype=None)"
    )
    assert repr(LinearCrossEntropyLoss(5, 4, weight=class_weights(), softcap=30.0)).startswith(
        "LinearCrossEntropyLoss(\n  reduction='mean', weight=(4,), ignore_index=None, label_smoothing=0.0, "
        "softcap=30.0, z_loss=0.0, output_dtype=None\n  (linear): Linear(in_features=5, out_features=4, bias=False)"
    )
    assert repr(LinearLogProbs(5, 4, temperature=0.5)).startswith(
        "LinearLogProbs(\n  temperature=0.5, softcap=None, ignore_index=-100, output_dtype=None\n"
        "  (linear): Linear(in_features=5, out_features=4, bias=False)"
    )


def test_deprecated_positions_of_torch_are_refused() -> None:
    with pytest.raises(TypeError, match="positional"):
        CrossEntropyLoss(class_weights(), None, -1)  # type: ignore[call-arg,arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reduction": "foo"}, "reduction must be 'none', 'mean' or 'sum', got 'foo'"),
        ({"reduction": None}, "reduction must be"),
        ({"label_smoothing": 2.0}, "label_smoothing must be between 0 and 1, got 2.0"),
        ({"label_smoothing": True}, "label_smoothing must be a number between 0 and 1, got True"),
        ({"softcap": -1}, "softcap must be positive and finite, or None, got -1.0"),
        ({"softcap": 0}, "softcap must be positive"),
        ({"softcap": "30"}, "softcap must be a positive, finite number or None, got '30'"),
        ({"z_loss": math.nan}, "z_loss must be non-negative and finite, got nan"),
        ({"z_loss": -1e-3}, "z_loss must be"),
        ({"ignore_index": False}, "ignore_index must be an integer, got False"),
        ({"ignore_index": 1.5}, "ignore_index must be an integer, got 1.5"),
        ({"output_dtype": torch.int64}, "output_dtype must be"),
        ({"weight": [0.5, 1.0]}, "weight must be a tensor or None, got list"),
        ({"weight": torch.ones(4, 1)}, r"weight must have shape \(C.*,\), got \(4, 1\)"),
        ({"weight": torch.ones(4, dtype=torch.int64)}, "weight must have a floating-point dtype, got torch.int64"),
    ],
)
def test_what_a_loss_cannot_be_called_with_is_refused_at_construction(options: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        CrossEntropyLoss(**options)
    with pytest.raises((ValueError, TypeError), match=message):
        LinearCrossEntropyLoss(5, 4, **options)


@pytest.mark.parametrize("value", [-1, 2.5, "3", True, None])
def test_sizes_that_are_none_are_refused_at_construction(value: Any) -> None:
    for name in ("num_embeddings", "embedding_dim", "context_length", "out_features"):
        sizes = {"num_embeddings": 4, "embedding_dim": 2, "context_length": 3, "out_features": 5, name: value}
        with pytest.raises(ValueError, match=f"{name} must be an integer that is not negative, got {value!r}"):
            EmbeddingLinear(**sizes)
    for name in ("in_features", "num_classes"):
        with pytest.raises(ValueError, match=f"{name} must be an integer that is not negative"):
            LinearCrossEntropyLoss(**{"in_features": 5, "num_classes": 4, name: value})
        with pytest.raises(ValueError, match=f"{name} must be an integer that is not negative"):
            LinearLogProbs(**{"in_features": 5, "num_classes": 4, name: value})
    with pytest.raises(ValueError, match=r"out_features\[1\] must be an integer that is not negative"):
        LinearCrossEntropyLoss(5, 4, out_features=(2, value))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature must be positive and finite, got 0.0"),
        ({"temperature": "1"}, "temperature must be a positive, finite number, got '1'"),
        ({"softcap": -1.0}, "softcap must be positive and finite, or None, got -1.0"),
        ({"ignore_index": 1.5}, "ignore_index must be an integer, got 1.5"),
        ({"output_dtype": torch.int64}, "output_dtype must be torch.float32"),
    ],
)
def test_what_log_probs_cannot_be_called_with_is_refused_at_construction(options: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        LinearLogProbs(5, 4, **options)


def test_more_that_is_refused_at_construction() -> None:
    with pytest.raises(ValueError, match=r"activation must be one of 'tanh', .*, got 'softmax'"):
        EmbeddingLinear(4, 2, 3, 5, activation="softmax")
    with pytest.raises(ValueError, match=r"weight must have shape \(C=4,\), got \(3,\)"):
        LinearCrossEntropyLoss(5, 4, weight=torch.ones(3))
    with pytest.raises(RuntimeError, match="reduction must be"):
        CrossEntropyLoss(reduction="elementwise_mean")


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("out_features", [(3,), (2, 3)])
def test_a_layer_for_each_position(out_features: tuple[int, ...], bias: bool) -> None:
    module = LinearCrossEntropyLoss(5, 4, out_features=out_features, bias=bias, dtype=torch.float64, device=device)
    input = normal(6, 5)
    logits = module.linear(input).unflatten(1, (4, *out_features))
    for target in (integers(4, (6, *out_features)), normal(6, 4, *out_features, seed=1).softmax(1)):
        torch.testing.assert_close(module(input, target), nn.functional.cross_entropy(logits, target))
        token_weights = normal(6, *out_features, seed=2)
        losses = nn.functional.cross_entropy(logits, target, reduction="none") * token_weights
        torch.testing.assert_close(module(input, target, token_weights), losses.sum() / token_weights.sum())
    if hasattr(nn, "LinearCrossEntropyLoss"):
        theirs = nn.LinearCrossEntropyLoss(
            5, 4, out_features=out_features, bias=bias, dtype=torch.float64, device=device
        )
        theirs.load_state_dict(module.state_dict())
        torch.testing.assert_close(module(input, target), theirs(input, target))
