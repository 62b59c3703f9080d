"""How tokens are shown in pictures: as labels that can be seen, in fonts that have their characters."""

from __future__ import annotations

import functools
import unicodedata
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor

from charlm.vocabulary import Vocabulary

_SIGNS = {" ": "␣", "\n": "↵", "\t": "⇥"}
# What comes with matplotlib, and draws the letters of most alphabets.
_FONT = "DejaVu Sans"
_NAMED = 3


def labels(vocabulary: Vocabulary) -> list[str]:
    """How each token is shown."""
    return [visible(symbol) for symbol in vocabulary.symbols]


def unit(vocabulary: Vocabulary) -> str:
    """What one token is."""
    return vocabulary.tokens_are.removesuffix("s")


def visible(text: str) -> str:
    """A text with signs in the place of spaces and line ends, and escapes in that of what would not be seen."""
    return "".join(map(_visible_character, text))


def printable(text: str) -> str:
    """A text with escapes in the place of what would not be seen."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def most_frequent(frequencies: Tensor, n: int) -> Tensor:
    """The tokens of the n largest `frequencies` (V,), the first ones of equals, in ascending order; all if V <= n."""
    return frequencies.argsort(descending=True, stable=True)[:n].sort().values


def fonts(texts: Sequence[str]) -> list[str]:
    """The families that have the characters of some texts: DejaVu Sans, and others of this machine where it lacks some.

    Warns of the characters that none of them has: they will be boxes.
    """
    from matplotlib.font_manager import FontProperties, findfont

    missing = set("".join(texts)) - _characters(findfont(FontProperties(family=_FONT))) - {"\n"}
    families = [_FONT]
    for family, file in _other_fonts() if missing else ():
        if found := missing & _characters(file):
            missing -= found
            families.append(family)
        if not missing:
            break
    if missing:
        some = ", ".join(sorted(missing)[:_NAMED])
        more = f" and {len(missing) - _NAMED:,} more" if len(missing) > _NAMED else ""
        warnings.warn(
            f"no font on this machine has {some}{more}: there are boxes in the picture. Install one, such as Noto Sans",
            stacklevel=2,
        )
    return families


@contextmanager
def boxes_allowed() -> Iterator[None]:
    """Without a warning of matplotlib for each character that is a box: `fonts` has said so, in one line."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from ")
        yield


def _visible_character(character: str) -> str:
    if character in _SIGNS:
        return _SIGNS[character]
    # An accent stands on the dotted circle that grammars use.
    return f"◌{character}" if unicodedata.combining(character) else printable(character)


def _other_fonts() -> Iterable[tuple[str, str]]:
    """Families and the file of their upright, regular font."""
    from matplotlib.font_manager import fontManager

    regular = {
        entry.name: entry.fname
        for entry in fontManager.ttflist
        if (entry.style, entry.stretch) == ("normal", "normal") and entry.weight in (400, "normal", "regular")
    }
    # The last resort of matplotlib has a box for everything.
    return sorted((family, file) for family, file in regular.items() if "Last Resort" not in family)


@functools.cache
def _characters(file: str) -> frozenset[str]:
    """The characters that a font has."""
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(map(chr, FT2Font(file).get_charmap()))
    except (OSError, RuntimeError, ValueError):
        return frozenset()  # of bitmaps, as emoji in colours are, or damaged
