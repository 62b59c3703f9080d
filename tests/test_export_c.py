"""charlm.export.to_c: a program that compiles without a warning, has the model's probabilities, and draws from them."""

from __future__ import annotations

import copy
import math
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import torch
from exported_models import LETTERS, context_of, logits_in_double, model_log_probs, models, of_bytes

import charlm
from charlm import MLP, CountBigram, NeuralBigram, Vocabulary
from charlm.export import to_c
from charlm.sampler import probabilities

COMPILER = [*shlex.split(os.environ.get("CC", "cc")), "-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-O1"]
COMPILER += ["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
every_model = pytest.mark.parametrize("name", models())


class Program:
    """A model's program, which ends with a report where it does what C leaves undefined."""

    def __init__(self, source: str, folder: Path) -> None:
        self.path = folder / "model"
        (folder / "model.c").write_text(source)
        command = [*COMPILER, str(folder / "model.c"), "-lm", "-o", str(self.path)]
        compiled = subprocess.run(command, capture_output=True, text=True)
        assert (compiled.returncode, compiled.stderr) == (0, ""), compiled.stderr

    def run(self, *arguments: object) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run([self.path, *map(str, arguments)], capture_output=True)

    def output(self, *arguments: object) -> str:
        result = self.run(*arguments)
        assert (result.returncode, result.stderr) == (0, b"")
        return result.stdout.decode()

    def texts(self, *arguments: object) -> list[str]:
        return self.output(*arguments).split("\n")[:-1]

    def table(self, *arguments: object) -> list[tuple[str, float]]:
        """The symbols and numbers of --next or --score."""
        lines = [line.split("\t") for line in self.texts(*arguments)]
        return [(re.sub(r"\\x(..)", lambda code: chr(int(code[1], 16)), shown), float(x)) for shown, x in lines]


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Program]:
    """Programs by the name of their model, each compiled when it is first asked for."""

    class Compiled(dict[str, Program]):
        def __missing__(self, name: str) -> Program:
            self[name] = Program(to_c(*models()[name]), tmp_path_factory.mktemp("program"))
            return self[name]

    return Compiled()


def beginnings(vocabulary: Vocabulary) -> list[str]:
    """Short texts in which every character is; no argument of a program has NUL in it."""
    characters = "".join(c for c in vocabulary.characters if c != "\0")
    return ["", characters[-1], *(characters[i : i + 4] for i in range(0, len(characters), 4)), characters]


@every_model
def test_probabilities_are_the_models(name: str, programs: dict[str, Program]) -> None:
    model, vocabulary = models()[name]
    texts = beginnings(vocabulary)
    asked: list[tuple[str, tuple[object, ...], float, int | None]] = [(text, (), 1.0, None) for text in texts]
    asked += [
        (texts[2], ("--temperature", "0.7", "--top-k", 4), 0.7, 4),
        (texts[2], ("--temperature", 2), 2.0, None),
        (texts[2], ("--temperature", "0", "--top-k", 10**9), 0.0, None),
    ]
    for text, options, temperature, top_k in asked:
        logits = logits_in_double(model, context_of(text, model, vocabulary).unsqueeze(0))
        all_of_them = zip(vocabulary.characters, probabilities(logits, temperature, top_k)[0].tolist(), strict=True)
        expected = {character: p for character, p in all_of_them if p > 0.0}
        shown = programs[name].table("--next", text, *options)
        assert [p for _, p in shown] == pytest.approx(sorted(expected.values(), reverse=True), rel=1e-8)
        assert dict(shown) == pytest.approx(expected, rel=1e-8)


@every_model
def test_scores_are_log_probabilities(name: str, programs: dict[str, Program]) -> None:
    model, vocabulary = models()[name]
    for text in beginnings(vocabulary):
        contexts = torch.stack([context_of(text[:i], model, vocabulary) for i in range(len(text) + 1)])
        targets = [*vocabulary.encode(text).tolist(), vocabulary.boundary]
        log_probs = logits_in_double(model, contexts).log_softmax(1)[range(len(targets)), targets].tolist()
        *shown, (total, all_of_it) = programs[name].table("--score", text)
        assert [symbol for symbol, _ in shown] == [*text, vocabulary.characters[vocabulary.boundary]]
        assert [x for _, x in shown] == pytest.approx(log_probs, rel=1e-7, abs=1e-8)
        assert (total, all_of_it) == ("total", pytest.approx(sum(log_probs), rel=1e-7))


@every_model
def test_weights_are_exact(name: str) -> None:
    model, vocabulary = models()[name]
    source = to_c(model, vocabulary)
    for key, tensor in model.state_dict().items():
        block = re.search(rf"^static const \w+ {key}\S[^\n]* = \{{\n(.*?)^\}};$", source, re.MULTILINE | re.DOTALL)
        assert block is not None
        numbers = re.findall(r"-?(?:0x[\da-f.]+p[+-]\d+|\d+)f?(?=[,}])", block[1])
        values = [float.fromhex(x.removesuffix("f")) if "x" in x else int(x) for x in numbers]
        assert values == tensor.flatten().tolist()


@every_model
def test_a_seed_gives_the_texts_of_charlm_sample(name: str, programs: dict[str, Program]) -> None:
    """To the last one where the model computes in float64 too."""
    model, vocabulary = models()[name]
    model = copy.deepcopy(model).double()
    boundary, prefix = vocabulary.characters[vocabulary.boundary], vocabulary.characters[5] * 5
    for flags, options in (
        ((), {}),
        (("--temperature", "0.5", "--top-k", 3), {"temperature": 0.5, "top_k": 3}),
        (("--prefix", prefix), {"prefix": prefix}),
        (("--no-stop", "--prefix", boundary), {"stop": False, "prefix": boundary}),
        (("--temperature", 0), {"temperature": 0.0}),
    ):
        for n, seed in ((20, 0), (3, -(2**63)), (5, 2**64 - 1)):
            expected = [text[:40] for text in charlm.sample(model, vocabulary, n, seed=seed, **options)]
            drawn = programs[name].output(n, *flags, "--max-length", 40, "--seed", seed)
            assert drawn == "".join(f"{text}\n" for text in expected), (flags, seed)


def test_texts_of_float32_differ_where_rounding_decides_only(programs: dict[str, Program]) -> None:
    expected = [text[:40] for text in charlm.sample(*models()["mlp"], 1000, seed=1)]
    drawn = programs["mlp"].texts(1000, "--max-length", 40, "--seed", 1)
    assert sum(one == other for one, other in zip(drawn, expected, strict=True)) >= 990


@every_model
def test_characters_are_drawn_as_often_as_they_are_probable(name: str, programs: dict[str, Program]) -> None:
    """Pearson's chi-squared; the limit is six standard deviations of a good draw."""
    model, vocabulary = models()[name]
    n = 20_000
    prefix = vocabulary.characters[4]
    drawn = programs[name].output(n, "--seed", 5, "--prefix", prefix, "--max-length", 2, "--no-stop")
    texts = [drawn[i : i + 3] for i in range(0, 3 * n, 3)]
    assert all(text[0] == prefix and text[2] == "\n" for text in texts)
    context = context_of(prefix, model, vocabulary).unsqueeze(0)
    expected = n * logits_in_double(model, context).softmax(1)[0]
    observed = torch.zeros(len(vocabulary), dtype=torch.float64)
    for text in texts:
        observed[vocabulary.characters.index(text[1])] += 1
    possible = expected > 0
    assert not observed[~possible].any()
    statistic = ((observed - expected)[possible] ** 2 / expected[possible]).sum().item()
    degrees = int(possible.sum()) - 1
    assert statistic < degrees + 6 * math.sqrt(2 * degrees)


def test_without_a_seed_there_are_ten_texts(programs: dict[str, Program]) -> None:
    assert len(programs["mlp"].texts()) == 10
    assert programs["mlp"].output(0) == ""
    assert programs["mlp"].output("--help").startswith("Draws N new texts")


def test_a_vocabulary_of_the_boundary_alone_has_empty_texts(tmp_path: Path) -> None:
    program = Program(to_c(MLP(1, 2, 1, 1), Vocabulary(".")), tmp_path)
    assert program.output(3, "--seed", 1) == "\n\n\n"
    assert program.table("--next", ".") == [(".", 1.0)]
    assert program.table("--score", "") == [(".", 0.0), ("total", 0.0)]


def test_the_source_is_plain_ascii_without_trigraphs() -> None:
    source = to_c(*models()["any characters"])
    assert source.isascii()
    assert "??" not in source
    assert max(map(len, source.splitlines())) <= 120
    assert '{"\\360\\237\\230\\200", 4}, /* U+1F600 */' in source
    assert '{"\\?", 1},' in source


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x"], 'N must be an integer from 0 to 9223372036854775807, got "x"'),
        (["-5"], "-5 is no option, or needs a value: see --help"),
        (["--seed"], "--seed is no option, or needs a value: see --help"),
        (["--depth", "5"], "--depth is no option: see --help"),
        (["--seed", "1.5"], '--seed must be an integer from 0 to 18446744073709551615, got "1.5"'),
        (["--seed", str(2**64)], f'--seed must be an integer from 0 to 18446744073709551615, got "{2**64}"'),
        (["--seed", str(-(2**63) - 1)], "--seed without its sign must be an integer from 0 to 9223372036854775808"),
        (["--seed", " 5"], '--seed must be an integer from 0 to 18446744073709551615, got " 5"'),
        (["--temperature", "nan"], '--temperature must be a finite number >= 0, got "nan"'),
        (["--temperature", "-1"], '--temperature must be a finite number >= 0, got "-1"'),
        (["--temperature", ""], '--temperature must be a finite number >= 0, got ""'),
        (["--top-k", "0"], "--top-k must be an integer from 1 to"),
        (["--max-length", "0"], "--max-length must be an integer from 1 to 2147483647"),
        (["--prefix", "abé"], '"é" begins with a character that is not in the vocabulary'),
        (["--next", "xyz"], '"xyz" begins with a character that is not in the vocabulary'),
        (["--prefix", "a."], "--prefix has the boundary in it, where a text ends"),
        (["--prefix", "abc", "--max-length", "2"], "--max-length must be at least the length of --prefix"),
    ],
)
def test_bad_arguments_are_named(arguments: list[str], message: str, programs: dict[str, Program]) -> None:
    result = programs["mlp"].run(*arguments)
    assert result.returncode == 2
    (line,) = result.stderr.decode().splitlines()
    assert line.startswith(f"error: {message}")


def test_output_that_nobody_takes_is_an_error(programs: dict[str, Program]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        # What Python does about a broken pipe, to ignore the signal, is kept for the program.
        command = [programs["mlp"].path, "1000000000"]
        assert subprocess.run(command, stdout=writer, restore_signals=False).returncode == 1
    finally:
        os.close(writer)


def test_logits_that_overflow_are_an_error(tmp_path: Path) -> None:
    model = MLP(9, 1, 1, 2, dtype=torch.float64)
    with torch.no_grad():
        model.weight2.fill_(1e308)
        model.bias2.fill_(1e308)
        model.bias1.fill_(9.0)
    program = Program(to_c(model, LETTERS), tmp_path)
    for arguments in (["5"], ["--next", "a"], ["--score", "a"]):
        result = program.run(*arguments)
        assert (result.returncode, result.stderr) == (2, b"error: the model's logits are not finite\n")


def test_what_is_no_model_of_charlm_is_refused() -> None:
    class Other(MLP):
        pass

    with pytest.raises(TypeError, match=r"^model must be CountBigram, NeuralBigram or MLP, got Other$"):
        to_c(Other(9, 3, 2, 4), LETTERS)
    with pytest.raises(TypeError, match=r"^vocabulary must be Vocabulary, got str$"):
        to_c(NeuralBigram(9), "abc")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^vocabulary must have the model's 4 tokens, got 9$"):
        to_c(NeuralBigram(4), LETTERS)


def test_words_are_refused() -> None:
    vocabulary = Vocabulary("abcdefgh")
    vocabulary.tokens_are = "words"
    with pytest.raises(ValueError, match=r"^a C program needs a vocabulary of characters or bytes, got one of words: "):
        to_c(NeuralBigram(9), vocabulary)


def test_unknown_characters_have_a_token_where_the_model_has_one(tmp_path: Path) -> None:
    vocabulary = Vocabulary("ab\ufffd")
    vocabulary.unknown = vocabulary.symbols.index("\ufffd")
    program = Program(to_c(MLP(4, 3, 2, 4), vocabulary), tmp_path)
    expected = program.output("--score", "a\ufffdb\ufffd")
    for text in ("axb?", "aéb中", "a😀b\U0010ffff"):
        assert program.output("--score", text) == expected
    assert program.output("--score", "ab") != expected


def test_bytes_are_the_utf8_of_texts(tmp_path: Path) -> None:
    model, vocabulary = of_bytes()
    program = Program(to_c(model, vocabulary), tmp_path)
    tokens = [10, 10, *"aé中😀".encode(), 10]
    log_probs = [model_log_probs(model, tokens[i - 2 : i])[tokens[i]] for i in range(2, len(tokens))]
    lines = program.output("--score", "aé中😀").splitlines()
    assert [line.split("\t")[0] for line in lines[:4]] == ["a", "\\xc3", "\\xa9", "\\xe4"]
    assert [float(line.split("\t")[1]) for line in lines] == pytest.approx([*log_probs, sum(log_probs)], rel=1e-7)
    drawn = program.run(1, "--seed", 1, "--prefix", "é", "--no-stop", "--max-length", 500).stdout
    assert drawn.startswith("é".encode())
    assert len(drawn) == 501
    assert len(set(drawn)) > 150


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_refused(value: float) -> None:
    model = MLP(9, 3, 2, 4)
    with torch.no_grad():
        model.weight1[1, 2] = value
    with pytest.raises(ValueError, match=r"^the model's weight1 is not finite: was it trained to a finite loss\?$"):
        to_c(model, LETTERS)


def test_counts_below_zero_are_refused() -> None:
    model = CountBigram(9)
    model.counts[3, 4] = -1
    with pytest.raises(ValueError, match=r"^the model's counts has a number below 0$"):
        to_c(model, LETTERS)
