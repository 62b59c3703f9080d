"""The command line: what each command does, says and writes, and how it fails."""

from __future__ import annotations

import io
import json
import math
import os
import re
import shlex
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import torch
import typer
from command_line import SMALL_MLP, CommandLine, weights, without_times
from rich.console import Console

import charlm
from charlm import _C, PRESETS, Trainer, TrainingConfig, TrainingRun, checkpoint
from charlm.backends import BACKENDS
from charlm.benchmark import WORKLOADS
from charlm.cli import main
from charlm.cli.commands import COMMANDS, app
from charlm.cli.configurations import PRESET_OF_MODEL
from charlm.cli.console import NEXT, loss_table, measures, progress

# Training


def test_train_does_what_the_trainer_does(run_charlm: CommandLine, names: Path) -> None:
    options = ("--context-length", 2, "--steps", 60, "--seed", 7, "--momentum", 0.5, "--weight-decay", 0.01, "--direct")
    run_charlm.output("train", names, *SMALL_MLP, *options, "--out", "run", "--quiet")

    dataset = charlm.data.load(names, context_length=2)
    model = charlm.MLP(len(dataset.vocabulary), 2, 2, 4, direct=True, generator=torch.Generator().manual_seed(7))
    trainer = Trainer(
        model, dataset, learning_rate=0.1, momentum=0.5, weight_decay=0.01, batch_size=8, backend="eager", seed=7
    )
    losses = trainer.run(60)
    for name, tensor in weights(Path("run")).items():
        assert torch.equal(tensor, model.state_dict()[name]), name
    records = checkpoint.read_metrics("run")
    assert [record["step"] for record in records] == list(range(1, 61))
    assert [record["loss"] for record in records] == losses.tolist()
    assert [record["step"] for record in records if "dev" in record] == list(range(6, 61, 6))
    assert records[-1]["dev"] == trainer.evaluate("dev")


def test_train_reports_data_model_losses_and_the_next_command(run_charlm: CommandLine, names: Path) -> None:
    out = run_charlm.output("train", names, *SMALL_MLP, "--steps", 3, "--out", "a run")
    losses = json.loads(run_charlm.output("eval", "a run", "--json"))
    width = len("charlm sample 'a run'")
    # 40, 5 and 5 lines of 5 letters and an end; 11 characters; 11*2 + 4*6 + 4 + 11*4 + 11 parameters.
    assert without_times(out).splitlines() == [
        "names: 11 characters; 240 / 30 / 30 examples in train / dev / test",
        "mlp: 105 parameters, 3 steps, sgd, backend eager",
        *loss_table({split: values["nll"] for split, values in losses.items()}).splitlines(),
        "trained in # s, saved in a run; next:",
        *(f"  {shlex.join(['charlm', command, 'a run']):{width}}  {meaning}" for command, meaning in NEXT),
    ]
    assert {command for command, _ in NEXT} <= set(COMMANDS)


def test_records_are_means_over_the_steps_since_the_one_before(run_charlm: CommandLine, names: Path) -> None:
    options = ("--model", "bigram", "--batch-size", 4, "--steps", 600)
    run_charlm.output("train", names, *options, "--checkpoint-every", 250, "--out", "run", "--quiet")
    records = checkpoint.read_metrics("run")
    run = checkpoint.load("run")
    dataset = run.config.load_data()
    losses = run.config.create_trainer(run.config.create_model(len(run.vocabulary)), dataset).run(600)
    steps = sorted({*range(3, 601, 3), 250, 500})
    assert [record["step"] for record in records] == steps
    for start, record in zip([0, *steps], records, strict=False):
        assert record["loss"] == pytest.approx(losses[start : record["step"]].mean().item(), rel=1e-6)
    assert [record["step"] for record in records if "dev" in record] == [250, 500, 600]


def test_counts_are_those_of_the_text(run_charlm: CommandLine, tmp_path: Path) -> None:
    text = tmp_path / "ab.txt"
    text.write_text("ab\n" * 10)
    out = run_charlm.output("train", text, "--model", "count-bigram", "--smoothing", 1)
    assert "count-bigram: counted, smoothing 1" in out
    # Of the 8 lines in train: . is followed by a, a by b, b by ., 8 times each, among 3 characters.
    losses = json.loads(run_charlm.output("eval", "runs/ab", "--json"))
    assert losses == {split: pytest.approx(measures(math.log(11 / 9))) for split in ("train", "dev", "test")}
    assert checkpoint.load("runs/ab").model.counts.tolist() == [[0, 8, 0], [0, 0, 8], [8, 0, 0]]


def test_explicit_options_override_the_preset(run_charlm: CommandLine, names: Path) -> None:
    arguments = ("--preset", "eureka", "--steps", 2, "--hidden-dim", 3, "--backend", "eager", "--schedule", "step")
    run_charlm.output("train", names, *arguments, "--betas", "0.8,0.9", "--milestones", "1,2", "--out", "run")
    expected = PRESETS["eureka"].to_dict() | {"path": str(names), "steps": 2, "hidden_dim": 3, "backend": "eager"}
    expected |= {"schedule": "step", "betas": (0.8, 0.9), "milestones": (1, 2)}
    assert checkpoint.load("run").config.to_dict() == expected


def test_a_model_has_its_own_preset(run_charlm: CommandLine, names: Path) -> None:
    run_charlm.output("train", names, "--model", "bigram", "--steps", 1, "--out", "bigram")
    assert checkpoint.load("bigram").config.to_dict() == PRESETS["bigram"].to_dict() | {"path": str(names), "steps": 1}
    assert set(PRESET_OF_MODEL) == set(get_args(get_type_hints(TrainingConfig)["model"]))
    assert set(PRESET_OF_MODEL.values()) <= set(PRESETS)


def test_without_arguments_it_trains_the_lecture_model_on_the_embedded_names(run_charlm: CommandLine) -> None:
    out = run_charlm.output("train", "--steps", 21, "--backend", "eager", "--quiet")
    assert "names: 27 characters; 175,781 / 21,898 / 21,937 examples in train / dev / test\n" in out
    assert "mlp: 11,897 parameters, 21 steps, adamw, backend eager\n" in out
    # A shorter run has its share of the warm-up: 20 of 200 steps, so 2 of 21.
    expected = PRESETS["fast"].to_dict() | {"steps": 21, "warmup_steps": 2, "backend": "eager"}
    assert checkpoint.load("runs/names").config.to_dict() == expected
    # Whole-split steps at a warmed-up rate: well below the uniform log 27 = 3.296 within twenty of them.
    assert checkpoint.read_metrics("runs/names")[-1]["loss"] < 2.8


def test_stream_mode_crosses_lines(run_charlm: CommandLine, names: Path) -> None:
    out = run_charlm.output("train", names, *SMALL_MLP, "--mode", "stream", "--steps", 2, "--out", "run")
    # 300 characters: 240 / 30 / 30, of which each split's first three are context only.
    assert "names: 11 characters; 237 / 27 / 27 examples" in out


def test_every_option_of_a_configuration_is_an_option_of_train() -> None:
    parameters = {parameter.name for parameter in typer.main.get_command(app).commands["train"].params}
    assert {field.name for field in fields(TrainingConfig)} <= parameters


def test_help_names_the_values_that_are_accepted() -> None:
    helps = {parameter.name: parameter.help for parameter in typer.main.get_command(app).commands["train"].params}
    words = {
        name: get_args(hint)
        for name, hint in get_type_hints(TrainingConfig).items()
        if get_args(hint) and all(isinstance(value, str) for value in get_args(hint))
    }
    for name, values in {**words, "backend": tuple(BACKENDS), "preset": tuple(PRESETS)}.items():
        assert helps[name].endswith(f": {', '.join(values[:-1])} or {values[-1]}."), name
    races = {parameter.name: parameter.help for parameter in typer.main.get_command(app).commands["bench"].params}
    assert races["preset"].endswith(": makemore, eureka, large or full.")
    assert list(WORKLOADS) == ["makemore", "eureka", "large", "full"]


# Sampling, evaluation, facts


def test_sample_prints_what_the_sampler_draws(run_charlm: CommandLine, names: Path) -> None:
    run_charlm.output("train", names, "--model", "bigram", "--out", "run", "--quiet")
    run = checkpoint.load("run")
    out = run_charlm.output(
        "sample", "run", "-n", 5, "--temperature", 0.7, "--top-k", 3, "--prefix", "al", "--seed", 3, "--max-length", 9
    )
    assert out.splitlines() == charlm.sample(
        run.model, run.vocabulary, 5, temperature=0.7, top_k=3, prefix="al", seed=3, max_length=9
    )
    assert len(run_charlm.output("sample", "run", "--seed", 1).splitlines()) == 10
    assert run_charlm.output("sample", "run", "-n", 0) == ""
    long = run_charlm.output("sample", "run", "-n", 1, "--no-stop", "--max-length", 300, "--seed", 1)
    assert len(long) == 301
    assert "." in long


def test_eval_measures_the_splits_or_one_of_them(run_charlm: CommandLine, names: Path) -> None:
    run_charlm.output("train", names, *SMALL_MLP, "--steps", 30, "--out", "run", "--quiet")
    run = checkpoint.load("run")
    dataset = charlm.data.load(names)
    expected = {split: charlm.evaluate(run.model, getattr(dataset, split)) for split in ("train", "dev", "test", "all")}
    losses = json.loads(run_charlm.output("eval", "run", "--json"))
    assert losses == {split: pytest.approx(measures(expected[split])) for split in ("train", "dev", "test")}
    alone = json.loads(run_charlm.output("eval", "run", "--split", "all", "--json"))
    assert alone == {"all": pytest.approx(measures(expected["all"]))}
    assert run_charlm.output("eval", "run", "--split", "dev") == loss_table({"dev": expected["dev"]}) + "\n"


def test_eval_reads_another_file_with_the_vocabulary_of_the_run(
    run_charlm: CommandLine, names: Path, tmp_path: Path
) -> None:
    run_charlm.output("train", names, *SMALL_MLP, "--steps", 30, "--out", "run", "--quiet")
    other = tmp_path / "other.txt"
    other.write_text("ten\nnine\nmars\n")
    run = checkpoint.load("run")
    expected = charlm.evaluate(run.model, charlm.data.load(other, vocabulary=run.vocabulary).all)
    losses = json.loads(run_charlm.output("eval", "run", other, "--split", "all", "--json"))
    assert losses["all"]["nll"] == expected
    other.write_text("ten\nnine\neleven\n")
    assert (
        run_charlm.error("eval", "run", other) == f"{other}, line 3, column 4 has 'v', which is not in the vocabulary"
    )


def test_an_infinite_loss_is_null_in_json(run_charlm: CommandLine, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("aa\nb\nc\n")
    run_charlm.output("train", text, "--model", "count-bigram", "--out", "run")
    losses = json.loads(run_charlm.output("eval", "run", "--json"), parse_constant=pytest.fail)
    assert losses["dev"] == {"nll": None, "perplexity": None, "bits_per_character": None}
    assert run_charlm.output("eval", "run", "--split", "dev").split()[-4:] == ["dev", "inf", "inf", "inf"]


def test_measures() -> None:
    assert measures(math.log(8)) == pytest.approx({"nll": 2.0794415, "perplexity": 8.0, "bits_per_character": 3.0})
    assert measures(1000.0)["perplexity"] == math.inf
    assert loss_table({"dev": math.log(8)}).splitlines() == [
        "split      nll   perplexity   bits/character",
        "dev     2.0794       8.0000           3.0000",
    ]
    assert loss_table({"dev": 40.0}).splitlines()[1] == "dev    40.0000   2.3539e+17          57.7078"


def test_info_has_what_a_bug_report_needs(run_charlm: CommandLine) -> None:
    facts = json.loads(run_charlm.output("info", "--json"))
    assert facts["versions"]["charlm"] == charlm.__version__
    assert facts["versions"]["torch"] == torch.__version__
    assert 1 <= facts["cores"] <= (os.cpu_count() or 1)
    assert facts["processor"]
    assert facts["instruction_set"] in facts["instruction_sets"]
    assert facts["threads"] == torch.get_num_threads()
    assert facts["devices"][0] == "cpu"
    assert facts["backends"] == list(BACKENDS)
    assert facts["build"]["torch_target_version"] == "2.10"
    text = run_charlm.output("info")
    assert re.search(rf"^instruction_set +{facts['instruction_set']}$", text, re.MULTILINE)
    assert re.search(r"^build torch_target_version +2\.10$", text, re.MULTILINE)
    assert re.search(rf"^torch +{re.escape(torch.__version__)}$", text, re.MULTILINE)


def test_info_says_whether_the_kernels_run_on_each_gpu(
    run_charlm: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", {0: "H100", 1: "V100"}.__getitem__)
    monkeypatch.setattr(_C, "why_no_kernels", {0: None, 1: "cuda:1 is too old"}.__getitem__)
    facts = json.loads(run_charlm.output("info", "--json"))
    assert facts["devices"] == ["cpu", "cuda:0 H100", "cuda:1 V100"]
    assert facts["kernels"] == {"cuda:0": "yes", "cuda:1": "cuda:1 is too old"}
    text = run_charlm.output("info")
    assert re.search(r"^kernels cuda:0 +yes$", text, re.MULTILINE)
    assert re.search(r"^kernels cuda:1 +cuda:1 is too old$", text, re.MULTILINE)


# Progress


def test_progress_outside_a_terminal_is_plain_lines() -> None:
    console = Console(file=io.StringIO(), force_terminal=False, width=40)
    with progress(100, 200, quiet=False, console=console) as on_progress:
        for step in range(101, 201):
            on_progress(step, 2.0)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert len(lines) == 10
    for tenth, line in enumerate(lines, start=1):
        assert re.fullmatch(rf"step {100 + 10 * tenth}/200  loss 2\.0000  [\d,]+ steps/s  \d+:\d\d left", line)


def test_progress_on_a_terminal_is_a_bar() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with progress(0, 50, quiet=False, console=console) as on_progress:
        on_progress(1, 3.0)
        on_progress(50, 2.0)
    shown = Console(file=io.StringIO(), width=120).render_str(console.file.getvalue()).plain  # type: ignore[attr-defined]
    assert "50/50" in shown
    # 3.0 moved by a tenth of the way to 2.0.
    assert "loss 2.9000" in shown
    assert re.search(r"[\d,]+ steps/s", shown)
    assert "left" in shown


def test_quiet_shows_no_progress(run_charlm: CommandLine, names: Path) -> None:
    loud = run_charlm("train", names, *SMALL_MLP, "--steps", 20, "--out", "loud")
    quiet = run_charlm("train", names, *SMALL_MLP, "--steps", 20, "--out", "quiet", "--quiet")
    assert "step 20/20  loss " in loud.err
    assert quiet.err == ""
    assert without_times(quiet.out).split() == without_times(loud.out.replace("loud", "quiet")).split()


# Errors

BAD_INPUT = [
    (["nonsense"], "No such command 'nonsense'."),
    (["sample"], "Missing argument 'RUN'."),
    (["train", "--steps", "many"], "Invalid value for '--steps': "),
    (["train", "--batch-size", "half"], "Invalid value for '--batch-size': 'half' is neither an integer nor 'full'"),
    (["train", "--betas", "0.9"], "Invalid value for '--betas': '0.9' is not two numbers such as 0.9,0.999"),
    (["train", "--milestones", "a"], "Invalid value for '--milestones': 'a' is not a list of integers such as 1000,20"),
    (["train", "--checkpoint-every", "0"], "Invalid value for '--checkpoint-every': "),
    (["train", "--preset", "huge"], "--preset must be one of fast, best, makemore, eureka, "),
    (["train", "--model", "gpt"], "Invalid value for '--model': 'gpt' is not one of count-bigram, bigram, mlp"),
    (["train", "--split", "odd"], "Invalid value for '--split': 'odd' is not one of random, makemore"),
    (["train", "--optimizer", "lion"], "Invalid value for '--optimizer': 'lion' is not one of sgd, adamw"),
    (
        ["train", "--backend", "magic"],
        "--backend must be one of eager, compile, ops, fused, got 'magic'",
    ),
    (["train", "--batch-size", "0"], "Invalid value for '--batch-size': 0 is not a positive integer"),
    (["train", "--learning-rate", "nan"], "Invalid value for '--learning-rate': nan is not a positive number"),
    (["train", "--device", "toaster"], "device 'toaster' cannot be used: "),
    (["train", "missing.txt"], "{tmp_path}/missing.txt: No such file or directory"),
    (["train", "empty.txt"], "{tmp_path}/empty.txt is empty"),
    (["train", "binary.txt"], "{tmp_path}/binary.txt is not UTF-8 text: byte 0xff at offset 0"),
    (["train", "."], "{tmp_path}: Is a directory"),
    (["train", "--resume", "nowhere"], "nowhere is not a run folder: no such folder"),
    (["sample", "."], ". is not a run folder, or is incomplete: it has no config.json"),
    (
        ["sample", "counts", "--temperature", "-1"],
        "Invalid value for '--temperature': -1.0 is not a finite number",
    ),
    (["sample", "counts", "--prefix", "q"], "prefix[0] = 'q' is not in the vocabulary"),
    (["sample", "counts", "--top-k", "0"], "Invalid value for '--top-k': 0 is not a positive integer"),
    (["eval", "counts", "--split", "half"], "--split must be one of train, dev, test, all, got 'half'"),
    (["eval", "damaged"], "damaged/config.json is not JSON: "),
]


def test_bad_input_is_one_line_and_exit_code_2(run_charlm: CommandLine, names: Path, tmp_path: Path) -> None:
    run_charlm.output("train", names, "--model", "count-bigram", "--out", "counts")
    (tmp_path / "empty.txt").touch()
    (tmp_path / "binary.txt").write_bytes(b"\xff\x00")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged/config.json").write_text("{")
    for arguments, message in BAD_INPUT:
        assert run_charlm.error(*arguments).startswith(message.format(tmp_path=tmp_path)), arguments


def test_debug_shows_the_traceback(run_charlm: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHARLM_DEBUG", "1")
    with pytest.raises(checkpoint.CheckpointError, match="nowhere is not a run folder"):
        main(["sample", "nowhere"])


def test_a_bug_is_reported_as_one(run_charlm: CommandLine, names: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("wires\ncrossed")

    monkeypatch.setattr(TrainingRun, "start", fail)
    result = run_charlm("train", names)
    assert result.code == 1
    assert result.err == (
        "error: RuntimeError: wires crossed (a bug in charlm: please report it with the output of `charlm info` and "
        "the traceback, which CHARLM_DEBUG=1 shows)\n"
    )


def test_help_and_version(run_charlm: CommandLine) -> None:
    assert run_charlm.output("--version") == f"charlm {charlm.__version__}\n"
    text = run_charlm.output("--help")
    for command in ("train", "sample", "eval", "plot", "bench", "info"):
        assert command in text
        assert "Usage: charlm " + command in run_charlm.output(command, "--help")


def test_a_reader_that_stops_early_is_no_error(run_charlm: CommandLine, names: Path, tmp_path: Path) -> None:
    run_charlm.output("train", names, "--model", "count-bigram", "--out", "run")
    process = subprocess.Popen(
        [sys.executable, "-m", "charlm", "sample", "run", "-n", "50000"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(charlm.__file__).parent.parent)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(timeout=30) == 1
