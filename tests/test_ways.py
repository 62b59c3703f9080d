"""Who makes a step of the backend "fused" on a GPU: the engine in one launch, or the ops in a graph, if it is faster.

The GPU is made up: what it is asked are its multiprocessors, whether it has clusters, and whether a model fits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import small_names
import torch
from cuda_ways import capture_step
from torch import Tensor
from trainers import OPTIMIZERS, assert_same_state, make_mlp, make_trainer

from charlm import _C, MLP, NeuralBigram, Population, Trainer, data, engine
from charlm.backends import default_backend, fused, graphed, ways
from charlm.backends.fused import FusedBackend
from charlm.backends.ways import multiply_adds, way_on_gpu
from charlm.distributed import ALONE
from charlm.models import LanguageModel

Asked = list[tuple[Any, ...]]


@pytest.fixture
def dataset(tmp_path: Path) -> data.Dataset:
    return small_names.load(tmp_path)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """All models seem to be on cuda:1, an H100 whose engine takes those of up to 300 hidden units."""
    asked: Asked = []

    def trains_in_one_launch(*arguments: Any) -> bool:
        asked.append(arguments)
        return bool(arguments[4] <= 300)

    monkeypatch.setattr(_C, "trains_in_one_launch", trains_in_one_launch, raising=False)
    monkeypatch.setattr(_C, "why_no_kernels", lambda index: None)
    use_gpu(monkeypatch, 9, 132)
    monkeypatch.setattr(LanguageModel, "device", torch.device("cuda", 1))
    return asked


def use_gpu(monkeypatch: pytest.MonkeyPatch, major: int, multiprocessors: int) -> None:
    properties = SimpleNamespace(major=major, multi_processor_count=multiprocessors)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)


def lecture(dtype: torch.dtype = torch.float32, *, hidden_dim: int = 200, direct: bool = False) -> MLP:
    return MLP(27, 3, 10, hidden_dim, direct=direct, dtype=dtype)


def test_small_steps_are_the_engines_and_large_ones_the_graphs(gpu: Asked) -> None:
    assert way_on_gpu(lecture(), 32) == "engine"
    assert way_on_gpu(lecture(), 4096) == "graph"
    assert gpu == [(1, 27, 3, 10, 200, False, False)] * 2
    assert way_on_gpu(lecture(torch.float64, direct=True), 32) == "engine"
    assert gpu[-1] == (1, 27, 3, 10, 200, True, True)
    assert way_on_gpu(NeuralBigram(27), 32) == "engine"
    assert gpu[-1] == (1, 27, 1, 0, 0, False, False)


def test_a_model_that_does_not_fit_is_the_graphs(gpu: Asked) -> None:
    assert way_on_gpu(lecture(hidden_dim=300), 1) == "engine"
    assert way_on_gpu(lecture(hidden_dim=301), 1) == "graph"


def test_half_precision_is_left_to_the_engine_to_refuse(gpu: Asked) -> None:
    assert way_on_gpu(lecture(torch.bfloat16, hidden_dim=301), 4096) == "engine"
    assert gpu == []


# Where a step takes as long in a graph: 50 microseconds and its part of all multiprocessors, at 130.56 G multiply-adds
# a second of each.
def changes_at(rate: float, multiprocessors: int, each: int, speed: float = 1.0) -> int:
    return 1 + int(50e-6 * rate / (3 * each) / (1 / speed - 1 / multiprocessors))


@pytest.mark.parametrize(
    ("model", "major", "multiprocessors", "expected"),
    [
        # 30 x 200 + 200 x 27 multiply-adds a row and product.
        (lambda: lecture(), 9, 132, changes_at(130.56e9, 132, 11_400, 3.0)),
        (lambda: lecture(), 8, 108, changes_at(130.56e9, 108, 11_400)),
        (lambda: lecture(torch.float64), 10, 148, changes_at(65.28e9, 148, 11_400, 3.0)),
        (lambda: lecture(direct=True), 8, 108, changes_at(130.56e9, 108, 12_210)),
        (lambda: NeuralBigram(2000), 9, 132, changes_at(130.56e9, 132, 2000)),
    ],
    ids=["clusters", "blocks", "float64", "direct", "bigram"],
)
def test_there_is_no_cliff_where_the_way_changes(
    gpu: Asked,
    monkeypatch: pytest.MonkeyPatch,
    model: Callable[[], LanguageModel],
    major: int,
    multiprocessors: int,
    expected: int,
) -> None:
    use_gpu(monkeypatch, major, multiprocessors)
    made = model()
    assert way_on_gpu(made, expected - 1) == "engine"
    assert all(way_on_gpu(made, rows) == "graph" for rows in (expected, 2 * expected, 1 << 40))


def test_multiply_adds_of_a_step() -> None:
    assert multiply_adds(lecture(), 32) == 1_094_400
    assert multiply_adds(NeuralBigram(27), 10) == 3 * 10 * 27


def test_the_default_on_a_gpu_is_fused(dataset: data.Dataset, gpu: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_backend(make_mlp(dataset), ALONE) == "fused"
    assert default_backend(make_mlp(dataset).to(torch.bfloat16), ALONE) == "ops"
    monkeypatch.setattr(_C, "why_no_kernels", lambda index: "it is too old")
    assert default_backend(make_mlp(dataset), ALONE) == "eager"


def backend_of(dataset: data.Dataset, **options: Any) -> FusedBackend:
    backend = make_trainer(dataset, backend="fused", **options)._backend
    assert isinstance(backend, FusedBackend)
    return backend


def test_the_whole_split_counts_as_its_distinct_contexts(
    dataset: data.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = backend_of(dataset)
    assert [backend.way(size) for size in (8, 1 << 40, None)] == ["engine"] * 3  # on the CPU
    asked: list[int] = []

    def way(model: LanguageModel, rows: int) -> ways.Way:
        asked.append(rows)
        return "graph" if rows > 100 else "engine"

    monkeypatch.setattr(fused, "way_on_gpu", way)
    monkeypatch.setattr(LanguageModel, "device", torch.device("cuda", 1))
    assert [backend.way(size) for size in (8, None, 8, 101, None)] == ["engine", "graph", "engine", "graph", "graph"]
    assert asked == [8, len(dataset.train.distinct()), 101]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("batch_size", [8, "full"])
def test_both_ways_train_the_same(
    dataset: data.Dataset, optimizer: str, batch_size: int | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the engine has begun the graph goes on with, and the other way round, as where the batch grows."""
    captured = []

    def capture(step: Callable[[], None], where: torch.device) -> Callable[[], None]:
        captured.append(where)
        return capture_step(step, where)

    monkeypatch.setattr(graphed, "capture", capture)
    options = {"backend": "fused", "batch_size": batch_size, **OPTIMIZERS[optimizer]}
    mixed, engine, graph = (make_trainer(dataset, **options) for _ in range(3))
    expected = engine.run(12)
    losses = []
    for way in ("engine", "graph", "engine", "graph"):
        monkeypatch.setattr(FusedBackend, "way", lambda self, size, way=way: way)
        losses.append(mixed.run(3))
        assert len(captured) == (way == "graph" or len(losses) > 1)
    torch.testing.assert_close(torch.cat(losses), expected, rtol=0.0, atol=1e-10)
    torch.testing.assert_close(graph.run(12), expected, rtol=0.0, atol=1e-10)
    state = graph.state_dict()
    mixed.load_state_dict(state)
    assert_same_state(mixed, graph)
    assert torch.equal(mixed.run(4), graph.run(4))


@pytest.mark.parametrize("batch_size", [8, "full"])
def test_a_population_of_both_ways(
    dataset: data.Dataset, batch_size: int | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of graphs come after one another, those of the engine in one call; each has the bits that it has alone."""
    monkeypatch.setattr(graphed, "capture", capture_step)
    # The models with a softcap have graphs.
    monkeypatch.setattr(FusedBackend, "way", lambda self, size: "graph" if self._softcap else "engine")
    name, calls = ("train_population" if batch_size == 8 else "train_full_population"), []
    together = getattr(engine, name)

    def counted(parameters: Sequence[Sequence[Tensor]], *others: Any, **options: Any) -> Any:
        calls.append(len(parameters))
        return together(parameters, *others, **options)

    monkeypatch.setattr(engine, name, counted)

    def trainers() -> list[Trainer]:
        options = {"backend": "fused", "batch_size": batch_size, "schedule": "linear", "total_steps": 30}
        return [
            Trainer(make_mlp(dataset, seed=seed, softcap=softcap), dataset, learning_rate=rate, seed=seed, **options)
            for seed, (softcap, rate) in enumerate([(None, 0.1), (2.0, 0.2), (None, 0.05), (3.0, 0.1)])
        ]

    population, alone = Population(trainers()), trainers()
    losses = torch.cat([population.run(3), population.run(9)], dim=1)
    for trainer, other, own in zip(population.trainers, alone, losses, strict=True):
        assert torch.equal(other.run(12), own)
        assert_same_state(trainer, other)
    assert set(calls) == {2}
    restored = Population(trainers())
    restored.load_state_dict(population.state_dict())
    assert torch.equal(restored.run(5), population.run(5))


def test_a_graph_that_diverges_keeps_no_other_from_its_steps(
    dataset: data.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphed, "capture", capture_step)
    monkeypatch.setattr(FusedBackend, "way", lambda self, size: "graph")
    options: dict[str, Any] = {"batch_size": 8, "backend": "fused"}
    rates = (0.1, 1e308, 0.2)
    population = Population([Trainer(make_mlp(dataset), dataset, learning_rate=rate, **options) for rate in rates])
    losses = population.run(10)
    assert [error is None for error in population.errors] == [True, False, True]
    assert losses[[0, 2]].isfinite().all()
    assert losses[1, -1].isnan()
    alone = Trainer(make_mlp(dataset), dataset, learning_rate=0.2, **options)
    assert torch.equal(alone.run(10), losses[2])
