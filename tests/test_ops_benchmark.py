"""`python -m benchmarks ops`: what its rows compute, how they are timed, and which of them it says are too slow."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import charlm
from benchmarks import ceilings, grid, ops, timing
from benchmarks.__main__ import main
from benchmarks.ceilings import Floor
from benchmarks.markdown import table
from benchmarks.opponents import HAS_TORCH_LINEAR
from benchmarks.ops import Result, is_too_slow
from charlm import benchmark

SMALL = {
    "cross_entropy": grid.cross_entropy(5, 7),
    "cross_entropy, a loss a row": grid.cross_entropy(5, 7, weighted=True, reduction="none"),
    "linear_cross_entropy": grid.linear_cross_entropy(5, 3, 7),
    "linear_cross_entropy, a loss a row": grid.linear_cross_entropy(5, 3, 7, reduction="none"),
    "linear_cross_entropy, frozen weight": grid.linear_cross_entropy(5, 3, 7, frozen=True),
    "embedding_linear": grid.embedding_linear(5, 2, 6, 3, 4),
    "mlp_cross_entropy": grid.mlp_cross_entropy(5, 3, 2, 4),
}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Matrices that multiply at once, and few bytes to copy."""
    monkeypatch.setattr(benchmark, "_PRODUCT_SIZE", 64)
    monkeypatch.setattr(ops, "_COPIED_BYTES", 1 << 10)
    threads = torch.get_num_threads()
    yield
    assert torch.get_num_threads() == threads


def create(row: grid.Row, dtype: torch.dtype = torch.float32) -> grid.Case:
    torch.manual_seed(0)
    return row.create(dtype)


# The rows


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_contestants_compute_the_same(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    def values(function: Callable[..., Tensor], arguments: Sequence[Any], upstream: Tensor | None) -> Any:
        leaves = [argument for argument in arguments if argument.requires_grad]
        result = function(*arguments)
        return [result, *torch.autograd.grad(result, leaves, upstream)]

    monkeypatch.setattr(grid, "forward_and_backward", values)
    monkeypatch.setattr(grid, "repeated", lambda step: step)
    case = create(SMALL[name], dtype)
    others = {"torch_linear"} if name.startswith("linear") and HAS_TORCH_LINEAR else set()
    assert set(case.contestants) == {"charlm", "eager", "compile"} | others
    tolerance = {"rtol": 0.02, "atol": 0.02} if dtype == torch.bfloat16 else {}
    for contestant in set(case.contestants) - {"compile", "eager"}:
        torch.testing.assert_close(case.contestants[contestant](), case.contestants["eager"](), **tolerance)


def test_the_training_step_is_the_lectures_by_each_backend() -> None:
    row = grid.TRAINING_STEP
    case = create(row)
    assert row.dtypes == (torch.float32,)
    assert set(case.contestants) == {"charlm", "eager", "compile"}
    losses = [case.contestants[name]()(3) for name in ("charlm", "eager")]
    torch.testing.assert_close(losses[0], losses[1])
    config = charlm.PRESETS["makemore"]
    dataset = config.load_data()
    trainer = config.create_trainer(config.create_model(len(dataset.vocabulary)), dataset)
    torch.testing.assert_close(losses[0], trainer.run(3))


def test_floors_are_bytes_and_products(monkeypatch: pytest.MonkeyPatch) -> None:
    def work(name: str, dtype: torch.dtype) -> tuple[int, int]:
        floor = create(SMALL[name], dtype).floor
        return floor.moved_bytes, floor.flops

    assert work("cross_entropy", torch.float32) == (2 * 4 * 5 * 7, 0)
    assert work("cross_entropy", torch.bfloat16) == (2 * 2 * 5 * 7, 0)
    assert work("linear_cross_entropy", torch.float32) == (0, 3 * 2 * 5 * 3 * 7)
    assert work("linear_cross_entropy, frozen weight", torch.float32) == (0, 2 * 2 * 5 * 3 * 7)

    same, other = torch.tensor([[0, 1], [0, 2], [0, 1]]), torch.tensor([1, 2, 3])
    monkeypatch.setattr(torch, "randint", lambda *_: same)
    monkeypatch.setitem(SMALL, "three rows", grid.embedding_linear(3, 2, 6, 3, 4))
    # Three (position, token) pairs; of 3 rows the output written, it and its gradient read; a table of 6 rows written.
    assert work("three rows", torch.float32) == (4 * (3 * 3 * 4 + 6 * 3), 3 * 2 * 3 * 3 * 4)
    monkeypatch.setattr(grid, "_batch", lambda *_: (same, other))
    # Two contexts, of 27 logits each, and again three pairs.
    assert work("mlp_cross_entropy", torch.float32) == (0, 3 * 2 * 4 * (2 * 27 + 3 * 2))


def test_a_floor_takes_its_bytes_and_its_operations_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings, "copy_seconds", lambda size: size / 10)
    assert Floor("both", moved_bytes=200, flops=50).seconds(rate=25.0) == 10 + 2
    assert Floor("products", flops=50).seconds(rate=25.0) == 2


# The clock


def test_gradients_of_a_step_do_not_add_to_those_of_the_last() -> None:
    factor, input = torch.tensor(3.0, requires_grad=True), torch.tensor([1.0, 2.0], requires_grad=True)
    step = timing.forward_and_backward(lambda a, b, c: a * b + c, (factor, input, 1.0), torch.tensor([10.0, 100.0]))
    timing.repeated(step)(3)
    assert factor.grad is not None
    assert input.grad is not None
    assert (factor.grad.item(), input.grad.tolist()) == (210.0, [30.0, 300.0])


@pytest.mark.parametrize(("slow_seconds", "rounds"), [(0.25, 5), (10.5, 3)])
def test_rounds_alternate(monkeypatch: pytest.MonkeyPatch, slow_seconds: float, rounds: int) -> None:
    now, order = 0.0, []
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: now)

    def contestant(name: str, seconds: float) -> timing.Run:
        def run(steps: int) -> None:
            nonlocal now
            now += steps * seconds
            order.append((name, steps))

        return run

    runs = {"fast": contestant("fast", 0.001), "slow": contestant("slow", slow_seconds)}
    times = timing.alternate(runs, 5, 0.03)
    there_and_back = [("fast", 30), ("slow", 1), ("slow", 1), ("fast", 30)]
    assert order[-2 * rounds :] == (there_and_back * 3)[: 2 * rounds]
    assert times == {"fast": pytest.approx([0.001] * rounds), "slow": pytest.approx([slow_seconds] * rounds)}


# The verdict


def result(**rounds: Sequence[float]) -> Result:
    return Result("op", "op N=1", "float32", 1, "a read", 0.5, rounds)


@pytest.mark.parametrize(
    ("rounds", "verdict"),
    [
        ({"charlm": [1.0], "eager": [0.96]}, False),
        ({"charlm": [1.0], "eager": [0.95]}, True),
        ({"charlm": [1.0], "eager": [2.0], "torch_linear": [0.9]}, True),
        ({"charlm": [1.0], "eager": [0.9], "torch_linear": [2.0]}, True),
        ({"charlm": [1.0], "eager": [1.0], "compile": [0.5]}, False),
        ({"charlm": [1.0], "compile": [0.5]}, False),
        # The machine was slow in one of three rounds, or halfway through one.
        ({"charlm": [1.0, 9.0, 1.0], "eager": [1.0, 1.0, 1.0]}, False),
        ({"charlm": [1.0, 1.0, 1.0], "eager": [0.5, 9.0, 0.5]}, True),
    ],
)
def test_too_slow_is_more_than_five_per_cent_behind_the_best(rounds: Mapping[str, Any], verdict: bool) -> None:
    assert is_too_slow(result(**rounds)) == verdict


def test_ratios_are_those_within_the_rounds() -> None:
    # Medians of all rounds would make it 2 / 4.
    measured = result(charlm=[1.0, 4.0, 16.0], eager=[2.0, 8.0, 1.0])
    assert measured.ratios == {"eager": 2.0}
    assert measured.seconds == 4.0
    assert measured.share == 0.5 / 4.0


# The command


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, list[str]]:
    capsys.readouterr()
    status = main(["ops", *map(str, arguments)])
    return status, capsys.readouterr().out.splitlines()


def fake_times(monkeypatch: pytest.MonkeyPatch, charlm_seconds: Callable[[], float]) -> list[tuple[list[str], int]]:
    """The contestants and number of rounds of each call; who is not charlm takes a second."""
    calls = []

    def alternate(runs: Mapping[str, Any], rounds: int, seconds: float) -> dict[str, list[float]]:
        calls.append((list(runs), rounds))
        return {name: [charlm_seconds() if name == "charlm" else 1.0] * rounds for name in runs}

    monkeypatch.setattr(ops, "alternate", alternate)
    return calls


def test_the_table_and_the_file_have_what_was_measured(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "ops.json"
    options = ["--only", "cross_entropy N=1 C=27", "--dtypes", "bfloat16,float32", "--rounds", 1, "--json", file]
    status, lines = run(capsys, *options)
    report = json.loads(file.read_text())
    assert report["command"].startswith("python -m benchmarks ops --only 'cross_entropy N=1 C=27' --dtypes bfloat16,")
    assert report["commit"] == charlm.environment.commit()
    assert report["versions"]["torch"] == torch.__version__
    assert report["machine"]["cores"] >= 1
    (ceiling,) = report["ceilings"]
    assert ceiling["threads"] == 1
    assert set(ceiling["product_flops_per_s"]) == {"float32", "bfloat16"}
    assert min(ceiling["copy_bytes_per_s"], *ceiling["product_flops_per_s"].values()) > 0
    assert [(row["row"], row["dtype"]) for row in report["rows"]] == [
        ("cross_entropy N=1 C=27", "bfloat16"),
        ("cross_entropy N=1 C=27", "float32"),
    ]
    assert status == any(row["too_slow"] for row in report["rows"])
    for row in report["rows"]:
        assert row["median_s"] == {name: rounds[0] for name, rounds in row["rounds_s"].items()}
        assert row["ratios"] == {"eager": pytest.approx(row["median_s"]["eager"] / row["median_s"]["charlm"])}
        assert row["share_of_floor"] == pytest.approx(row["floor_s"] / row["median_s"]["charlm"])
        assert 0 < row["floor_s"] < 1
        shown = next(line for line in lines if line.startswith(f"| {row['row']} | {row['dtype']}"))
        assert f"| {row['ratios']['eager']:.2f} " in shown
        assert f"| {row['share_of_floor']:.1%} " in shown
    assert len({len(line) for line in lines if line.startswith("|")}) == 1
    assert "- cross_entropy: logits read, gradient written" in lines


def test_the_exit_status_says_whether_an_op_is_too_slow(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--only", "cross_entropy N=32 ", "--dtypes", "float32"]
    calls = fake_times(monkeypatch, lambda: 1.04)
    status, lines = run(capsys, *options)
    assert status == 0
    pair = ["charlm", "eager"]
    linear = [*pair, *(["torch_linear"] if HAS_TORCH_LINEAR else [])]
    assert calls == [(names, 7) for names in (pair, pair, pair, pair, linear, linear, pair)]
    assert any(line.startswith("0 of 7 too slow: more than 5% behind eager or torch_linear.") for line in lines)
    fake_times(monkeypatch, lambda: 1.06)
    status, lines = run(capsys, *options)
    assert status == 1
    assert [line.split(" | ")[-1] for line in lines if " float32 " in line and line[0] == "|"] == ["too slow |"] * 7
    calls = fake_times(monkeypatch, lambda: 1.06)
    assert run(capsys, *options, "--against", "compile", "--rounds", 2)[0] == 0
    assert calls == [(["charlm", "compile"], 2)] * 7


def test_every_row_is_measured_on_every_number_of_threads(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "ops.json"
    fake_times(monkeypatch, lambda: float(torch.get_num_threads()))
    status, _ = run(capsys, "--only", "training step", "--threads", "1,2", "--json", file)
    assert status == 1
    rows = json.loads(file.read_text())["rows"]
    assert [(row["dtype"], row["threads"], row["median_s"]["charlm"], row["too_slow"]) for row in rows] == [
        ("float32", 1, 1.0, False),
        ("float32", 2, 2.0, True),
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--against", "jax"], "argument --against: must be of eager, compile, got 'jax'"),
        (["--against", "eager,eager"], "argument --against: eager,eager has the same twice"),
        (["--dtypes", "float64"], "argument --dtypes: must be of float32, bfloat16, float16, got 'float64'"),
        (["--threads", "1,0"], "argument --threads: must be a positive integer, got '0'"),
        (["--rounds", "no"], "argument --rounds: must be a positive integer, got 'no'"),
        (["--json", "no/folder/here"], "argument --json: there is no folder for no/folder/here"),
        (["--only", "convolution"], "argument --only: no row has 'convolution' in its name"),
    ],
)
def test_bad_input_is_said_before_anything_is_measured(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as exit:
        main(["ops", *arguments])
    assert exit.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[-1] == f"python -m benchmarks ops: error: {message}"


def test_an_aligned_table_is_markdown_too() -> None:
    rows = [["long name", "1"], ["a|b", "100"]]
    assert table(["op", "x"], rows) == "| op | x |\n| --- | --- |\n| long name | 1 |\n| a/b | 100 |\n"
    assert table(["op", "x"], rows, aligned=True) == (
        "| op        | x   |\n| --------- | --- |\n| long name | 1   |\n| a/b       | 100 |\n"
    )
