"""What charlm.data says of bad input."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from charlm import data
from charlm.vocabulary import Vocabulary

HINT = "; encoding='latin-1' or the like says what else it is"
LINES_3 = "a\nb\nc"


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        ("", {}, "{path} is empty"),
        (b"\xef\xbb\xbf", {}, "{path} is empty"),
        ("", {"mode": "stream"}, "{path} is empty"),
        (" \n\t\n\n \r\n", {}, "{path} has no line that is not blank"),
        (
            "ab\ncd\n",
            {},
            "{path} has too few lines to split: train, dev and test need 3, got 2; mode='stream' reads it as one text",
        ),
        (
            "ab",
            {"split": "makemore"},
            "{path} has too few lines to split: train, dev and test need 3, got 1; mode='stream' reads it as one text",
        ),
        (b"abc\xff", {}, f"{{path}} is not UTF-8 text: byte 0xff at offset 3, line 1, column 4{HINT}"),
        (
            b"ab\r\ncd\xe4\xb8",
            {"mode": "stream"},
            f"{{path}} is not UTF-8 text: byte 0xe4 at offset 6, line 2, column 3{HINT}",
        ),
        (
            b"PK\x03\x04 a binary file\x00",
            {},
            f"{{path}} is not UTF-8 text: byte 0x00 at offset 18, line 1, column 19{HINT}",
        ),
        (
            "emma\r\n\r\nj. r.  \r\nmia",
            {"vocabulary": Vocabulary("aeijmr ")},
            "{path}, line 3, column 2 has '.', which is not in the vocabulary, where it ends lines: a vocabulary of "
            "this text has another boundary",
        ),
        (
            "a|\nb\nc",
            {"vocabulary": Vocabulary("abc", boundary="|")},
            "{path}, line 1, column 2 has '|', which is not in the vocabulary, where it ends lines: a vocabulary of "
            "this text has another boundary",
        ),
        (
            "abc \n\nabç\nd",
            {"vocabulary": Vocabulary("abc")},
            "{path}, line 3, column 3 has 'ç', which is not in the vocabulary",
        ),
        (
            "ab\nc🎉" + 20 * "a",
            {"vocabulary": Vocabulary("abc\n"), "mode": "stream", "context_length": 1},
            "{path}, line 2, column 2 has '🎉', which is not in the vocabulary",
        ),
        (
            "ab\nc" + 20 * "a",
            {"vocabulary": Vocabulary("abc"), "mode": "stream", "context_length": 1},
            "{path}, line 1, column 3 has '\\n', which is not in the vocabulary",
        ),
        (
            "x",
            {"mode": "stream"},
            "{path} is too short: of its 1 characters train would have 0, but context_length=3 needs 4",
        ),
        (
            "x" * 39,
            {"mode": "stream", "context_length": 4},
            "{path} is too short: of its 39 characters dev would have 4, but context_length=4 needs 5",
        ),
        (LINES_3, {"context_length": 0}, "context_length must be a positive integer, got 0"),
        (LINES_3, {"context_length": -1}, "context_length must be a positive integer, got -1"),
        (LINES_3, {"context_length": 2**31}, "context_length must be an integer <= 2147483647, got 2147483648"),
        (LINES_3, {"context_length": 3.0}, "context_length must be a positive integer, got 3.0"),
        (LINES_3, {"context_length": True}, "context_length must be a positive integer, got True"),
        (LINES_3, {"mode": "words"}, "mode must be one of lines, stream, got 'words'"),
        (LINES_3, {"split": "lecture"}, "split must be one of random, makemore, got 'lecture'"),
        (
            LINES_3,
            {"mode": "stream", "split": "makemore"},
            "split='makemore' shuffles lines, but mode='stream' keeps the text in one piece",
        ),
    ],
)
def test_bad_input(tmp_path: Path, content: str | bytes, arguments: dict[str, Any], message: str) -> None:
    path = tmp_path / "corpus.txt"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(ValueError, match=f"^{re.escape(message.format(path=path))}$"):
        data.load(path, **arguments)


def test_files_for_dev_and_test(tmp_path: Path) -> None:
    for name, text in (("train", "ab\nba"), ("dev", "a"), ("test", " \n"), ("long", "abba" * 9)):
        (tmp_path / f"{name}.txt").write_text(text)
    train, dev, test, long = (tmp_path / f"{name}.txt" for name in ("train", "dev", "test", "long"))
    cases: list[tuple[dict[str, Any], str]] = [
        ({"dev": dev}, "dev and test go together: give a file for both, or for neither, got dev alone"),
        ({"test": dev}, "dev and test go together: give a file for both, or for neither, got test alone"),
        ({"dev": dev, "test": dev, "split": "makemore"}, "split='makemore' divides one file, but dev and test have"),
        ({"dev": dev, "test": test}, f"{test} has no line that is not blank"),
        ({"dev": "-", "test": "-"}, "standard input can be read only once"),
        ({"dev": dev, "test": long, "mode": "stream"}, f"{dev} is too short: of its 1 characters dev would have 1"),
        (
            {"dev": dev, "test": dev, "vocabulary": Vocabulary("b")},
            f"{train}, line 1, column 1 has 'a', which is not in the",
        ),
    ]
    for arguments, message in cases:
        path = long if "mode" in arguments else train
        with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
            data.load(path, **arguments)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=re.escape(f"No such file or directory: '{tmp_path / 'names'}'")):
        data.load(tmp_path / "names")
    with pytest.raises(IsADirectoryError, match=re.escape(f"Is a directory: '{tmp_path}'")):
        data.load(tmp_path)


@pytest.mark.parametrize(
    ("indices", "error", "message"),
    [
        (torch.tensor([0, 36]), IndexError, "indices[1] = 36 is out of range for 36 examples"),
        (torch.tensor([0, 1, -1]), IndexError, "indices[2] = -1 is out of range for 36 examples"),
        (torch.tensor([[0]]), ValueError, "indices must have shape (B,), got (1, 1)"),
        (torch.tensor(0), ValueError, "indices must have shape (B,), got ()"),
        (torch.tensor([0.0]), TypeError, "indices must be integers, got torch.float32"),
        (torch.tensor([True]), TypeError, "indices must be integers, got torch.bool"),
    ],
)
def test_batch_names_the_wrong_index(
    tmp_path: Path, indices: torch.Tensor, error: type[Exception], message: str
) -> None:
    path = tmp_path / "corpus.txt"
    path.write_text("ab\n" * 12)
    split = data.load(path).all
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        split.batch(indices)
