"""The models compute their formulas, in both backends, and refuse what they cannot compute."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import small_names
import torch
import torch.nn.functional as F
from cases import device, generator, integers
from torch import Tensor

from charlm import MLP, CountBigram, NeuralBigram, data, evaluate, models

V, T, D, H = 11, 3, 4, 7
BACKENDS = ("eager", "ops")
INTEGER_DTYPES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16)


def make_mlp(**options: Any) -> MLP:
    fixed = {"generator": generator(5), "device": device, "dtype": torch.float64}
    options = {**fixed, "backend": "eager", **options}
    model = MLP(V, T, D, H, **options)
    with torch.no_grad():
        # The output layer starts near zero, where a softcap would do nothing that a test could see.
        model.weight2.mul_(100)
        model.bias1.uniform_(-1, 1)
        model.bias2.uniform_(-1, 1)
    return model


def contexts_and_targets(n: int = 9) -> tuple[Tensor, Tensor]:
    return integers(V, (n, T), seed=6), integers(V, (n,), seed=7)


def mlp_formula(model: MLP, contexts: Tensor) -> Tensor:
    """y = b + W x + U tanh(d + H x), one context at a time."""
    rows = []
    for context in contexts:
        x = torch.cat([model.embedding[token] for token in context])
        y = model.bias2 + model.weight2 @ torch.tanh(model.bias1 + model.weight1 @ x)
        if model.direct_weight is not None:
            y = y + model.direct_weight @ x
        rows.append(y if model.softcap is None else model.softcap * torch.tanh(y / model.softcap))
    return torch.stack(rows)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("softcap", [None, 1.0, 30.0])
def test_mlp_is_the_formula_of_bengio(backend: str, direct: bool, softcap: float | None) -> None:
    model = make_mlp(direct=direct, softcap=softcap, backend=backend)
    contexts, targets = contexts_and_targets()
    expected = mlp_formula(model, contexts)
    torch.testing.assert_close(model(contexts), expected, rtol=1e-12, atol=1e-12)

    log_probabilities = expected - expected.logsumexp(dim=1, keepdim=True)
    losses = -log_probabilities[range(len(targets)), targets]
    torch.testing.assert_close(model.loss(contexts, targets, "none"), losses, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(model.loss(contexts, targets, "sum"), losses.sum(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(model.loss(contexts, targets), losses.mean(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_mlp_gradients_are_those_of_the_formula(backend: str, direct: bool, softcap: float | None) -> None:
    model = make_mlp(direct=direct, softcap=softcap, backend=backend)
    contexts, targets = contexts_and_targets()
    parameters = dict(model.named_parameters())
    expected = torch.autograd.grad(F.cross_entropy(mlp_formula(model, contexts), targets), list(parameters.values()))
    model.loss(contexts, targets).backward()
    for (name, parameter), gradient in zip(parameters.items(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-11, atol=1e-13, msg=name)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "model", [make_mlp(), make_mlp(direct=True), NeuralBigram(V, device=device, dtype=torch.float64)]
)
def test_class_probabilities_weigh_the_losses_of_the_classes(model: models.LanguageModel, backend: str) -> None:
    model = copy.deepcopy(model)
    model.backend = backend
    contexts, _ = contexts_and_targets()
    counts = integers(5, (len(contexts), V)).double()
    expected = -(counts * model(contexts).log_softmax(dim=1)).sum()
    torch.testing.assert_close(model.loss(contexts, counts, "sum"), expected, rtol=1e-12, atol=1e-12)


def test_mlp_parameters_have_the_shapes_of_the_lecture() -> None:
    model = MLP(27, 3, 10, 200, direct=True)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert shapes == {
        "embedding": (27, 10),
        "weight1": (200, 30),
        "bias1": (200,),
        "weight2": (27, 200),
        "bias2": (27,),
        "direct_weight": (27, 30),
    }
    assert sum(parameter.numel() for parameter in MLP(27, 3, 10, 200).parameters()) == 11_897


def test_mlp_starts_with_the_scales_of_the_lecture_near_the_uniform_distribution() -> None:
    model = MLP(100, 5, 40, 300, direct=True, generator=generator(1), device=device)
    expected = {"embedding": 1.0, "weight1": 5 / 3 / math.sqrt(200), "weight2": 0.01, "direct_weight": 0.01}
    for name, std in expected.items():
        weights = getattr(model, name)
        assert weights.std().item() == pytest.approx(std, rel=0.03)
        assert weights.mean().item() == pytest.approx(0.0, abs=4 * std / math.sqrt(weights.numel()))
    assert not model.bias1.any()
    assert not model.bias2.any()

    contexts = integers(100, (500, 5))
    assert model.loss(contexts, integers(100, (500,), seed=1)).item() == pytest.approx(math.log(100), abs=0.05)


def test_one_seed_means_the_same_weights_in_every_dtype_and_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    wide = MLP(V, T, D, H, generator=generator(3), dtype=torch.float64)
    narrow = MLP(V, T, D, H, generator=generator(3), dtype=torch.float32)
    other = MLP(V, T, D, H, generator=generator(4), dtype=torch.float32)
    assert torch.equal(torch.get_rng_state(), before)
    for name, parameter in wide.named_parameters():
        assert torch.equal(parameter.float(), narrow.get_parameter(name))
    assert not torch.equal(narrow.weight1, other.weight1)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", INTEGER_DTYPES)
@pytest.mark.parametrize("model", [make_mlp(), NeuralBigram(V, device=device)])
def test_contexts_and_targets_may_have_any_integer_dtype(
    model: models.LanguageModel, dtype: torch.dtype, backend: str
) -> None:
    model = copy.deepcopy(model)
    model.backend = backend
    contexts, targets = contexts_and_targets()
    assert torch.equal(model(contexts.to(dtype)), model(contexts))
    assert torch.equal(model.loss(contexts.to(dtype), targets.to(dtype)), model.loss(contexts, targets))


@pytest.mark.parametrize("backend", BACKENDS)
def test_contexts_may_be_strided_views_with_any_leading_dimensions(backend: str) -> None:
    model = make_mlp(backend=backend)
    tokens = integers(V, (14,))
    windows = tokens.unfold(0, T, 1)
    flat = model(windows.clone())
    assert torch.equal(model(windows), flat)
    assert torch.equal(model(windows.unflatten(0, (3, 4))), flat.unflatten(0, (3, 4)))
    torch.testing.assert_close(model(windows[5]), flat[5], rtol=1e-12, atol=1e-12)
    targets = integers(V, (3, 4), seed=1)
    losses = model.loss(windows.unflatten(0, (3, 4)), targets, "none")
    assert torch.equal(losses, model.loss(windows, targets.flatten(), "none").unflatten(0, (3, 4)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_neural_bigram_looks_the_last_token_up(backend: str) -> None:
    model = NeuralBigram(V, backend=backend, device=device, dtype=torch.float64)
    assert not model.weight.any()
    with torch.no_grad():
        model.weight.normal_()
    contexts, targets = contexts_and_targets()
    assert torch.equal(model(contexts), model.weight[contexts[:, -1]])
    assert torch.equal(model(contexts[:, -1:]), model(contexts))
    expected = F.cross_entropy(model.weight[contexts[:, -1]], targets)
    torch.testing.assert_close(model.loss(contexts, targets), expected, rtol=1e-13, atol=0.0)


def test_count_bigram_reproduces_the_figures_of_the_lecture(makemore_names: Path) -> None:
    dataset = data.load(makemore_names, context_length=1)
    counted = CountBigram(27).fit(dataset.all)
    assert evaluate(counted, dataset.all) == pytest.approx(2.4540145, abs=1e-7)
    assert evaluate(CountBigram(27, smoothing=1).fit(dataset.all), dataset.all) == pytest.approx(2.4545768, abs=1e-7)
    assert int(counted.counts.sum()) == 228_146

    longer = data.load(makemore_names, context_length=3)
    assert torch.equal(CountBigram(27).fit(longer.all).counts, counted.counts)
    assert evaluate(counted, longer.all) == pytest.approx(2.4540145, abs=1e-7)


def test_count_bigram_counts_every_pair(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_text("ab\nabb\nba\n")
    model = CountBigram(3).fit(data.load(path, context_length=2).all)
    # Rows and columns are ".", "a", "b"; the lines .ab. .abb. .ba.
    assert model.counts.tolist() == [[0, 2, 1], [1, 0, 2], [2, 1, 1]]
    probabilities = model(torch.tensor([[0], [1], [2]])).exp()
    expected = torch.tensor([[0, 2, 1], [1, 0, 2], [2, 1, 1]], dtype=torch.float64)
    torch.testing.assert_close(probabilities, expected / expected.sum(dim=1, keepdim=True), rtol=1e-15, atol=0.0)

    model.smoothing = 0.5
    smoothed = (expected + 0.5) / (expected.sum(dim=1, keepdim=True) + 1.5)
    torch.testing.assert_close(model(torch.tensor([[0], [1], [2]])).exp(), smoothed, rtol=1e-15, atol=0.0)


def test_an_unseen_pair_has_an_infinite_loss_and_an_unseen_token_a_uniform_row() -> None:
    model = CountBigram(3)
    model.counts.copy_(torch.tensor([[0, 4, 0], [0, 0, 0], [1, 1, 2]]))
    contexts = torch.tensor([[0], [0], [1], [2]])
    losses = model.loss(contexts, torch.tensor([1, 2, 0, 2]), "none")
    assert losses.tolist() == pytest.approx([0.0, math.inf, math.log(3), math.log(2)], abs=1e-15)
    assert model(contexts)[0].tolist() == [-math.inf, 0.0, -math.inf]


def test_counting_again_replaces_the_counts(tmp_path: Path) -> None:
    dataset = small_names.load(tmp_path)
    model = CountBigram(len(dataset.vocabulary)).fit(dataset.train)
    assert torch.equal(CountBigram(len(dataset.vocabulary)).fit(dataset.dev).counts, model.fit(dataset.dev).counts)
    assert int(model.counts.sum()) == len(dataset.dev)


@pytest.mark.parametrize(
    "model", [CountBigram(V, 0.5), NeuralBigram(V), MLP(V, T, D, H), MLP(V, T, D, H, direct=True, softcap=30.0)]
)
def test_from_config_builds_the_same_model(model: models.LanguageModel) -> None:
    model = copy.deepcopy(model).to(device)
    rebuilt = models.from_config(model.config(), backend="eager").to(device)
    assert type(rebuilt) is type(model)
    assert rebuilt.config() == model.config()
    assert rebuilt.backend == "eager"
    rebuilt.load_state_dict(model.state_dict())
    contexts, _ = contexts_and_targets()
    torch.testing.assert_close(rebuilt(contexts), model(contexts))


def test_evaluate_is_the_mean_loss_of_all_examples(tmp_path: Path) -> None:
    dataset = small_names.load(tmp_path)
    model = MLP(len(dataset.vocabulary), 3, D, H, backend="eager", device=device, dtype=torch.float64)
    with torch.no_grad():
        model.weight2.mul_(100)
    split = dataset.train
    expected = model.loss(split.contexts.to(device), split.targets.to(device)).item()
    assert evaluate(model, split) == pytest.approx(expected, rel=1e-12)
    assert evaluate(model, split.distinct()) == pytest.approx(expected, rel=1e-12)


@pytest.mark.cpu
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("model", [make_mlp(), make_mlp(direct=True), NeuralBigram(V), CountBigram(V)])
def test_a_token_out_of_range_is_named(model: models.LanguageModel, backend: str) -> None:
    model = copy.deepcopy(model)
    model.backend = backend
    contexts, targets = contexts_and_targets()
    for wrong in (V, -1):
        bad_contexts = contexts.clone()
        bad_contexts[4, 2] = wrong
        with pytest.raises(IndexError, match=rf"\b4\b.*{wrong} is out of range"):
            model(bad_contexts)
        bad_targets = targets.clone()
        bad_targets[3] = wrong
        with pytest.raises(IndexError, match=rf"\[3\] = {wrong} is out of range"):
            model.loss(contexts, bad_targets)


@pytest.mark.parametrize(
    ("contexts", "targets", "error", "message"),
    [
        (torch.zeros(5, 2, dtype=torch.int64), torch.zeros(5, dtype=torch.int64), ValueError, r"T=3\).*got \(5, 2\)"),
        (torch.tensor(1), torch.tensor(1), ValueError, r"T=3\).*got \(\)"),
        (torch.zeros(5, 3), torch.zeros(5, dtype=torch.int64), TypeError, "contexts must have an integer dtype"),
        (torch.ones(5, 3, dtype=torch.bool), torch.zeros(5, dtype=torch.int64), TypeError, "torch.bool"),
        (torch.zeros(5, 3, dtype=torch.int64), torch.zeros(4, dtype=torch.int64), ValueError, r"\(5,\).*got \(4,\)"),
        (torch.zeros(5, 3, dtype=torch.int64), torch.zeros(5, 4), ValueError, r"\(5, 11\).*got \(5, 4\)"),
    ],
)
def test_wrong_shapes_and_dtypes_are_named(
    contexts: Tensor, targets: Tensor, error: type[Exception], message: str
) -> None:
    for model in (make_mlp(), make_mlp(direct=True)):
        with pytest.raises(error, match=message):
            model.loss(contexts.to(device), targets.to(device))


def test_bigrams_take_contexts_of_any_length_but_zero() -> None:
    with pytest.raises(ValueError, match=r"T=1 or more\).*got \(5, 0\)"):
        NeuralBigram(V)(torch.zeros(5, 0, dtype=torch.int64))


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((0, T, D, H), {}, "vocab_size must be a positive integer, got 0"),
        ((V, 0, D, H), {}, "context_length must be a positive integer, got 0"),
        ((V, T, -4, H), {}, "embedding_dim must be a positive integer, got -4"),
        ((V, T, D, 2.5), {}, "hidden_dim must be a positive integer, got 2.5"),
        ((V, T, D, H), {"softcap": 0.0}, "softcap must be a positive number or None, got 0.0"),
        ((V, T, D, H), {"softcap": math.nan}, "softcap must be a positive number or None, got nan"),
        ((V, T, D, H), {"backend": "fused"}, "backend must be one of eager, ops, got 'fused'"),
    ],
)
def test_bad_arguments_are_named(arguments: tuple[Any, ...], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MLP(*arguments, **options)


@pytest.mark.parametrize("smoothing", [-1.0, math.inf, math.nan])
def test_bad_smoothing_is_named(smoothing: float) -> None:
    with pytest.raises(ValueError, match="smoothing must be a finite number >= 0"):
        CountBigram(V, smoothing)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"kind": "transformer"}, "kind must be one of count-bigram, bigram, mlp, got 'transformer'"),
        ({"kind": "mlp", "vocab_size": 27}, "does not fit 'mlp'.*missing"),
        ({"kind": "bigram", "vocab_size": 27, "depth": 3}, "does not fit 'bigram'.*'depth'"),
        ({"kind": "bigram", "vocab_size": -1}, "vocab_size must be a positive integer, got -1"),
    ],
)
def test_a_bad_configuration_is_explained(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        models.from_config(config)
