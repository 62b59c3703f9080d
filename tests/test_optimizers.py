"""charlm.optimizers: an update by one kernel is that of `torch.optim`, whatever the parameters look like."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
import small_names
import torch
from torch import Tensor, nn
from trainers import OPTIMIZERS

from charlm import Trainer, optimizers
from charlm.models import LanguageModel
from charlm.optimizers import OptimizerOptions

pytestmark = pytest.mark.cpu

LAYOUTS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], bool]] = {
    # of a parameter; of its gradient; whether the kernel takes them
    "in order": (torch.clone, torch.clone, True),
    "transposed parameter": (lambda p: p.t().contiguous().t(), torch.clone, False),
    "transposed gradient": (torch.clone, lambda g: g.t().contiguous().t(), False),
    "both transposed": (lambda p: p.t().contiguous().t(), lambda g: g.t().contiguous().t(), False),
    "one number as a gradient": (torch.clone, lambda g: g[:1, :1].expand(g.shape), False),
}


def options_of(name: str) -> OptimizerOptions:
    return OptimizerOptions(**{key: value for key, value in OPTIMIZERS[name].items() if key != "learning_rate"})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_an_update_is_that_of_torch_optim(optimizer: str, layout: str, dtype: torch.dtype) -> None:
    arrange, arrange_gradient, by_kernel = LAYOUTS[layout]
    by_kernel = by_kernel and dtype != torch.bfloat16
    torch.manual_seed(3)
    model = nn.ParameterList(
        [nn.Parameter(arrange(torch.randn(shape).to(dtype))) for shape in ((5, 7), (3, 4), (2, 2))]
    )
    expected = copy.deepcopy(model).double()
    options = options_of(optimizer)
    own, plain = (optimizers.create(each, options, 0.05) for each in (model, expected))
    tolerance = 4 * torch.finfo(dtype).eps
    with mock.patch.object(own, "step", wraps=own.step) as by_torch:
        for _ in range(3):
            for parameter, reference in zip([*model][:2], [*expected][:2], strict=True):  # the third has no gradient
                gradient = torch.randn(parameter.shape).to(dtype)
                parameter.grad = arrange_gradient(gradient)
                reference.grad = parameter.grad.double()
            optimizers.step(own, options)
            plain.step()
    assert by_torch.call_count == (0 if by_kernel else 3)
    for parameter, reference in zip(model, expected, strict=True):
        torch.testing.assert_close(parameter.double(), reference, rtol=tolerance, atol=3 * tolerance)
    for name, state in optimizers.named_state(model, own).items():
        reference = optimizers.named_state(expected, plain)[name].double()
        torch.testing.assert_close(state.double(), reference, rtol=3 * tolerance, atol=3 * tolerance)


def test_a_sparse_gradient_is_for_torch_optim() -> None:
    model = nn.Embedding(6, 2, sparse=True)
    before = model.weight.detach().clone()
    optimizer = optimizers.create(model, OptimizerOptions(), 0.5)
    model(torch.tensor([1, 1, 4])).sum().backward()
    optimizers.step(optimizer, OptimizerOptions())
    change = torch.zeros(6, 2)
    change[1], change[4] = -1.0, -0.5
    torch.testing.assert_close(model.weight.detach(), before + change)


class Twins(LanguageModel):
    """Logits that are the sum of two tables, whose gradients are one tensor; a third table takes no part."""

    kind = "twins"

    def __init__(self, vocab_size: int) -> None:
        super().__init__(vocab_size, 1, "ops")
        self.first, self.second, self.unused = (nn.Parameter(torch.zeros(vocab_size, vocab_size)) for _ in range(3))

    def loss(self, contexts: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
        logits = (self.first + self.second)[contexts[..., -1].long()]
        return self._cross_entropy(logits, targets, reduction)


@pytest.mark.parametrize("batch_size", [8, "full"])
@pytest.mark.parametrize("max_grad_norm", [None, 0.01])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_parameters_with_one_gradient_or_none(
    optimizer: str, max_grad_norm: float | None, batch_size: int | str, tmp_path: Path
) -> None:
    dataset = small_names.load(tmp_path, context_length=1)
    results = []
    for backend in ("eager", "ops"):
        model = Twins(len(dataset.vocabulary))
        options = {**OPTIMIZERS[optimizer], "max_grad_norm": max_grad_norm, "batch_size": batch_size}
        Trainer(model, dataset, backend=backend, **options).run(3)
        results.append(model)
    eager, own = results
    assert own.first.abs().max() > 0
    assert torch.equal(own.first, own.second)
    assert torch.equal(own.unused, torch.zeros_like(own.unused))
    torch.testing.assert_close(own.first, eager.first, rtol=1e-4, atol=1e-7)
