"""`charlm sample`: its options are those of `charlm.sample`; what it prints, and a conversation with it."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from command_line import CommandLine

import charlm


@pytest.fixture
def run(run_charlm: CommandLine, names: Path) -> Any:
    """A run in the folder "run", loaded."""
    run_charlm.output("train", names, "--model", "count-bigram", "--smoothing", 0.2, "--out", "run")
    return charlm.load("run")


def test_every_option_is_that_of_python(run_charlm: CommandLine, run: Any, tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_text("ai  \n\nss\n")
    (tmp_path / "not.txt").write_text("mika\n")
    (tmp_path / "begin.txt").write_text("ta\nk\n")
    for arguments, options in [
        ("--novel --unique", {"novel": True, "unique": True}),
        ("--min-length 3 --max-length 6", {"min_length": 3, "max_length": 6}),
        ("--top-p 0.7 --suffix n --suffix st", {"top_p": 0.7, "suffix": ["n", "st"]}),
        ("--contains a --contains el", {"contains": ["a", "el"]}),
        ("--regex [aeiou].*", {"regex": "[aeiou].*"}),
        ("--ban bad.txt --exclude not.txt", {"ban": ["ai", "ss"], "exclude": ["mika"]}),
        ("--prefix an --prefix-file begin.txt", {"prefix": ["an", "ta", "k"]}),
        ("--prefix an", {"prefix": "an"}),
        ("--no-stop --max-length 5", {"stop": False, "max_length": 5}),
    ]:
        out = run_charlm.output("sample", "run", "-n", 6, "--seed", 3, *arguments.split())
        assert out.splitlines() == run.sample(6, seed=3, **options), arguments


def test_scores_and_json_say_more_of_each_text(run_charlm: CommandLine, run: Any, names: Path) -> None:
    known = {*names.read_text().split(), ""}
    scored = run.sample(30, seed=3, max_length=5, scores=True)
    arguments = ("sample", "run", "-n", 30, "--seed", 3, "--max-length", 5)
    lines = run_charlm.output(*arguments, "--scores").splitlines()
    assert lines == [f"{text}\t{log_prob:.4f}" for text, log_prob in scored]
    objects = [json.loads(line) for line in run_charlm.output(*arguments, "--json").splitlines()]
    assert [item["text"] for item in objects] == [text for text, _ in scored]
    assert [item["log_prob"] for item in objects] == pytest.approx([log_prob for _, log_prob in scored])
    assert [item["novel"] for item in objects] == [text not in known for text, _ in scored]
    names.write_text("other\n" * 9)
    objects = [json.loads(line) for line in run_charlm.output(*arguments, "--json").splitlines()]
    assert {item["novel"] for item in objects} == {None}


def test_count_says_how_many_in_their_place(run_charlm: CommandLine, run: Any) -> None:
    out = run_charlm.output("sample", "run", "-n", 300, "--count", "--novel")
    found = re.fullmatch(r"300 texts from (\d+) draws in \d+\.\d\d s: [\d,]+ texts/s\n", out)
    assert found is not None
    assert int(found[1]) >= 300


def test_what_there_is_is_printed_before_the_error(run_charlm: CommandLine, run: Any) -> None:
    result = run_charlm("sample", "run", "-n", 40, "--unique", "--max-length", 1, "--seed", 1)
    assert result.code == 2
    assert sorted(result.out.splitlines()) == ["", *"aeiklmnrst"]
    assert re.fullmatch(
        r"error: found 11 of 40 texts in [\d,]+ draws: "
        r"the next one was drawn 1,048,576 times, and never kept the rules\n",
        result.err,
    )


def test_any_encoding_of_standard_output(run_charlm: CommandLine, names: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names.write_text("é\n" * 9)
    run_charlm.output("train", names, "--model", "count-bigram", "--out", "accents")
    for encoding in ("latin-1", "utf-8"):
        written = io.BytesIO()
        stdout = io.TextIOWrapper(written, encoding=encoding)
        with monkeypatch.context() as patched:
            patched.setattr("sys.stdout", stdout)
            assert charlm.cli.main(["sample", "accents", "-n", "2", "--max-length", "1", "--min-length", "1"]) == 0
        assert written.getvalue() == "é\né\n".encode(encoding)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--json --count", "--json and --count do not go together"),
        ("--scores --count", "--scores and --count do not go together"),
        ("--prefix a --interactive", "--prefix and --interactive do not go together"),
        ("--unique --no-stop", "--unique must not be given without stop: it is for texts that end"),
        ("--min-length 3 --max-length 2", "--min-length must be at most --max-length 2, got 3"),
        ("--regex (", "regex '(' is not a regular expression: missing ), unterminated subpattern at position 0"),
        ("--ban nowhere.txt", "nowhere.txt: No such file or directory"),
        ("--top-p 2", "Invalid value for '--top-p': 2.0 is not a number in (0, 1], at most 1"),
        ("--suffix ka --max-length 1", "no text can keep --suffix ka, --max-length 1"),
    ],
)
def test_what_cannot_be_is_one_line(run_charlm: CommandLine, run: Any, arguments: str, message: str) -> None:
    assert run_charlm.error("sample", "run", *arguments.split()) == message


# In conversation


def talk(run_charlm: CommandLine, monkeypatch: pytest.MonkeyPatch, said: str, *arguments: object) -> list[str]:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(said.encode())))
    return run_charlm.output("sample", "run", "--interactive", *arguments).splitlines()


def test_lines_are_beginnings_or_options(run_charlm: CommandLine, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "an\n:n 2\n:suffix ka\nm\n\n:suffix\n:temperature 0.5\n:novel\n:scores on\nan\n:quit\nt\n"
    expected = [
        *run.sample(3, prefix="an", seed=7),
        *run.sample(2, prefix="m", suffix="ka", seed=8),
        *run.sample(2, suffix="ka", seed=9),
        *(
            f"{text}\t{log_prob:.4f}"
            for text, log_prob in run.sample(2, prefix="an", temperature=0.5, novel=True, seed=10, scores=True)
        ),
    ]
    assert talk(run_charlm, monkeypatch, said, "-n", 3, "--seed", 7) == expected


def test_options_of_the_command_line_hold_at_first(
    run_charlm: CommandLine, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = talk(
        run_charlm, monkeypatch, ":options\n:min-length\n:unique off\n:OPTIONS\n", "--min-length", 4, "--unique"
    )
    assert "  :min-length 4" in lines
    assert "  :unique on" in lines
    lines = talk(run_charlm, monkeypatch, ":min-length\n:unique off\n:options\n", "--min-length", 4, "--unique")
    assert "  :min-length 0" in lines
    assert "  :unique off" in lines


def test_a_mistake_does_not_end_it(run_charlm: CommandLine, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    said = ":colour red\n:n many\n:top-p 3\n:unique perhaps\nxx\n:min-length 9\n:max-length 2\n\n:help\n"
    lines = talk(run_charlm, monkeypatch, said)
    assert lines[:6] == [
        "error: there is no :colour; :options shows what there is",
        "error: 'many' is not an integer",
        "error: 3.0 is not a number in (0, 1], at most 1",
        "error: 'perhaps' is not on or off",
        "error: prefix[0] = 'x' is not in the vocabulary",
        "error: --min-length must be at most --max-length 2, got 9",
    ]
    assert lines[6] == "A line is how samples start; an empty one lets the model start."
    assert lines[-1] == "  :help  :quit"


def test_somebody_who_types_is_asked(run_charlm: CommandLine, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    said = iter(["an", ":q"])
    asked: list[str] = []

    def type_in(prompt: str) -> str:
        asked.append(prompt)
        return next(said)

    monkeypatch.setattr("builtins.input", type_in)
    stdin = io.StringIO()
    stdin.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr("sys.stdin", stdin)
    lines = run_charlm.output("sample", "run", "--interactive", "-n", 2, "--seed", 1).splitlines()
    assert lines == ["How should samples start? :help says what else there is.", *run.sample(2, prefix="an", seed=1)]
    assert asked == ["> ", "> "]
