"""`charlm sweep`: from what is typed to the table, the picture and the run of the best model."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from command_line import CALLED_AS_MODULE, SMALL_MLP, CommandLine, assert_same_weights
from rich.console import Console

import charlm
from charlm import checkpoint
from charlm.cli.sweep_shown import sweep_progress, sweep_table
from charlm.search_space import LogUniform, Uniform
from charlm.sweep import Sweep, SweepConfig, SweepProgress, SweepResult, folder
from charlm.sweep.results import by_setting

OPTIONS = (*SMALL_MLP, "--steps", 6, "--out", "sweep")


def config_of(run_charlm: CommandLine, names: Path, *options: object) -> SweepConfig:
    run_charlm.output("sweep", names, *OPTIONS, *options, "--quiet")
    return folder.load(Path("sweep")).config


def test_a_grid_its_table_and_the_best_run(run_charlm: CommandLine, names: Path) -> None:
    result = run_charlm("sweep", names, *OPTIONS, "--learning-rate", "0.02,0.5,1e30", "--hidden-dim", "3,5")
    assert result.code == 0
    lines = result.out.splitlines()
    assert lines[0] == "names: 11 characters; 240 / 30 / 30 examples in train / dev / test"
    assert lines[1] == "sweep: 6 settings of learning-rate, hidden-dim; 6 models, 6 steps, backend eager"
    assert lines[2].split() == ["learning-rate", "hidden-dim", "dev", "train", "model"]
    rows = [line.split() for line in lines[3:9]]
    with Sweep.resume("sweep") as sweep:
        results = sweep.results()
    for row, found in zip(rows[:4], results, strict=False):
        rate, size = found.options["learning_rate"], found.options["hidden_dim"]
        assert row == [f"{rate:g}", str(size), f"{found.dev:.4f}", f"{found.loss:.4f}", "done"]
    assert [float(row[2]) for row in rows[:4]] == sorted(float(row[2]) for row in rows[:4])
    assert rows[4:] == [
        ["1e+30", "3", "-", "-", "diverged", "at", "1"],
        ["1e+30", "5", "-", "-", "diverged", "at", "1"],
    ]
    assert re.fullmatch(r"trained in \d+\.\d s, the best model saved in sweep/best; next:", lines[9])
    commands = [line.strip() for line in lines[10:] if line.startswith("  charlm ")]
    wanted = ("sample sweep/best", "plot sweep/best", "plot sweep")
    assert [command.split("  ")[0] for command in commands] == [f"charlm {rest}" for rest in wanted]
    # Plain lines where there is no terminal.
    assert re.search(r"^step 6/6  best dev \d\.\d{4}  2 of 6 diverged", result.err, re.MULTILINE)
    assert "\x1b" not in result.out + result.err

    best = results[0]
    alone = ("--learning-rate", best.options["learning_rate"], "--hidden-dim", best.options["hidden_dim"])
    run_charlm.output("train", names, *SMALL_MLP, "--steps", 6, *alone, "--out", "alone", "--quiet")
    assert_same_weights(Path("sweep/best"), Path("alone"))
    assert len(run_charlm.output("sample", "sweep/best", "--seed", 1).splitlines()) == 10
    assert run_charlm.output("eval", "sweep/best") == run_charlm.output("eval", "alone")
    run_charlm.output("train", "--resume", "sweep/best", "--steps", 9, "--quiet")
    assert checkpoint.load("sweep/best").step == 9
    assert run_charlm.output("plot", "sweep/best", "--only", "loss") == "sweep/best/loss.png\n"


def test_seeds_are_one_row(run_charlm: CommandLine, names: Path) -> None:
    out = run_charlm.output(
        "sweep", names, *OPTIONS, "--learning-rate", "0.02,0.5,1e30", "--seeds", 3, "--seed", 5, "--quiet"
    )
    lines = out.splitlines()
    assert lines[1] == "sweep: 3 settings of learning-rate, 3 seeds each; 9 models, 6 steps, backend eager"
    assert lines[2].split() == ["learning-rate", "dev", "±", "best", "seed", "train", "models"]
    with Sweep.resume("sweep") as sweep:
        first, second, lost = sweep.settings()
    for line, setting in zip(lines[3:5], (first, second), strict=True):
        best = setting.results[0]
        numbers = [f"{number:.4f}" for number in (setting.dev, setting.spread, best.dev)]
        shown = [f"{setting.options['learning_rate']:g}", *numbers, str(best.seed), f"{setting.loss:.4f}", "3", "done"]
        assert line.split() == shown
    assert lines[5].split() == ["1e+30", "-", "-", "-", "5", "-", "3", "diverged", "at", "1"]
    assert {result.seed for result in first.results} == {5, 6, 7}
    assert lost.dev is None


def test_ranges_are_drawn_from(run_charlm: CommandLine, names: Path) -> None:
    config = config_of(
        run_charlm,
        names,
        *("--learning-rate", "log:0.001:0.3", "--weight-decay", "uniform:0:0.2", "--hidden-dim", "uniform:3:9"),
        *("--batch-size", "4,full", "--trials", 5, "--draw-seed", 3),
    )
    assert config.options == {
        **{"learning_rate": LogUniform(0.001, 0.3), "weight_decay": Uniform(0.0, 0.2)},
        **{"batch_size": (4, "full"), "hidden_dim": Uniform(3, 9)},
    }
    assert (config.trials, config.draw_seed, len(config.configs)) == (5, 3, 5)
    assert all(0.001 <= own.learning_rate <= 0.3 and 3 <= own.hidden_dim <= 9 for own in config.configs)


def test_pairs_words_and_what_is_left_out(run_charlm: CommandLine, names: Path) -> None:
    config = config_of(
        run_charlm,
        names,
        *("--optimizer", "adamw", "--betas", "0.9,0.95/0.8,0.9", "--softcap", "none,5", "--schedule", "cosine,linear"),
        *("--max-grad-norm", 1, "--context-length", "2,4"),
    )
    assert config.options == {
        **{"betas": ((0.9, 0.95), (0.8, 0.9)), "schedule": ("cosine", "linear"), "context_length": (2, 4)},
        "softcap": (None, 5.0),
    }
    # What has one value is what all have.
    assert (config.base.optimizer, config.base.max_grad_norm, config.trials) == ("adamw", 1.0, None)


def test_what_is_not_given_is_that_of_the_preset(run_charlm: CommandLine, names: Path) -> None:
    run_charlm.output("sweep", names, "--model", "bigram", "--steps", 4, "--learning-rate", "0.5,1", "--out", "a", "-q")
    base = folder.load(Path("a")).config.base
    expected = charlm.PRESETS["bigram"].to_dict() | {"path": str(names), "steps": 4}
    assert base.to_dict() == expected
    # A shorter sweep has its share of the warm-up, as a run has.
    run_charlm.output("sweep", names, "--steps", 20, "--hidden-dim", "4,5", "--out", "b", "--quiet")
    assert folder.load(Path("b")).config.base.warmup_steps == 2
    assert Path("a/best/config.json").exists()


def test_the_default_folder_has_the_name_of_the_data(run_charlm: CommandLine, names: Path) -> None:
    run_charlm.output("sweep", names, *SMALL_MLP, "--steps", 2, "--seeds", 2, "--quiet")
    assert checkpoint.load("runs/names-sweep/best").step == 2
    assert "runs/names-sweep holds a sweep already: resume it, or choose another --out" in run_charlm.error(
        "sweep", names, *SMALL_MLP, "--steps", 2, "--seeds", 2
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "there is nothing to try: give several values of an option, or seeds"),
        ("--learning-rate 0.1,0.1", "--learning-rate has the value 0.1 twice"),
        ("--learning-rate 0.1,-1", "Invalid value for '--learning-rate': -1.0 is not a positive number"),
        ("--learning-rate 0.1,x", "Invalid value for '--learning-rate': 'x' is not a number"),
        ("--learning-rate 0.1,", "Invalid value for '--learning-rate': '' is not a number"),
        ("--learning-rate none,0.1", "--learning-rate must be a positive number, got None"),
        ("--hidden-dim 3,4.5", "Invalid value for '--hidden-dim': '4.5' is not an integer"),
        (
            "--learning-rate log:0.001:0.3",
            "--learning-rate has a range, log:0.001:0.3, which has no end of values: give ",
        ),
        (
            "--learning-rate log:0.3:0.001 --trials 3",
            "'--learning-rate': 'log:0.3:0.001': a range must begin with the smaller number, got 0.3 and 0.001",
        ),
        (
            "--weight-decay log:0:0.1 --trials 3",
            "'--weight-decay': 'log:0:0.1': a logarithmic range must begin above 0, got 0",
        ),
        ("--learning-rate log:0.1 --trials 3", "'--learning-rate': 'log:0.1' is not a range such as log:LOW:HIGH"),
        ("--learning-rate exp:1:2 --trials 3", "'--learning-rate': 'exp:1:2' is not a number"),
        ("--learning-rate uniform:0:1 --trials 3", "Invalid value for '--learning-rate': 0.0 is not a positive number"),
        ("--schedule cosine,never", "Invalid value for '--schedule': 'never' is not one of constant, step, cosine, "),
        ("--schedule uniform:a:b --trials 2", "'--schedule': 'uniform:a:b': a range must have two finite numbers, got"),
        ("--hidden-dim 3,4 --trials 3", "--trials must be at most 2, the number of settings, got 3"),
        ("--hidden-dim 3,4 --halving 1", "Invalid value for '--halving': 1 is not an integer >= 2"),
        ("--momentum 0,0.9 --optimizer sgd,adamw", "--momentum goes with --optimizer sgd, not with --optimizer adamw"),
        ("--decay-factor 0.1,0.5", "--decay-factor goes with --schedule step, not with --schedule constant"),
        ("--model bigram --seeds 2", "--embedding-dim, --hidden-dim go with --model mlp, not with --model bigram"),
        ("--warmup 0,6", "--warmup must be less than --steps 6, got 6 (--warmup 6)"),
        ("--steps 4,5 --seeds 2", "Invalid value for '--steps': "),
    ],
)
def test_what_cannot_be_swept_is_one_line(run_charlm: CommandLine, names: Path, arguments: str, message: str) -> None:
    assert message in run_charlm.error("sweep", names, *OPTIONS, *arguments.split())
    assert not Path("sweep").exists()


def test_what_is_counted_has_nothing_to_try(run_charlm: CommandLine, names: Path) -> None:
    message = "--model must be one that is trained in steps, got 'count-bigram'"
    assert run_charlm.error("sweep", names, "--model", "count-bigram", "--seeds", 2) == message
    assert not Path("runs").exists()


def test_a_program_gets_json(run_charlm: CommandLine, names: Path) -> None:
    options = (*OPTIONS, "--learning-rate", "0.02,1e30", "--hidden-dim", "3,5", "--betas", "0.9,0.95/0.8,0.9")
    options = tuple("adamw" if option == "sgd" else option for option in options)
    report = json.loads(run_charlm.output("sweep", names, *options, "--json"))
    assert (report["folder"], report["best"]) == ("sweep", "sweep/best")
    models = report["models"]
    assert len(models) == 8
    assert [model["status"] for model in models] == 4 * ["done"] + 4 * ["diverged"]
    assert [model["dev"] for model in models[:4]] == sorted(model["dev"] for model in models[:4])
    assert models[4]["dev"] is None
    assert models[0].keys() == {"model", "options", "seed", "step", "loss", "dev", "status"}
    assert set(models[0]["options"]) == {"learning_rate", "betas", "hidden_dim"}
    # Again, from the folder.
    assert json.loads(run_charlm.output("sweep", "--resume", "sweep", "--json")) == report
    assert checkpoint.load("sweep/best").config.hidden_dim == models[0]["options"]["hidden_dim"]


def test_rows_of_the_table(run_charlm: CommandLine, names: Path) -> None:
    run_charlm.output("sweep", names, *OPTIONS, "--hidden-dim", ",".join(map(str, range(2, 15))), "--quiet")
    again = [
        run_charlm.output("sweep", "--resume", "sweep", *top).splitlines() for top in ((), ("--top", 2), ("--top", 0))
    ]
    default, two, every = (
        lines[2 : lines.index(next(line for line in lines if "nothing left" in line))] for lines in again
    )
    assert (len(default), default[-1]) == (11, "and 3 more settings: --top 0 shows all")
    assert (len(two), two[-1]) == (3, "and 11 more settings: --top 0 shows all")
    assert len(every) == 13
    assert every[:10] == default[:10]


def test_a_sweep_that_diverges_is_a_failure(run_charlm: CommandLine, names: Path) -> None:
    result = run_charlm("sweep", names, *OPTIONS, "--learning-rate", "1e30,2e30", "--quiet")
    assert result.code == 1
    assert result.err == "error: all 2 models have diverged: lower --learning-rate, or set --max-grad-norm\n"
    assert result.out.count("diverged at 1\n") == 2
    again = run_charlm("sweep", "--resume", "sweep")
    assert (again.code, again.err) == (1, result.err)


def test_what_is_resumed_keeps_what_it_is(run_charlm: CommandLine, names: Path) -> None:
    run_charlm.output("sweep", names, *OPTIONS, "--hidden-dim", "3,4", "--quiet")
    assert run_charlm.error(
        "sweep", "--resume", "sweep", "--learning-rate", "0.1,0.2", "--trials", 3, "--out", "x"
    ) == (
        "--learning-rate, --out, --trials cannot change when a sweep is resumed; "
        "only FILE, --dev, --test, --backend and --device can"
    )
    assert run_charlm.error("sweep", "--resume", "sweep/best") == (
        "sweep/best is not a sweep folder, or is incomplete: it has no sweep.json"
    )
    run_charlm.output("train", names, *SMALL_MLP, "--steps", 2, "--out", "run", "--quiet")
    for command in (("sample", "sweep"), ("eval", "sweep"), ("train", "--resume", "sweep")):
        message = "sweep is the folder of a sweep: at its end, sweep/best is the best run"
        assert run_charlm.error(*command) == message
    assert (
        run_charlm.error("sweep", names, *SMALL_MLP, "--seeds", 2, "--out", "run")
        == "run is not empty: choose another --out"
    )


def test_standard_input_is_kept(run_charlm: CommandLine, names: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = [sys.executable, "-m", "charlm", "sweep", "-", *map(str, OPTIONS), "--context-length", "2,3", "--quiet"]
    done = subprocess.run(
        command,
        env=os.environ | {"PYTHONPATH": str(Path(charlm.__file__).parent.parent)},
        input=names.read_bytes(),
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert Path("sweep/text.txt").read_bytes() == names.read_bytes() == Path("sweep/best/text.txt").read_bytes()
    run_charlm.output("eval", "sweep/best")
    assert run_charlm.error("sweep", "-", "--resume", "sweep") == (
        "- is not a file: a run that is resumed has its text, or takes it from a file"
    )


@pytest.mark.usefixtures("usual_signals")
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_and_sigterm_save_and_print_the_command_that_continues(
    run_charlm: CommandLine, names: Path, tmp_path: Path, signum: int, code: int
) -> None:
    options = [*map(str, SMALL_MLP), "--backend", "fused", "--steps", "3000", "--learning-rate", "0.05,0.1"]
    command = [sys.executable, "-m", "charlm", "sweep", str(names), *options]
    process = subprocess.Popen(
        [*command, "--checkpoint-every", "100", "--out", "a sweep"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(charlm.__file__).parent.parent)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    saved = tmp_path / "a sweep" / "results.jsonl"
    deadline = time.monotonic() + 120
    try:
        while process.poll() is None and not (saved.exists() and '"step": 100,' in saved.read_text()):
            assert time.monotonic() < deadline
            time.sleep(0.001)
        process.send_signal(signum)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == code, err
    assert "saved in" not in out
    message, continuing = err.splitlines()[-2:]
    step = json.loads(saved.read_text().splitlines()[0])["step"]
    assert 100 <= step < 3000
    assert message == f"interrupted and saved at step {step:,}; continue with:"
    assert continuing == f"  {shlex.join(CALLED_AS_MODULE)} sweep --resume 'a sweep' --checkpoint-every 100"
    run_charlm.output(*shlex.split(continuing)[len(CALLED_AS_MODULE) :], "--quiet")
    run_charlm.output("sweep", names, *options, "--checkpoint-every", 100, "--out", "whole", "--quiet")
    assert Path("whole/results.jsonl").read_bytes() == saved.read_bytes()
    assert_same_weights(Path("a sweep/best"), Path("whole/best"))


# What is shown


def progress(step: int, **changes: Any) -> SweepProgress:
    values = {"step": step, "steps": 200, "trained": 3 * step, "to_train": 600, "best": 2.1034, "diverged": 0}
    return SweepProgress(**{**values, **changes})


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_progress_fits_into_any_terminal(width: int) -> None:
    console = Console(file=StringIO(), force_terminal=True, width=width)
    with sweep_progress(3, quiet=False, to=console) as on_progress:
        assert on_progress is not None
        on_progress(progress(1, best=None))
        on_progress(progress(123, diverged=2))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert text.count("\n") == 1
    last = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", text.split("\x1b[2K")[-1])
    assert len(last.rstrip()) <= width
    if width >= 60:
        assert "step 123/200  best dev 2.1034  2 of 3 diverged" in last


def test_plain_lines_are_few_and_have_it_all() -> None:
    console = Console(file=StringIO(), width=80)
    with sweep_progress(3, quiet=False, to=console) as on_progress:
        assert on_progress is not None
        for step in range(201):
            on_progress(progress(step, diverged=step // 100, best=None if step == 0 else 2.1034))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert lines[0] == "step 0/200  best dev -"
    assert re.fullmatch(r"step 20/200  best dev 2\.1034  \d+\.\d s left", lines[1])
    assert re.fullmatch(r"step 200/200  best dev 2\.1034  2 of 3 diverged  0\.0 s left", lines[-1])
    assert len(lines) == 11


def test_a_narrow_table_keeps_what_was_tried_and_what_came_of_it() -> None:
    base = charlm.TrainingConfig(steps=9)
    config = SweepConfig(base=base, options={"learning_rate": [0.1, 0.2], "optimizer": ["sgd", "adamw"]}, seeds=2)
    results = [
        SweepResult(i, config.settings[i // 2], own.seed, 9, 2.5 + i, 2.0 + i, "done")
        for i, own in enumerate(config.configs)
    ]
    settings = by_setting(results, 2)
    whole = sweep_table(settings, config, 0, None).plain.splitlines()
    assert whole[0].split() == ["learning-rate", "optimizer", "dev", "±", "best", "seed", "train", "models"]
    assert [len(line) for line in whole] == 5 * [len(whole[0])]
    assert sweep_table(settings, config, 0, len(whole[0])).plain.splitlines() == whole
    for room in (len(whole[0]) - 1, 60, 40, 5):
        lines = sweep_table(settings, config, 0, room).plain.splitlines()
        assert all(long.startswith(short) for long, short in zip(whole, lines, strict=True))
        assert "dev" in lines[0]
        assert len(lines[0]) <= max(room, len("learning-rate  optimizer     dev"))


def test_quiet_is_quiet() -> None:
    with sweep_progress(3, quiet=True) as on_progress:
        assert on_progress is None
