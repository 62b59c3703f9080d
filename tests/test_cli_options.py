"""The options of every command: what they may be, which go together, and that nothing that is typed is a bug."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import typer
from command_line import CommandLine

from charlm import PRESETS, TrainingConfig, checkpoint
from charlm._rules import RULES, Choice
from charlm.cli.commands import app
from charlm.cli.configurations import check_texts
from charlm.cli.options import as_options, check_together

COMMANDS: Mapping[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]

QUICK = ("--out", "run", "--quiet")


@pytest.fixture
def counts(run_charlm: CommandLine, names: Path) -> str:
    """A run."""
    run_charlm.output("train", names, "--model", "count-bigram", "--smoothing", 1, "--out", "counts")
    return "counts"


# Values


def test_rules_agree_with_the_types_of_a_configuration() -> None:
    for name, hint in get_type_hints(TrainingConfig).items():
        words = tuple(word for word in get_args(hint) if isinstance(word, str))
        rule = RULES.get(name)
        if words and len(words) == len(get_args(hint)):
            assert rule == Choice(words), name
        for preset in PRESETS.values():
            value = getattr(preset, name)
            assert rule is None or value is None or rule.fault(value) is None, name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--steps -5", "Invalid value for '--steps': -5 is not an integer >= 0"),
        ("--steps 0", "--steps must be a positive integer, got 0"),
        ("--seed 99999999999999999999", "'--seed': 99999999999999999999 is not an integer <= 18446744073709551615"),
        ("--split-seed 99999999999999999999", "'--split-seed': 99999999999999999999 is not an integer <= 1844674407"),
        ("--max-grad-norm inf", "Invalid value for '--max-grad-norm': inf is not a positive number"),
        (
            "--context-length 9223372036854775808",
            "'--context-length': 9223372036854775808 is not an integer <= 2147483",
        ),
        (
            "--hidden-dim 1000000000",
            "an MLP with --context-length 3, --embedding-dim 10, --hidden-dim 1000000000 ",
        ),
        (
            "--batch-size 1000000000000",
            "a batch with --batch-size 1000000000000 takes 24 TB of memory",
        ),
        ("--context-length 2000000000", "a text of 50 lines with --context-length 2000000000 takes 100 GB of memory"),
        ("--device meta", "device 'meta' cannot be used: it holds no numbers"),
        ("--warmup 200", "--warmup must be less than --steps 200, got 200"),
        (
            f"--hidden-dim {'9' * 400}",
            "Invalid value for '--hidden-dim': an integer of 1329 bits is not ",
        ),
        ("--softcap 1e-46", "Invalid value for '--softcap': 1e-46 is not a positive number"),
        (
            "--schedule step --milestones 1,2 --decay-factor 1e300",
            "--decay-factor 1e+300 makes the learning rate",
        ),
    ],
)
def test_a_value_that_cannot_be_is_named_before_anything_is_done(
    run_charlm: CommandLine, names: Path, arguments: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("charlm._memory.total_memory", lambda: 64 * 10**9)
    assert message in run_charlm.error("train", names, *arguments.split(), *QUICK)
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("-n -1", "Invalid value for '-n': -1 is not an integer >= 0"),
        ("--max-length 9223372036854775808", "'--max-length': 9223372036854775808 is not an integer <= 2147483647"),
        ("--no-stop --max-length 2147483647", "a text of --max-length 2147483647 characters takes 17.2 GB of memory"),
        ("--max-length 2 --prefix aei", "--max-length must be at least the length of prefix, 3, got 2"),
        ("--temperature nan", "Invalid value for '--temperature': nan is not a finite number >= 0"),
    ],
)
def test_a_value_that_cannot_be_sampled_with(
    run_charlm: CommandLine, counts: str, arguments: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("charlm._memory.total_memory", lambda: 10**9)
    assert message in run_charlm.error("sample", counts, *arguments.split())


def test_memory_that_runs_out_is_no_bug(run_charlm: CommandLine, counts: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: 8 bytes")

    monkeypatch.setattr("charlm.sampler.stream_lines", fail)
    result = run_charlm("sample", counts)
    assert (result.code, result.err) == (
        1,
        "error: memory has run out: a smaller --batch-size, --context-length, --embedding-dim or --hidden-dim takes "
        "less\n",
    )


def test_messages_of_the_python_api_speak_of_options() -> None:
    assert as_options("top_k must be 1, got 0") == "--top-k must be 1, got 0"
    assert as_options("warmup_steps must be less than total_steps=5") == "--warmup must be less than --steps 5"
    assert as_options("text.txt is short: mode='stream' reads it") == "text.txt is short: --mode stream reads it"
    assert as_options("lower learning_rate, or set max_grad_norm") == "lower --learning-rate, or set --max-grad-norm"
    untouched = "my_batch_size/top_k.txt has no model, mode or seed: steps in 'top_k'"
    assert as_options(untouched) == untouched


# Which go together

TOGETHER = [
    ("--model count-bigram --hidden-dim 5", "--hidden-dim goes with --model mlp, not with --model count-bigram"),
    ("--model bigram --softcap 2 --direct", "--direct, --softcap go with --model mlp, not with --model bigram"),
    ("--preset bigram --context-length 2", "--context-length goes with --model mlp, not with --model bigram"),
    ("--smoothing 1", "--smoothing goes with --model count-bigram, not with --model mlp"),
    ("--model bigram --smoothing 1", "--smoothing goes with --model count-bigram, not with --model bigram"),
    (
        "--model count-bigram --steps 5",
        "--steps goes with --model mlp or --model bigram",
    ),
    (
        "--model count-bigram --checkpoint-every 5",
        "--checkpoint-every goes with --model mlp or --model bigram",
    ),
    ("--preset count-bigram --device cpu --seed 1", "--seed, --device go with --model mlp or --model bigram"),
    ("--optimizer sgd --betas 0.8,0.9", "--betas goes with --optimizer adamw, not with --optimizer sgd"),
    ("--preset makemore --eps 1", "--eps goes with --optimizer adamw, not with --optimizer sgd"),
    ("--momentum 0.9", "--momentum goes with --optimizer sgd, not with --optimizer adamw"),
    ("--schedule constant --milestones 5", "--milestones goes with --schedule step, not with --schedule constant"),
    ("--decay-factor 0.5", "--decay-factor goes with --schedule step, not with --schedule linear"),
    ("--split makemore --split-seed 1", "--split-seed goes with --split random, not with --split makemore"),
    ("--mode stream --split random", "--split goes with --mode lines, not with --mode stream"),
    ("--preset eureka --split-seed 1", "--split-seed goes with --mode lines, not with --mode stream"),
    ("--dev d.txt", "--dev and --test go together, but only --dev was given"),
    ("--dev d.txt --test t.txt --split random", "--split goes with one FILE that is split, not with --dev and --test"),
]


@pytest.mark.parametrize(("arguments", "message"), TOGETHER, ids=[arguments for arguments, _ in TOGETHER])
def test_an_option_that_would_be_ignored_is_refused(
    run_charlm: CommandLine, names: Path, arguments: str, message: str
) -> None:
    assert run_charlm.error("train", names, *arguments.split(), *QUICK).startswith(message)
    assert not Path("run").exists()


@pytest.mark.parametrize("preset", PRESETS)
def test_no_preset_has_options_that_do_not_go_together(preset: str) -> None:
    check_together([], vars(PRESETS[preset]))


def test_what_a_preset_has_is_not_what_was_given(run_charlm: CommandLine, names: Path) -> None:
    """The preset's betas mean nothing to sgd, its hidden layer nothing to a bigram: nobody asked for them."""
    run_charlm.output("train", names, "--optimizer", "sgd", "--momentum", 0.5, "--steps", 2, "--out", "sgd")
    run_charlm.output("train", names, "--preset", "eureka", "--model", "bigram", "--steps", 2, "--out", "bigram")
    assert checkpoint.load("bigram").config.model == "bigram"


# Anything

INTEGERS = ["-5", "0", "-1", "1.5", "nan", "", "x", "9223372036854775808", "1" + "0" * 400, "9" * 5000, "-" + "9" * 30]
FLOATS = ["nan", "inf", "-inf", "-1", "1e400", "-1e-300", "", "x", "9" * 400, "0"]
TEXTS = ["", "\udcff", "nonsense", "a\nb", "\0", "x" * 5000]
LISTS = ["", ",", "x", "1", "nan,nan", "-1,-2", "1,1", "inf,0", "9" * 400 + ",1", "1e400,0.5"]
PATHS = ["", "\0", "caf\udce9", "/dev/null", "missing/file", "a" * 5000, "loop", "pipe"]

HOSTILE = {
    **dict.fromkeys(("steps", "context_length", "embedding_dim", "hidden_dim", "seed", "split_seed", "n"), INTEGERS),
    **dict.fromkeys(("limit_vocab", "min_count"), INTEGERS),
    **dict.fromkeys(("warmup_steps", "checkpoint_every", "top_k", "max_length", "threads", "batch_size"), INTEGERS),
    **dict.fromkeys(("learning_rate", "momentum", "eps", "weight_decay", "decay_factor", "max_grad_norm"), FLOATS),
    **dict.fromkeys(("min_length", "top", "trials", "draw_seed", "seeds", "halving"), INTEGERS),
    **dict.fromkeys(("softcap", "smoothing", "temperature", "top_p", "seconds"), FLOATS),
    **dict.fromkeys(("betas", "milestones"), LISTS),
    **dict.fromkeys(("model", "mode", "split", "part", "optimizer", "schedule", "backend", "device"), TEXTS),
    **dict.fromkeys(
        ("preset", "prefix", "backends", "tokens", "encoding", "only", "after", "order", "format", "to"), TEXTS
    ),
    **dict.fromkeys(("suffix", "contains", "regex", "texts"), TEXTS),
    **dict.fromkeys(("path", "run", "runs", "out", "resume", "dev", "test", "plot", "tensorboard"), PATHS),
    **dict.fromkeys(("prefix_file", "ban", "exclude"), PATHS),
}
# What some options may well be.
FINE = {
    **dict.fromkeys(("seed", "split_seed", "draw_seed"), ("0", "-5", "-1", "9223372036854775808")),
    **dict.fromkeys(("n", "warmup_steps", "momentum", "eps", "weight_decay", "smoothing", "temperature"), ("0",)),
    "milestones": ("1",),
    **dict.fromkeys(("min_length", "top"), ("0",)),
    **dict.fromkeys(("prefix", "suffix", "contains", "regex", "texts", "after"), ("",)),
    "out": ("missing/file",),
    "tensorboard": ("missing/file",),
}
SWITCHES = {"quiet", "direct", "stop", "as_json", "log_steps"}
SWITCHES |= {"novel", "unique", "scores", "count", "interactive", "each"}

# What else an option of `train` needs to mean something.
NEEDED = {
    "smoothing": ("--model", "count-bigram"),
    **dict.fromkeys(("momentum",), ("--optimizer", "sgd")),
    **dict.fromkeys(("milestones", "decay_factor"), ("--schedule", "step")),
    "dev": ("--test", "names.txt"),
    "test": ("--dev", "names.txt"),
}


def cases() -> Iterator[tuple[str, str]]:
    for name, command in COMMANDS.items():
        for parameter in command.params:
            if parameter.name not in SWITCHES and parameter.name != "help":
                yield name, parameter.name


def test_every_option_is_among_those_below() -> None:
    assert {option for _, option in cases()} == set(HOSTILE)


def arguments_of(command: str, option: str, value: str) -> list[str]:
    parameter = next(p for p in COMMANDS[command].params if p.name == option)
    flags = parameter.opts if parameter.opts[0].startswith("-") else []
    given = [flags[0], value] if flags else ["--", value]
    if command == "train":
        model = () if option == "smoothing" else ("--model", "bigram", "--backend", "eager")
        if option in ("context_length", "embedding_dim", "hidden_dim", "softcap"):
            model = ("--model", "mlp", "--backend", "eager")
        if option in ("model", "preset", "backend"):
            model = ()
        steps = () if option in ("smoothing", "resume", "steps") else ("--steps", "2")
        if option == "resume":
            return ["train", "--quiet", *given]
        out = () if option == "out" else ("--out", "out")
        data = () if option == "path" else ("names.txt",)
        return ["train", "--quiet", *model, *steps, *out, *NEEDED.get(option, ()), *data, *given]
    if command == "sweep":
        if option == "resume":
            return ["sweep", "--quiet", *given]
        model = "mlp" if option in ("context_length", "embedding_dim", "hidden_dim", "softcap") else "bigram"
        options = {"model": model, "steps": "2", "out": "out", "seeds": "2", "backend": "eager"}
        kept = [part for name, own in options.items() if name != option for part in (f"--{name}", own)]
        draws = ("--softcap", "uniform:1:9", "--model", "mlp") if option in ("trials", "draw_seed") else ()
        trials = ("--trials", "2") if option == "draw_seed" else ()
        data = () if option == "path" else ("names.txt",)
        return ["sweep", "--quiet", *kept, *draws, *trials, *NEEDED.get(option, ()), *data, *given]
    if command == "export":
        to = () if option == "to" else ("--to", "c")
        return [command, *to, *(() if option == "run" else ("counts",)), *given]
    if command == "encode":
        return ["encode", "--quiet", *NEEDED.get(option, ()), *(() if option == "path" else ("names.txt",)), *given]
    if command in ("sample", "score", "eval", "plot"):
        needed = ("--after", "a") if command == "plot" and option in ("temperature", "order") else ()
        return [command, *(() if option in ("run", "runs") else ("counts",)), *needed, *given]
    return [command, "--backends", "eager", "--seconds", "0.001", *given]


@pytest.mark.parametrize(("command", "option"), list(cases()), ids=lambda value: value)
def test_nothing_that_is_typed_is_a_bug(run_charlm: CommandLine, counts: str, command: str, option: str) -> None:
    os.mkfifo("pipe")
    os.symlink("loop", "loop")
    # Where one file is written, no folders are made for it.
    fine = () if (command, option) == ("export", "out") else FINE.get(option, ())
    for value in HOSTILE[option]:
        result = run_charlm(*arguments_of(command, option, value))
        if value in fine:
            assert result.code == 0, (value, result.err)
        else:
            assert result.code == 2, (value[:50], result.code, result.err)
            assert result.err.startswith("error: "), value[:50]
            assert result.err.count("\n") == 1, value[:50]
            assert len(result.err) < 6000, value[:50]
            assert "bug in charlm" not in result.err
            assert not Path("out").exists(), value[:50]
        shutil.rmtree("out", ignore_errors=True)


def test_a_pipe_is_not_for_several_processes(names: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in ("-", "/dev/stdin", str(tmp_path / "pipe")):
        with pytest.raises(ValueError, match=f"^{path} is not a file, and cannot be read by 2 processes$"):
            check_texts([str(names), path], resuming=False, processes=2)
        check_texts([path], resuming=False, processes=1)
    check_texts([str(names)], resuming=True, processes=2)
