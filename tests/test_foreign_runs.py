"""Run folders from anywhere: damaged or hostile. What is wrong is one line, before memory is taken."""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from command_line import SMALL_MLP, CommandLine

from benchmarks.peak_memory import peak_from_here
from charlm.cli import main

OPTIONS = (*SMALL_MLP, "--optimizer", "adamw", "--steps", 4, "--quiet")
TENSOR_FILES = ("model.safetensors", "optimizer.safetensors")


@pytest.fixture(scope="module")
def trained(fifty_names: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "names.txt").write_text(fifty_names)
    assert main(["train", str(folder / "names.txt"), *map(str, OPTIONS), "--out", str(folder / "run")]) == 0
    return folder / "run"


@pytest.fixture
def run(run_charlm: CommandLine, trained: Path) -> Path:
    """A copy of that run in the working folder."""
    return shutil.copytree(trained, Path("run"))


def rewrite(run: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes config.json."""
    values = json.loads((run / "config.json").read_text())
    change(values)
    (run / "config.json").write_text(json.dumps(values))


def header(content: bytes) -> tuple[dict[str, Any], bytes]:
    """The header of a safetensors file, and its data."""
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end]), content[end:]


def with_header(values: Any, data: bytes) -> bytes:
    text = values if isinstance(values, bytes) else json.dumps(values).encode()
    return len(text).to_bytes(8, "little") + text + data


def rewrite_header(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    values, data = header(path.read_bytes())
    change(values)
    path.write_bytes(with_header(values, data))


def set_step(run: Path, step: object) -> None:
    for name in TENSOR_FILES:
        rewrite_header(run / name, lambda values: values["__metadata__"].update(step=str(step)))


def set_tensor(path: Path, name: str, value: float) -> None:
    """Fills a tensor of a safetensors file."""
    tensors = safetensors.torch.load_file(path)
    metadata = header(path.read_bytes())[0]["__metadata__"]
    tensors[name].fill_(value)
    safetensors.torch.save_file(tensors, path, metadata=metadata)


# What a file says


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(training=[]), "training must be an object, got []"),
        (lambda c: c.update(data={"tokens": None, "sha256": ""}), "data.tokens must be int, got None"),
        (lambda c: c.update(data={"tokens": 1}), "data has no 'sha256'"),
        (lambda c: c.update(data=3), "data must be an object or None, got 3"),
        (lambda c: c.update(notes=""), "it has an unknown key 'notes', with the value ''"),
        (lambda c: c.update(trained_in_steps="yes"), "trained_in_steps must be bool, got 'yes'"),
        (lambda c: c["model"].update(device="cuda"), "model has an unknown key 'device', with the value 'cuda'"),
        (lambda c: c["model"].update(backend="eager"), "model has an unknown key 'backend', with the value 'eager'"),
        (lambda c: c["model"].update(kind=["mlp"]), "model.kind must be one of count-bigram, bigram, mlp, got ['mlp']"),
        (lambda c: c["model"].update(hidden_dim=4.0), "model.hidden_dim must be int, got 4.0"),
        (lambda c: c["model"].update(hidden_dim=True), "model.hidden_dim must be int, got True"),
        (lambda c: c["model"].update(softcap="1"), "model.softcap must be float or None, got '1'"),
        (lambda c: c["model"].update(direct=0), "model.direct must be bool, got 0"),
        (lambda c: c["training"].update(steps=True), "steps must be int, got True"),
        (lambda c: c["training"].update(learning_rate=None), "learning_rate must be float, got None"),
        (lambda c: c["training"].update(betas=[0.9]), "betas must be tuple[float, float], got (0.9,)"),
        (lambda c: c["training"].update(path={}), "path must be str or None, got {}"),
    ],
)
def test_a_value_of_the_wrong_type_is_named(
    run_charlm: CommandLine, run: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    rewrite(run, change)
    for command in (["sample", "run"], ["eval", "run"], ["plot", "run"], ["train", "--resume", "run"]):
        assert run_charlm.error(*command) == f"run/config.json is damaged: {message}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "it is nested too deeply"),
        ('{"format": ' + "[" * 30 + "]" * 30 + "}", "it is nested too deeply"),
        ('{"a": 1, "a": 1}', "the key 'a' is there twice"),
        ('{"a": NaN}', "NaN is not a number of JSON"),
        ('{"a": -Infinity}', "-Infinity is not a number of JSON"),
        ('{"a": 1e999}', "the number 1e999 does not fit into 64 bits"),
        (f'{{"a": {"9" * 400}}}', "of 400 characters does not fit into 64 bits"),
        ('{"a": 18446744073709551616}', "the integer 18446744073709551616 of 20 characters does not fit into 64 bits"),
        ('{"a": -9223372036854775809}', "of 20 characters does not fit into 64 bits"),
        ('{"a": "\udcff"}', "'utf-8' codec can't decode"),
    ],
)
def test_json_that_is_none_is_explained(run_charlm: CommandLine, run: Path, text: str, message: str) -> None:
    (run / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    line = run_charlm.error("sample", "run")
    assert line.startswith("run/config.json is not JSON: ")
    assert message in line
    assert len(line) < 300


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"[" * 1000 + b"]" * 1000, "line 5, is not JSON: it is nested too deeply"),
        (b'{"step": NaN}', "line 5, is not JSON: NaN is not a number of JSON"),
        (b'{"step": 1, "step": 2}', "line 5, is not JSON: the key 'step' is there twice"),
        (b'{"step": true}', "line 5, is not a record with an integer 'step'"),
        (b'{"step": -1}', "line 5, is not a record with an integer 'step'"),
        (b'{"step": 5, "loss": "low"}', "line 5: loss must be float or None, got 'low'"),
        (b'{"step": 5, "dev": []}', "line 5: dev must be float or None, got []"),
        (b" " * 70_000, "line 5, is longer than a record can be (65536 bytes)"),
        (b'{"step": 5}', " has more than the 4 records that the steps of the run can have"),
    ],
)
def test_a_record_that_is_none_is_named(run_charlm: CommandLine, run: Path, line: bytes, message: str) -> None:
    with open(run / "metrics.jsonl", "ab") as file:
        file.write(line + b"\n")
    assert message in run_charlm.error("plot", "run")
    if "more than" not in message:
        assert message in run_charlm.error("train", "--resume", "run")


@pytest.mark.parametrize("name", TENSOR_FILES)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: h.update(__metadata__=None), "__metadata__ must be an object of strings, got None"),
        (lambda h: h.update(__metadata__={"step": 4}), "__metadata__ must be an object of strings, got {'step': 4}"),
        (lambda h: h.update(a=None), "tensor 'a' must be an object, got None"),
        (lambda h: h.update(a={}), "tensor 'a' has no 'dtype'"),
        (
            lambda h: h.update(a={"dtype": "F8_E4M3", "shape": [1], "data_offsets": [0, 1]}),
            "tensor 'a'.dtype must be 'F64' or 'F32' or 'BF16' or 'F16' or 'I64' or 'I32' or 'I16' or 'U8', got "
            "'F8_E4M3'",
        ),
        (
            lambda h: h.update(a={"dtype": "F32", "shape": [10**9] * 3, "data_offsets": [0, 4]}),
            "tensor 'a' of shape (1000000000, 1000000000, 1000000000) and dtype F32 has the offsets 0, 4",
        ),
        (
            lambda h: h.update(a={"dtype": "F32", "shape": [-1], "data_offsets": [4, 0]}),
            "tensor 'a' of shape (-1,) and dtype F32 has the offsets 4, 0",
        ),
        (
            lambda h: h.update(a={"dtype": "F32", "shape": [0, 2**63 - 1], "data_offsets": [0, 0]}),
            "tensor 'a' has the shape (0, 9223372036854775807)",
        ),
        (
            lambda h: h.update(a={"dtype": "U8", "shape": [10**15], "data_offsets": [0, 10**15]}),
            "its header describes a file of 10000000000",
        ),
    ],
)
def test_a_header_that_lies_is_explained(
    run_charlm: CommandLine, run: Path, name: str, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    rewrite_header(run / name, change)
    line = run_charlm.error("train", "--resume", "run")
    assert line.startswith(f"run/{name} is truncated or not a safetensors file: {message}")


@pytest.mark.parametrize("step", ["4e0", "-4", "٤", "1" + "0" * 400, ""])
def test_a_step_that_is_no_number_is_named(run_charlm: CommandLine, run: Path, step: str) -> None:
    set_step(run, step)
    line = run_charlm.error("sample", "run")
    assert line.startswith("run/model.safetensors was not written by charlm: its metadata has no format and step, but ")


@pytest.mark.parametrize("value", [float("inf"), float("nan"), -4.0, 3.5, 3.0, 5.0])
def test_an_optimizer_that_counts_other_steps_is_refused(run_charlm: CommandLine, run: Path, value: float) -> None:
    set_tensor(run / "optimizer.safetensors", "optimizer.bias1.step", value)
    assert run_charlm.error("train", "--resume", "run", "--steps", 9) == (
        f"run/optimizer.safetensors is damaged: optimizer state 'bias1.step' must be 4, the steps done, got {value}"
    )


def test_an_optimizer_counts_as_far_as_a_float32_can() -> None:
    from charlm.trainer import _check_steps

    for step, count in [(2**24 - 1, 2**24 - 1), (2**24, 2**24), (2**25 + 6, 2**24), (2**25 + 6, 2**25 + 4)]:
        _check_steps("step", torch.tensor(float(count)), step)
    for count in (2**24 - 1, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="optimizer state 'step' must be 16777216"):
            _check_steps("step", torch.tensor(float(count)), 2**24)


# Sizes


@pytest.fixture
def little_memory() -> Callable[[], int]:
    """How many bytes of memory this process has taken at most, beyond what it had when the test began."""
    return peak_from_here() if sys.platform == "linux" else lambda: 0


def test_sizes_are_compared_before_memory_is_taken(
    run_charlm: CommandLine, run: Path, little_memory: Callable[[], int]
) -> None:
    """Of a model with 10^7 hidden units the weights alone are 880 MB."""
    rewrite(run, lambda c: c["model"].update(hidden_dim=10**7))
    message = "run/model.safetensors does not hold the model of config.json: 'weight1' has the shape (4, 6), not (10000"
    for command in (["sample", "run"], ["eval", "run"], ["train", "--resume", "run"]):
        assert run_charlm.error(*command).startswith(message)
    rewrite(run, lambda c: c["model"].update(hidden_dim=2**31 - 1))
    assert "an MLP with context_length=3, embedding_dim=2, hidden_dim=2147483647 takes" in run_charlm.error(
        "sample", "run"
    )
    rewrite(run, lambda c: c["model"].update(hidden_dim=2**63))
    assert "hidden_dim must be an integer <= 2147483647, got 9223372036854775808" in run_charlm.error("sample", "run")
    assert little_memory() < 100e6


@pytest.mark.parametrize("name", ["config.json", *TENSOR_FILES, "metrics.jsonl"])
def test_a_file_of_a_terabyte_is_not_read(
    run_charlm: CommandLine, run: Path, name: str, little_memory: Callable[[], int]
) -> None:
    os.truncate(run / name, 2**40)
    line = run_charlm.error(*(["plot", "run"] if name == "metrics.jsonl" else ["train", "--resume", "run"]))
    assert line.startswith(f"run/{name}")
    assert little_memory() < 100e6


def test_a_step_beyond_all_counters_is_refused_at_once(run_charlm: CommandLine, run: Path) -> None:
    set_step(run, 10**9)
    assert run_charlm.error("train", "--resume", "run") == (
        "run is at step 1,000,000,000 already, past --steps 4: it goes on with more steps only"
    )
    # Drawing the batches of all steps before would take minutes.
    line = run_charlm.error("train", "--resume", "run", "--steps", 10**9 + 1)
    assert line == (
        "run/optimizer.safetensors is damaged: optimizer state 'embedding.step' must be 1000000000, the steps done, "
        "got 4.0"
    )
    for parameter in ("embedding", "weight1", "bias1", "weight2", "bias2"):
        set_tensor(run / "optimizer.safetensors", f"optimizer.{parameter}.step", 1e9)
    line = run_charlm.error("train", "--resume", "run", "--steps", 10**9 + 1)
    assert line == (
        "run/optimizer.safetensors is damaged: batches state 'start' must be in 999868928 .. step=1000000000, got 0"
    )


def test_data_that_never_ends_is_not_read(run_charlm: CommandLine, run: Path) -> None:
    rewrite(run, lambda c: c["training"].update(path="/dev/zero"))
    for command in (["eval", "run"], ["train", "--resume", "run", "--steps", 9]):
        assert run_charlm.error(*command) == "/dev/zero is a device, not a file or a pipe"


# What is no file


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_device_a_pipe_and_a_loop_in_the_place_of_a_file(run_charlm: CommandLine, run: Path, name: str) -> None:
    path = run / name
    path.unlink()
    path.symlink_to("/dev/zero")
    assert run_charlm.error("sample", "run") == f"run/{name} is not a regular file"
    path.unlink()
    os.mkfifo(path)
    assert run_charlm.error("sample", "run") == f"run/{name} is not a regular file"
    path.unlink()
    path.mkdir()
    assert run_charlm.error("sample", "run") == f"run/{name}: Is a directory"
    path.rmdir()
    path.symlink_to(name)
    assert run_charlm.error("sample", "run") == f"run/{name}: Too many levels of symbolic links"


# Fuzz

DAMAGES, SEED = 240, 1

ODD_VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 2, 10**7, 2**31, 2**63, -(2**63), 0.5, -0.0, 1e308, 1e-320, "", "cuda", "\0"),
    *("\ud800", "x" * 10_000, [], [[]], [1, 2], {}, {"a": {"a": {}}}, "mlp", "full", "random", ".", "meta"),
]


def mutated_json(values: Any, rng: random.Random) -> bytes:
    """A JSON text with one value or key changed, or bytes of it."""
    paths: list[tuple[Any, Any]] = []

    def collect(value: Any) -> None:
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            paths.append((value, key))
            if isinstance(item, (dict, list)):
                collect(item)

    values = json.loads(json.dumps(values))
    collect(values)
    owner, key = rng.choice(paths)
    kind = rng.randrange(5)
    if kind < 3 or isinstance(owner, list):
        owner[key] = rng.choice(ODD_VALUES)
    elif kind == 3:
        del owner[key]
    else:
        owner[rng.choice(["device", "dtype", "generator", "__metadata__", "a\nb", ""])] = owner.pop(key)
    return json.dumps(values).encode()


def mutated_bytes(content: bytes, rng: random.Random, end: int) -> bytes:
    """Bytes changed, cut off, inserted or removed, among the first `end` of them."""
    changed = bytearray(content)
    at = rng.randrange(end)
    kind = rng.randrange(5)
    if kind == 0:
        del changed[at:]
    elif kind == 1:
        del changed[at : at + rng.randrange(1, 9)]
    elif kind == 2:
        changed[at:at] = rng.choice([b"\0", b"}", b'"', b"[" * 500, b"1e999", b"null", b'"a":1,'])
    elif kind == 3:
        changed[at] = rng.randrange(256)
    else:
        changed[at : at + 8] = rng.randbytes(8)
    return bytes(changed)


def test_no_damage_is_taken_for_a_bug(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Hundreds of files damaged at random: a command works, or says in one line what is wrong with which."""
    rng = random.Random(SEED)
    original = {path.name: path.read_bytes() for path in run.iterdir()}
    resume = ["train", "--resume", "run", "--steps", "4", "-q"]
    commands = (["sample", "run", "-n", "1", "--seed", "1"], ["eval", "run"], resume)
    refused = 0
    for i in range(DAMAGES):
        name = rng.choice(list(original))
        content = original[name]
        if name == "config.json":
            damaged = mutated_json(json.loads(content), rng) if i % 3 else mutated_bytes(content, rng, len(content))
        elif name == "metrics.jsonl":
            damaged = mutated_bytes(content, rng, len(content))
        elif i % 3:
            values, data = header(content)
            damaged = with_header(mutated_json(values, rng), data)
        else:
            damaged = mutated_bytes(content, rng, len(content) - len(header(content)[1]))
        (run / name).write_bytes(damaged)
        command = resume if name in ("metrics.jsonl", "optimizer.safetensors") else rng.choice(commands)
        code = main(command)
        out, err = capsys.readouterr()
        where = f"damage {i} of {name}, {command}: {err[-600:]}"
        assert code in (0, 2), where
        if code == 2:
            refused += 1
            assert err.startswith("error: "), where
            assert err.count("\n") == 1, where
            assert out == "", where
        for path in list(run.iterdir()):
            if path.name not in original:
                path.unlink()
        for other, whole in original.items():
            (run / other).write_bytes(whole)
    assert refused > DAMAGES // 2
