"""Evaluation by the engine: the values of plain PyTorch, and only where the engine knows the model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import small_names
import torch
from torch import Tensor, nn

from charlm import MLP, CountBigram, NeuralBigram, Trainer, data, engine, evaluate
from charlm.models import LanguageModel

V, T = 25, 3  # of small_names
MODELS: dict[str, Callable[[torch.dtype], LanguageModel]] = {
    "mlp": lambda dtype: MLP(V, T, 5, 40, dtype=dtype),
    "direct": lambda dtype: MLP(V, T, 5, 40, direct=True, dtype=dtype),
    "softcap": lambda dtype: MLP(V, T, 5, 40, softcap=1.5, dtype=dtype),
    "bigram": lambda dtype: NeuralBigram(V, dtype=dtype),  # reads the last token of three
}


@pytest.fixture
def engine_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with every call of `engine.evaluate_full`."""
    calls: list[int] = []
    evaluate_full = engine.evaluate_full

    def counted(*args: object, **options: object) -> Tensor:
        calls.append(1)
        return evaluate_full(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(engine, "evaluate_full", counted)
    return calls


def random_model(name: str, dtype: torch.dtype) -> LanguageModel:
    model = MODELS[name](dtype)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.7)
    return model


def names(folder: Path, context_length: int = T) -> data.Split:
    return small_names.load(folder, context_length=context_length).train


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_the_engine_gives_the_loss_of_all_examples(
    name: str, dtype: torch.dtype, tolerance: float, tmp_path: Path, engine_calls: list[int], instruction_set: str
) -> None:
    split = names(tmp_path)
    model = random_model(name, dtype)
    eager = copy.deepcopy(model)
    eager.backend = "eager"
    expected = evaluate(eager, split)
    assert engine_calls == []
    assert evaluate(model, split) == pytest.approx(expected, rel=tolerance, abs=0)
    assert evaluate(model, split.distinct()) == evaluate(model, split)
    assert len(engine_calls) == 3
    assert expected == pytest.approx(eager.double().loss(split.contexts, split.targets).item(), rel=tolerance, abs=0)


@pytest.mark.parametrize(("backend", "uses_the_engine"), [("eager", False), ("ops", True), ("fused", True)])
@pytest.mark.parametrize("own", ["eager", "ops"])
def test_a_trainer_evaluates_as_it_trains_and_leaves_the_model_its_own_backend(
    backend: str, uses_the_engine: bool, own: str, tmp_path: Path, engine_calls: list[int]
) -> None:
    dataset = small_names.load(tmp_path, context_length=T)
    model = MLP(V, T, 5, 40, backend=own, dtype=torch.float64)
    trainer = Trainer(model, dataset, learning_rate=0.1, backend=backend)
    before = trainer.evaluate("dev")
    trainer.run(5)
    after = trainer.evaluate("dev")
    assert len(engine_calls) == (2 if uses_the_engine else 0)
    assert model.backend == own
    # What was trained is the model itself.
    assert evaluate(model, dataset.dev) == pytest.approx(after, rel=1e-12) != pytest.approx(before, rel=1e-6)
    model.weight2 = nn.Parameter(torch.zeros_like(model.weight2))
    assert trainer.evaluate("dev") == pytest.approx(evaluate(model, dataset.dev), rel=1e-12)


def test_a_subclass_another_dtype_and_another_model_are_evaluated_as_they_compute(
    tmp_path: Path, engine_calls: list[int]
) -> None:
    class Doubled(MLP):
        def forward(self, contexts: Tensor) -> Tensor:
            return 2 * super().forward(contexts)

    split = names(tmp_path)
    torch.manual_seed(1)
    plain = MLP(V, T, 5, 40, dtype=torch.float64)
    doubled = Doubled(V, T, 5, 40, dtype=torch.float64)
    doubled.load_state_dict(plain.state_dict())
    with torch.no_grad():
        for weight in (plain.weight2, plain.bias2):
            weight.mul_(2)
    assert evaluate(doubled, split) == pytest.approx(evaluate(plain, split), rel=1e-12)
    assert len(engine_calls) == 1
    assert evaluate(plain.bfloat16(), split) == pytest.approx(evaluate(plain.double(), split), rel=1e-2)
    assert len(engine_calls) == 2
    assert evaluate(CountBigram(V).fit(split), split) < evaluate(plain, split)


def test_weights_of_any_strides(tmp_path: Path) -> None:
    split = names(tmp_path)
    model = random_model("mlp", torch.float64)
    assert isinstance(model, MLP)
    expected = evaluate(model, split)
    model.weight1 = nn.Parameter(model.weight1.detach().T.contiguous().T)
    assert evaluate(model, split) == expected


def test_weights_that_are_nan_make_the_loss_nan(tmp_path: Path) -> None:
    for name in MODELS:
        model = random_model(name, torch.float32)
        with torch.no_grad():
            list(model.parameters())[-1][0] = torch.nan
        assert evaluate(model, names(tmp_path)) != evaluate(model, names(tmp_path))


def test_contexts_of_another_length_are_refused(tmp_path: Path) -> None:
    for length in (2, 4):
        with pytest.raises(ValueError, match=r"contexts must have shape \(\.\.\., T=3\) for this MLP"):
            evaluate(random_model("mlp", torch.float32), names(tmp_path, length))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"contexts": torch.tensor([[0], [5]])}, IndexError, r"contexts\[1, 0\] = 5 is out of range for 5 tokens"),
        ({"contexts": torch.tensor([[0, 1]])}, ValueError, r"contexts must have shape \(N, 1\) for a bigram, got T=2"),
        ({"targets": torch.tensor([1, 2, -1])}, IndexError, r"targets\[2\] = -1 is out of range for 5 classes"),
        ({"row_ptr": torch.tensor([0, 4, 3])}, IndexError, r"row_ptr\[1\] = 4 is out of range for 4 entries"),
        ({"row_ptr": torch.tensor([0, 1, 2])}, ValueError, "row_ptr must ascend from 0 to the number of entries, 3"),
        ({"counts": torch.tensor([0, 0, 0])}, ValueError, "counts must have a positive sum, got 0"),
        ({"counts": torch.tensor([1, 1])}, ValueError, r"counts must have the shape of targets \(3,\), got \(2,\)"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, Tensor], error: type[Exception], message: str) -> None:
    arguments = {
        "contexts": torch.tensor([[0], [3]]),
        "row_ptr": torch.tensor([0, 1, 3]),
        "targets": torch.tensor([1, 2, 0]),
        "counts": torch.tensor([5, 1, 2]),
    }
    with pytest.raises(error, match=message):
        engine.evaluate_full([torch.zeros(5, 5)], **{**arguments, **change})


def test_a_context_may_be_there_twice() -> None:
    weight = torch.randn(4, 4, dtype=torch.float64)
    row_ptr, targets, counts = torch.tensor([0, 1, 2]), torch.tensor([1, 3]), torch.tensor([3, 1])
    loss = engine.evaluate_full([weight], torch.tensor([[2], [2]]), row_ptr, targets, counts)
    expected = -(3 * weight[2].log_softmax(0)[1] + weight[2].log_softmax(0)[3]) / 4
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
