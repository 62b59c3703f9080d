"""config.json of a run: what its model, vocabulary, options and data are, and the schema that it must have."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypedDict

from charlm._rules import shown
from charlm.run_folder import CheckpointError, blamed, has_file, open_file
from charlm.schema import checked, parse_json

FILE = "config.json"
# What the folder of a sweep has instead, and where the run of its best model is.
SWEEP_FILE, BEST = "sweep.json", "best"
FORMAT = 1
# A vocabulary of all of Unicode takes 5 MB.
_MAX_BYTES = 1 << 26


# Of a model: what kind of values its arguments are. Which of them are in range is for the model itself to say.
class _CountBigram(TypedDict):
    kind: Literal["count-bigram"]
    vocab_size: int
    smoothing: float


class _Bigram(TypedDict):
    kind: Literal["bigram"]
    vocab_size: int


class _Mlp(TypedDict):
    kind: Literal["mlp"]
    vocab_size: int
    context_length: int
    embedding_dim: int
    hidden_dim: int
    direct: bool
    softcap: float | None


_MODELS: dict[str, Any] = {"count-bigram": _CountBigram, "bigram": _Bigram, "mlp": _Mlp}


class _Required(TypedDict):
    format: int
    model: dict
    # These three are checked by what is made of them: `Vocabulary`, `TrainingConfig` and `Fingerprint`.
    vocabulary: dict
    training: dict
    data: dict | None


class Description(_Required, total=False):
    """The whole file; runs from before it had the last key were all trained in steps."""

    trained_in_steps: bool


def format_description(**parts: Any) -> bytes:
    """The content of the file: the same for equal parts."""
    text = json.dumps({"format": FORMAT, **parts}, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    # A path that is not UTF-8 has lone surrogates, and JSON writes these as Python does: \udcff.
    return text.encode("utf-8", "backslashreplace")


def read_description(run_dir: Path) -> Description:
    """The content of the file, which has the form of `Description`, and a model that charlm knows.

    Raises:
        CheckpointError: it has not, or there is none.
    """
    path = run_dir / FILE
    if has_file(run_dir, SWEEP_FILE) and not has_file(run_dir, FILE):
        raise CheckpointError(f"{run_dir} is the folder of a sweep: at its end, {run_dir / BEST} is the best run")
    file, size = open_file(run_dir, FILE)
    with file:
        if size > _MAX_BYTES:
            raise CheckpointError(f"{path} is not the configuration of a run: it has {size} bytes")
        content = file.read(size)
    with blamed(path, " is not JSON"):
        values = parse_json(content)
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} is not the configuration of a run: it is {shown(values)}")
    if "format" in values:
        # First of all: what a newer charlm writes may have any form.
        check_format(path, values["format"])
    for key in _Required.__annotations__:
        if key not in values:
            raise CheckpointError(f"{path} is not the configuration of a run: it has no {key!r}")
    with blamed(path, " is damaged"):
        description: Description = checked(values, Description, "")
        description["model"] = _checked_model(description["model"])
    return description


def check_format(path: Path, version: object, newest: int = FORMAT) -> None:
    """CheckpointError unless this charlm, which reads formats up to `newest`, reads `version`, that of a file."""
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise CheckpointError(f"{path} has a format version that does not exist: {shown(version)}")
    if version > newest:
        raise CheckpointError(
            f"{path} has format version {version}; this charlm reads up to {newest}: install a newer charlm"
        )


def _checked_model(config: Mapping[str, Any]) -> dict[str, Any]:
    kind = config.get("kind")
    if not isinstance(kind, str) or kind not in _MODELS:
        raise ValueError(f"model.kind must be one of {', '.join(_MODELS)}, got {shown(kind)}")
    model: dict[str, Any] = checked(config, _MODELS[kind], "model")
    return model
