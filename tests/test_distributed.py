"""Several processes train the model that one would: from Python, from the command line, and through torchrun."""

from __future__ import annotations

import contextlib
import io
import os
import re
import runpy
import signal
import socket
import subprocess
import sys
import time
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import small_names
import torch
import torch.distributed as dist
from processes import TIMEOUT_SECONDS, run_once
from torch import Tensor, nn

from charlm import MLP, NeuralBigram, Trainer, checkpoint, data, distributed
from charlm.cli import main
from charlm.distributed import Processes
from charlm.nn import EmbeddingLinear, LinearCrossEntropyLoss

# Trainers by name: every optimizer, model and backend, batches that do not divide by two, and one smaller than two.
TRAINERS: dict[str, dict[str, Any]] = {
    "sgd": {"learning_rate": 0.1, "batch_size": 32},
    "uneven shards": {"learning_rate": 0.1, "batch_size": 7, "backend": "eager"},
    "an empty shard": {"learning_rate": 0.1, "batch_size": 1},
    "momentum and clipping": {
        "learning_rate": 0.05,
        "momentum": 0.9,
        "weight_decay": 1e-3,
        "max_grad_norm": 0.05,
        "batch_size": 9,
    },
    "adamw and schedule": {
        "optimizer": "adamw",
        "learning_rate": 0.01,
        "weight_decay": 0.1,
        "batch_size": 33,
        "schedule": "cosine",
        "total_steps": 12,
        "warmup_steps": 3,
    },
    "full": {"learning_rate": 0.5, "batch_size": "full"},
    "full, eager": {"learning_rate": 0.5, "batch_size": "full", "backend": "eager"},
    "direct": {"learning_rate": 0.1, "batch_size": 8, "direct": True},
    "bigram": {"learning_rate": 5.0, "batch_size": 11, "bigram": True},
    "bigram, full": {"learning_rate": 5.0, "batch_size": "full", "bigram": True},
}
STEPS = 12
# A run of the command line, all of it in one process or with any of its parts in two.
RUN = ("--batch-size", 33, "--hidden-dim", 16, "--embedding-dim", 4, "--quiet")


def make_trainer(dataset: data.Dataset, *, bigram: bool = False, direct: bool = False, **options: Any) -> Trainer:
    size = len(dataset.vocabulary)
    if bigram:
        return Trainer(NeuralBigram(size, dtype=torch.float64), dataset, **options)
    # Weights of its own in every process: the trainer starts from those of rank 0.
    generator = torch.Generator().manual_seed(1 + distributed.current().rank)
    model = MLP(size, 3, 4, 16, direct=direct, generator=generator, dtype=torch.float64)
    return Trainer(model, dataset, **options)


def curve(trainer: Trainer) -> dict[str, Any]:
    """What a training run gives: in two calls, so that one ends within the other's chunks."""
    losses = torch.cat([trainer.run(5), trainer.run(STEPS - 5)])
    return {"losses": losses, "dev": trainer.evaluate("dev"), "state": trainer.state_dict(), "backend": trainer.backend}


def error_of(dataset: data.Dataset, **options: Any) -> str:
    try:
        make_trainer(dataset, **{"learning_rate": 0.1, "batch_size": 8, **options})
    except ValueError as error:
        return str(error)
    return "none"


def charlm(*arguments: object) -> tuple[int, str, str]:
    """Runs a command in this process: its exit code and what it printed."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        code = main([str(argument) for argument in arguments])
    return code, out.getvalue(), err.getvalue()


def interrupted(*arguments: object) -> tuple[int, str, str]:
    """Runs a command in which only rank 1 is sent Ctrl-C, in its third chunk of steps."""
    run_chunk, calls = Trainer._run_chunk, []

    def interrupting(trainer: Trainer, steps: int) -> Tensor:
        calls.append(steps)
        if distributed.current().rank == 1 and len(calls) == 3:
            signal.raise_signal(signal.SIGINT)
        return run_chunk(trainer, steps)

    signal.signal(signal.SIGINT, signal.default_int_handler)
    Trainer._run_chunk = interrupting
    try:
        return charlm(*arguments)
    finally:
        Trainer._run_chunk = run_chunk


class Bigger(nn.Module):
    """A model of someone else's that has ours in it."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.first = EmbeddingLinear(11, 3, 4, 7, dtype=torch.float64)
        self.middle = nn.Linear(7, 6, dtype=torch.float64)
        self.last = LinearCrossEntropyLoss(6, 11, bias=True, dtype=torch.float64, label_smoothing=0.1)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)

    def forward(self, ids: Tensor, target: Tensor) -> Tensor:
        return self.last(torch.relu(self.middle(self.first(ids))), target)


def train_bigger(model: nn.Module, rows: slice) -> list[dict[str, Tensor]]:
    """Loss and gradients of four steps of SGD on some rows of the same eight."""
    generator = torch.Generator().manual_seed(4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    steps = []
    for _ in range(4):
        ids, target = (torch.randint(11, shape, generator=generator)[rows] for shape in ((8, 4), (8,)))
        optimizer.zero_grad()
        loss = model(ids, target)
        loss.backward()
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        whole = {name: getattr(g, "full_tensor", lambda g=g: g)().clone() for name, g in gradients.items()}
        steps.append({"loss": loss.detach(), **whole})
        optimizer.step()
    return steps


def sharded_bigger(rank: int) -> list[dict[str, Tensor]]:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model, mesh = Bigger(), init_device_mesh("cpu", (2,))
    for module in (model.first, model.middle, model.last, model):
        fully_shard(module, mesh=mesh)
    return train_bigger(model, slice(4 * rank, 4 * rank + 4))


def worker(folder: Path) -> dict[str, Any]:
    rank = dist.get_rank()
    own = folder / str(rank)
    own.mkdir()
    dataset = small_names.load(own)
    results: dict[str, Any] = {
        "folder": folder,
        "curves": {name: curve(make_trainer(dataset, **options)) for name, options in TRAINERS.items()},
        "fsdp": sharded_bigger(rank),
        "errors": {
            "fused": error_of(dataset, backend="fused"),
            "seed": error_of(dataset, seed=rank),
            "batch_size": error_of(dataset, batch_size=8 + rank),
        },
    }
    names, run = folder / "0" / "small_names.txt", folder / "run"
    results["train"] = charlm("train", names, *RUN, "--steps", 10, "--out", run)
    results["again"] = charlm("train", names, *RUN, "--steps", 10, "--out", run)
    results["fused"] = charlm("train", names, *RUN, "--backend", "fused", "--out", folder / "none")
    results["device"] = charlm("train", names, *RUN, "--device", "cuda:1", "--out", folder / "none")
    results["diverging"] = charlm("train", names, *RUN, "--learning-rate", 1e30, "--out", folder / "diverging")
    results["counts"] = charlm("train", names, "--model", "count-bigram", "--out", folder / "counts")
    results["interrupted"] = interrupted("train", names, *RUN, "--steps", 10_000, "--out", folder / "interrupted")
    dist.destroy_process_group()
    # Rank 0 goes on alone, then both again, in a group that the command joins and leaves.
    if rank == 0:
        results["alone"] = charlm("train", "--resume", run, "--steps", 20, "--quiet")
    set_environment_of_torchrun(rank, folder / "port of together")
    results["together"] = charlm("train", "--resume", run, "--steps", 30, "--quiet")
    assert not dist.is_initialized()
    # A port of its own: rank 1 could find the first group's store where rank 0 has not left yet.
    set_environment_of_torchrun(rank, folder / "port of example")
    results["ddp example"] = ddp_example()
    dist.init_process_group("gloo", init_method=f"file://{folder}/last", rank=rank, world_size=2)
    results["lost"] = lost(rank)
    return results


def set_environment_of_torchrun(rank: int, port: Path) -> None:
    """The variables that torchrun sets for two processes, with a port that rank 0 finds free and leaves in a file."""
    if rank == 0:
        with socket.socket() as free:
            free.bind(("localhost", 0))
            unfinished = port.with_suffix(".new")
            unfinished.write_text(str(free.getsockname()[1]))
        unfinished.rename(port)
    while not port.exists():
        time.sleep(0.01)
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="localhost", MASTER_PORT=port.read_text())


def ddp_example() -> str:
    """What examples/ddp_names.py prints in this process."""
    sys.argv = ["ddp_names", "--steps", "4"]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        runpy.run_path(str(Path(__file__).parents[1] / "examples" / "ddp_names.py"), run_name="__main__")
    return out.getvalue()


def lost(rank: int) -> str:
    """What rank 0 is told when rank 1 leaves; then it leaves too."""
    message = "none"
    try:
        if rank == 0:
            distributed.current().sum(1.0)
    except distributed.OtherProcessError as error:
        message = str(error)
    dist.destroy_process_group()
    return message


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes computed, and in "folder" where their runs are."""
    return run_once(worker, 2, tmp_path_factory)


@pytest.mark.parametrize("name", TRAINERS)
def test_two_processes_train_as_one_does(ranks: list[dict[str, Any]], tmp_path: Path, name: str) -> None:
    options = {"backend": "eager", **TRAINERS[name]}
    expected = curve(make_trainer(small_names.load(tmp_path), **{**options, "backend": "eager"}))
    curves = [rank["curves"][name] for rank in ranks]
    for actual in curves:
        assert actual["backend"] == TRAINERS[name].get("backend", "ops")
        torch.testing.assert_close(actual["losses"], expected["losses"], rtol=0.0, atol=1e-10)
        assert actual["dev"] == pytest.approx(expected["dev"], abs=1e-10)
        assert actual["state"]["step"] == STEPS
        for part in ("model", "optimizer"):
            torch.testing.assert_close(actual["state"][part], expected["state"][part], rtol=1e-8, atol=1e-10)
    # What each of them has is the same to the last bit, so that any of them may save it.
    first, second = curves
    assert first["dev"] == second["dev"]
    assert torch.equal(first["losses"], second["losses"])
    for part in ("model", "optimizer", "batches"):
        for key, value in first["state"][part].items():
            assert torch.equal(value, second["state"][part][key]), key


def test_what_processes_must_agree_in(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert rank["errors"] == {
            "fused": "backend 'fused' makes whole steps in one process, but there are 2: use 'ops', which is the "
            "default then",
            "seed": "seed must be the same in all processes, got 0 in one and 1 in another",
            "batch_size": "batch_size must be the same in all processes, got 8 in one and 9 in another",
        }


def metrics(run: Path) -> list[tuple[int, float]]:
    return [(record["step"], record["loss"]) for record in checkpoint.read_metrics(run)]


def test_a_run_goes_from_two_processes_to_one_and_back(ranks: list[dict[str, Any]], tmp_path: Path) -> None:
    folder, run = ranks[0]["folder"], tmp_path / "run"
    names = folder / "0" / "small_names.txt"
    outputs = [charlm("train", names, *RUN, "--backend", "ops", "--steps", 10, "--out", run)]
    outputs += [charlm("train", "--resume", run, "--steps", steps, "--quiet") for steps in (20, 30)]
    for (code, out, err), (expected_code, expected_out, _) in zip(
        (ranks[0][key] for key in ("train", "alone", "together")), outputs, strict=True
    ):
        assert (code, err) == (expected_code, "") == (0, "")
        alike = out.replace(" in 2 processes", "").replace("fused", "ops").replace(str(folder), str(tmp_path))
        assert without_time(alike) == without_time(expected_out)
    for key in ("train", "together"):
        assert ", adamw, backend ops in 2 processes\n" in ranks[0][key][1]
        assert ranks[1][key] == (0, "", "")
    assert ", adamw, backend fused\n" in ranks[0]["alone"][1]

    # Saved and recorded once: a step of the curve occurs once, at the place and with the loss that it has with one.
    assert [step for step, _ in metrics(folder / "run")] == [step for step, _ in metrics(run)] == list(range(1, 31))
    assert [loss for _, loss in metrics(folder / "run")] == pytest.approx([loss for _, loss in metrics(run)], abs=1e-4)
    one, other = (checkpoint.load(path) for path in (folder / "run", run))
    assert one.step == other.step == 30
    torch.testing.assert_close(one.model.state_dict(), other.model.state_dict(), rtol=1e-3, atol=1e-3)


def without_time(printed: str) -> str:
    return re.sub(r"trained in [\d.]+ s", "trained in # s", printed)


def test_all_processes_stop_after_an_error(ranks: list[dict[str, Any]]) -> None:
    first, second = ranks
    run = first["folder"] / "run"
    assert first["again"][0] == 2
    assert first["again"][2] == (f"error: {run} holds a run already: resume it, or choose another --out\n")
    assert second["again"][::2] == (1, "error: the process of rank 0 has failed\n")
    for rank in ranks:
        assert rank["fused"][0] == rank["device"][0] == 2
        assert "backend 'fused' makes whole steps in one process, but there are 2" in rank["fused"][2]
        assert rank["device"][2] == (
            "error: device must be 'cuda' with several processes, so that each takes its own, got 'cuda:1'\n"
        )
        assert rank["diverging"][0] == 1
        assert re.match(r"error: the loss of .* is (inf|nan)", rank["diverging"][2])
    assert not (first["folder"] / "none").exists()
    assert first["lost"].startswith("another process of the group is gone: ")


def test_counts_are_those_of_one_process(ranks: list[dict[str, Any]], tmp_path: Path) -> None:
    folder = ranks[0]["folder"]
    charlm("train", folder / "0" / "small_names.txt", "--model", "count-bigram", "--out", tmp_path / "counts")
    one, other = (checkpoint.load(path / "counts").model.state_dict()["counts"] for path in (folder, tmp_path))
    assert torch.equal(one, other)
    assert ranks[0]["counts"][0] == 0
    assert ranks[1]["counts"] == (0, "", "")


def test_ctrl_c_in_one_process_stops_all_at_the_same_step(ranks: list[dict[str, Any]]) -> None:
    (code, _, err), other = (rank["interrupted"] for rank in ranks)
    run = ranks[0]["folder"] / "interrupted"
    step = checkpoint.load(run).step
    assert 0 < step < 10_000
    assert err == (f"interrupted and saved at step {step:,}; continue with:\n  charlm train --resume {run}\n")
    assert code == 130
    assert other == (130, "", "")


def test_fsdp_shards_a_model_with_our_modules_in_it(ranks: list[dict[str, Any]]) -> None:
    whole = train_bigger(Bigger(), slice(None))
    for expected, *sharded in zip(whole, *(rank["fsdp"] for rank in ranks), strict=True):
        # Each process has the mean over its half of the rows.
        halves = torch.stack([of_rank.pop("loss") for of_rank in sharded])
        torch.testing.assert_close(halves.mean(), expected.pop("loss"))
        for of_rank in sharded:
            torch.testing.assert_close(of_rank, expected)


def test_the_example_of_ddp_has_the_losses_of_one_process(
    ranks: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", sys.argv)
    actual, expected = ranks[0]["ddp example"], ddp_example()
    assert re.sub(r"loss .*", "", actual) == re.sub(r"loss .*", "", expected) == "step 1  \nstep 4  \n"
    losses = ([float(loss) for loss in re.findall(r"loss (.*)", printed)] for printed in (actual, expected))
    assert next(losses) == pytest.approx(next(losses), abs=2e-4)
    assert ranks[1]["ddp example"] == ""


@pytest.mark.parametrize(("size", "count"), [(1, 5), (2, 7), (3, 2), (4, 0)])
def test_shards_are_all_there_is(size: int, count: int) -> None:
    parts = [list(range(count))[Processes(rank, size).shard(count)] for rank in range(size)]
    assert list(chain(*parts)) == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.usefixtures("usual_signals")
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_stop_torchrun_and_all_of_its_processes(tmp_path: Path, signum: int) -> None:
    """Ctrl-C as a terminal sends it, to torchrun, which passes it on, and to both of its processes; SIGTERM as a
    scheduler does, to torchrun alone."""
    small_names.load(tmp_path)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "charlm"]
    options = ["train", "small_names.txt", *RUN, "--checkpoint-every", 10, "--steps", 1_000_000, "--out", "run"]
    process = subprocess.Popen(
        [*launch, *map(str, options)],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    records = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + TIMEOUT_SECONDS
    try:
        while process.poll() is None and not (records.exists() and records.stat().st_size > 0):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        (os.killpg if signum == signal.SIGINT else os.kill)(process.pid, signum)
        out, err = process.communicate(timeout=TIMEOUT_SECONDS)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    step = checkpoint.load(tmp_path / "run").step
    assert out.count("backend ops in 2 processes\n") == 1
    assert err.count(f"interrupted and saved at step {step:,}; continue with:") == 1, err
    (command,) = re.findall(r"^  (torchrun .*)$", err, re.MULTILINE)
    assert command == "torchrun --nproc-per-node 2 -m charlm train --resume run --checkpoint-every 10"
