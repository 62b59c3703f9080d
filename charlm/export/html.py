"""A model as one page that runs in a browser: without a server, a network or a library."""

from __future__ import annotations

import base64
import html
import json
import re
from typing import Any

import torch
from torch import Tensor

from charlm._rules import check_type
from charlm._version import __version__
from charlm.export._parts import TEMPLATES, Parts, check_no_words, little_endian, parts
from charlm.models import LanguageModel
from charlm.vocabulary import Vocabulary

# JSON inside of a script ends where the page says so: with these characters escaped nothing in it can.
_ESCAPES = {ord(character): f"\\u{ord(character):04x}" for character in "<>&"}


def to_html(model: LanguageModel, vocabulary: Vocabulary, *, title: str = "Character-level language model") -> str:
    """A page with a model in it: type a beginning, see the distribution of what comes next, draw new texts.

    It shows the probability of each next character as a bar while one types, how surprising each character is, and
    draws texts at any temperature. All of it is in the page, the weights to the last bit; it loads nothing. It computes
    in float64, and draws as `charlm sample` does: with the same seed the same texts, unless a probability that rounds
    otherwise decides.

    Args:
        model: of any dtype, on any device.
        vocabulary: of the model, with any characters: they are shown, and never read as HTML.
        title: the heading, as plain text.

    Returns:
        HTML, to be written as UTF-8.

    Raises:
        TypeError: the model is of another class than charlm's own.
        ValueError: the vocabulary has another size or is one of words, or a weight is NaN or infinite.
    """
    check_type("title", title, str)
    model_parts = parts(model, vocabulary)
    check_no_words(model_parts, "a page")
    # ASCII: U+2028, for one, ends a line in some scripts.
    described = json.dumps(_description(model_parts), separators=(",", ":"), ensure_ascii=True)
    values = {
        "VERSION": __version__,
        "TITLE": html.escape(title),
        "STYLE": _template("page.css"),
        "SCRIPT": f'"use strict";\n{_template("model.js")}\n{_template("page.js")}',
        "MODEL": described.translate(_ESCAPES),
    }
    return re.sub(r"@([A-Z]+)@", lambda marker: values[marker[1]], _template("page.html"))


def _template(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


def _description(model_parts: Parts) -> dict[str, Any]:
    return {
        "kind": model_parts.kind,
        "symbols": model_parts.symbols,
        "tokens_are": model_parts.tokens_are,
        "boundary": model_parts.boundary,
        "unknown": model_parts.unknown,
        "context_length": model_parts.context_length,
        "softcap": model_parts.softcap,
        "smoothing": model_parts.smoothing,
        "tensors": {name: _encoded(tensor) for name, tensor in model_parts.tensors.items()},
    }


def _encoded(tensor: Tensor) -> dict[str, Any]:
    """Little-endian numbers in base64; JavaScript has no integers of 64 bits in arrays of plain numbers."""
    if not tensor.is_floating_point():
        # Exact up to 2^24 and 2^53.
        tensor = tensor.float() if tensor.max() < 1 << 24 else tensor.double()
    dtype = "float64" if tensor.dtype == torch.float64 else "float32"
    return {"dtype": dtype, "size": tensor.numel(), "data": base64.b64encode(little_endian(tensor)).decode()}
