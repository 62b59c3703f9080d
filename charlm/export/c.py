"""A model as a program: one file of C99 that needs no more than the C library."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from torch import Tensor

from charlm._version import __version__
from charlm.export._parts import TEMPLATES, Parts, check_no_words, parts
from charlm.models import LanguageModel
from charlm.vocabulary import Vocabulary

_COLUMNS = 120


def to_c(model: LanguageModel, vocabulary: Vocabulary) -> str:
    """The source of a program that draws texts from a model, and prints its probabilities: `cc -O2 model.c -lm`.

    The program has the weights to the last bit, and computes in double: its probabilities are those of the model in
    float64 up to rounding. It takes `--seed`, `--temperature`, `--top-k`, `--prefix`, `--max-length` and `--no-stop`
    as `charlm sample` does, and draws in the same way: the same texts, unless a probability that rounds otherwise
    decides. `--next TEXT` prints the probabilities after a text, `--score TEXT` its log-probability.

    Args:
        model: of any dtype, on any device.
        vocabulary: of the model.

    Returns:
        C99, in ASCII.

    Raises:
        TypeError: the model is of another class than charlm's own.
        ValueError: the vocabulary has another size or is one of words, or a weight is NaN or infinite.
    """
    model_parts = parts(model, vocabulary)
    check_no_words(model_parts, "a C program")
    real = "double" if model_parts.is_double else "float"
    forward = _chosen((TEMPLATES / f"{model_parts.kind}.c").read_text(encoding="ascii"), _features(model_parts))
    values = {
        "SUMMARY": _summary(model_parts),
        "VERSION": __version__,
        "SIZES": "\n".join(_sizes(model_parts)),
        "BOUNDARY": str(model_parts.boundary),
        "UNKNOWN": _unknown(model_parts),
        "FORWARD": forward.rstrip().replace("@REAL@", real),
        "SYMBOLS": "\n".join(map(_symbol, model_parts.symbols, model_parts.spellings)),
        "WEIGHTS": "\n\n".join(
            _definition(name, tensor, shape, real)
            for (name, tensor), shape in zip(model_parts.tensors.items(), _shapes(model_parts), strict=True)
        ),
    }
    program = (TEMPLATES / "sample.c").read_text(encoding="ascii")
    return re.sub(r"@([A-Z]+)@", lambda marker: values[marker[1]], program)


def _unknown(model_parts: Parts) -> str:
    """What becomes of a character that is not in the vocabulary."""
    if model_parts.unknown is None:
        return '  fail("\\"%s\\" begins with a character that is not in the vocabulary", *text);\n  return BOUNDARY;'
    return (
        "  /* A character that is not in the vocabulary, to its last byte: the others begin with the bits 10. */\n"
        "  do ++*text; while ((**text & 0xC0) == 0x80);\n"
        f"  return {model_parts.unknown};"
    )


def _features(model_parts: Parts) -> set[str]:
    has = {"direct": "direct_weight" in model_parts.tensors, "softcap": model_parts.softcap is not None}
    return {name if present else f"not {name}" for name, present in has.items()}


def _chosen(template: str, features: set[str]) -> str:
    """A template without the lines from `//if X` to `//end` of an X that the model has not."""

    def kept(block: re.Match[str]) -> str:
        return block[2] if block[1] in features else ""

    return re.sub(r"^//if ([\w ]+)\n(.*?)^//end\n", kept, template, flags=re.MULTILINE | re.DOTALL)


def _summary(model_parts: Parts) -> str:
    sizes = ", ".join(f"{name} = {size}" for name, size in model_parts.sizes.items())
    return f"The model is {model_parts.kind!r} with {sizes}."


def _sizes(model_parts: Parts) -> Iterator[str]:
    sizes = ", ".join(f"{name} = {size}" for name, size in model_parts.sizes.items())
    meaning = "V symbols, of which the model reads the last T"
    if "H" in model_parts.sizes:
        meaning += "; D numbers for each, and a hidden layer of H"
    yield f"/* {meaning}. */"
    yield f"enum {{ {sizes} }};"
    # The shortest decimal of a double is that double again.
    if model_parts.softcap is not None:
        yield f"static const double SOFTCAP = {model_parts.softcap!r};"
    if model_parts.kind == "count-bigram":
        yield f"static const double SMOOTHING = {model_parts.smoothing!r};"


def _symbol(symbol: str, spelling: bytes) -> str:
    """An initializer of `struct Symbol`; a character that cannot be read in it is named beside it."""
    code = "" if symbol.isascii() and symbol.isprintable() else f" /* {' '.join(f'U+{ord(c):04X}' for c in symbol)} */"
    return f'    {{"{"".join(map(_escaped, spelling))}", {len(spelling)}}},{code}'


def _escaped(byte: int) -> str:
    """A byte in a string literal; `?` is escaped since two of them may begin a trigraph, as `??/` is a backslash."""
    if byte in b'\\"?':
        return f"\\{chr(byte)}"
    # Three digits, so that no digit after them is taken for one.
    return chr(byte) if 0x20 <= byte < 0x7F else f"\\{byte:03o}"


def _shapes(model_parts: Parts) -> list[str]:
    """The dimensions of each tensor, as C has them."""
    shapes = {
        "counts": "[V][V]",
        "weight": "[V][V]",
        "embedding": "[V][D]",
        "weight1": "[H][T * D]",
        "bias1": "[H]",
        "weight2": "[V][H]",
        "bias2": "[V]",
        "direct_weight": "[V][T * D]",
    }
    return [shapes[name] for name in model_parts.tensors]


def _definition(name: str, tensor: Tensor, shape: str, real: str) -> str:
    kind = real if tensor.is_floating_point() else "int64_t"
    write = _hexadecimal if tensor.is_floating_point() else str
    suffix = "f" if tensor.is_floating_point() and real == "float" else ""
    if tensor.dim() == 1:
        body = "\n".join(_lines((write(value) + suffix for value in tensor.tolist()), "    "))
    else:
        rows = ("\n".join(_lines((write(value) + suffix for value in row.tolist()), "     ")) for row in tensor)
        body = "\n".join(f"    {{{row.strip().rstrip(',')}}}," for row in rows)
    return f"static const {kind} {name}{shape} = {{\n{body}\n}};"


def _hexadecimal(value: float) -> str:
    """A number in the hexadecimal form of C, which is exact: 0x1.8p+1 for 3."""
    mantissa, _, exponent = value.hex().partition("p")
    return f"{mantissa.rstrip('0').rstrip('.') if '.' in mantissa else mantissa}p{exponent}"


def _lines(numbers: Iterable[str], indent: str) -> Iterator[str]:
    """The numbers between commas, in lines that are not too long."""
    line = indent
    for number in numbers:
        if len(line) + len(number) + 2 > _COLUMNS:
            yield line.rstrip()
            line = indent
        line += f"{number}, "
    yield line.rstrip()
