"""Regular expressions as machines: what Python's `re` parses, without what no automaton can follow."""

from __future__ import annotations

import re
import sys
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

if sys.version_info >= (3, 11):
    from re import _compiler, _parser  # type: ignore[attr-defined]
else:
    import sre_compile as _compiler
    import sre_parse as _parser

# Of the nondeterministic automaton: repetitions are written out.
_MAX_STATES = 1 << 14

_AT_START = ("AT_BEGINNING", "AT_BEGINNING_STRING")
_AT_END = ("AT_END", "AT_END_STRING")


class Matches:
    """Texts that a regular expression matches as a whole, as `re.fullmatch` does.

    The subset construction over the automaton of Thompson 1968, "Regular expression search algorithm". A state is the
    set of places in the expression where a text may stand.

    Args:
        regex: in the syntax of `re`, but for references to groups, looking around, word boundaries, and atomic or
            possessive parts.
        characters: of the tokens.

    Raises:
        ValueError: it is not such an expression, or too large.
    """

    def __init__(self, regex: str, characters: Sequence[str]) -> None:
        self._characters = characters
        # Of each place: tokens and where they lead, places that are there too, and those that are there where a text
        # begins or ends.
        self._moves: list[tuple[frozenset[int], int] | None] = []
        self._empty: list[list[int]] = []
        self._at_start: list[list[int]] = []
        self._at_end: list[list[int]] = []
        self._leaves: dict[tuple[str, int], frozenset[int]] = {}
        try:
            parsed = _parser.parse(regex)
            if parsed.state.flags & re.MULTILINE:
                raise ValueError("regex must not have the flag m: a text is one line")
            first = self._place()
            self._last = self._add(parsed, first, parsed.state.flags)
        except re.error as error:
            raise ValueError(f"regex {regex!r} is not a regular expression: {error}") from None
        except (RecursionError, OverflowError):
            raise ValueError("regex is too large") from None
        # With a place of its own, as no other state is where a text begins.
        self.start: Hashable = self._closure([first, self._place()], (self._empty, self._at_start))

    @property
    def told_apart(self) -> Iterable[frozenset[int]]:
        return {move[0] for move in self._moves if move is not None}

    def step(self, state: frozenset[int], token: int) -> frozenset[int] | None:
        moves = (self._moves[place] for place in state)
        after = [move[1] for move in moves if move is not None and token in move[0]]
        return self._closure(after, (self._empty,)) if after else None

    def accepts(self, state: frozenset[int]) -> bool:
        edges = [self._empty, self._at_end]
        # An empty text begins where it ends.
        return self._last in self._closure(state, edges if state != self.start else [*edges, self._at_start])

    def _closure(self, places: Iterable[int], edges: Iterable[list[list[int]]]) -> frozenset[int]:
        found = set(places)
        waiting = list(found)
        while waiting:
            place = waiting.pop()
            for kind in edges:
                for other in kind[place]:
                    if other not in found:
                        found.add(other)
                        waiting.append(other)
        return frozenset(found)

    def _place(self) -> int:
        if len(self._empty) >= _MAX_STATES:
            raise ValueError("regex is too large")
        self._moves.append(None)
        for edges in (self._empty, self._at_start, self._at_end):
            edges.append([])
        return len(self._empty) - 1

    def _add(self, parsed: Any, place: int, flags: int) -> int:
        """Adds what `parsed` matches after `place`; the place after it."""
        for operation, argument in parsed:
            place = self._add_one(str(operation), argument, (operation, argument), place, flags)
        return place

    def _add_one(self, operation: str, argument: Any, node: Any, place: int, flags: int) -> int:
        if operation in ("LITERAL", "NOT_LITERAL", "ANY", "IN"):
            end = self._place()
            self._moves[place] = (self._tokens(node, flags), end)
            return end
        if operation == "SUBPATTERN":
            _, added, removed, inner = argument
            return self._add(inner, place, (flags | added) & ~removed)
        if operation == "BRANCH":
            end = self._place()
            for choice in argument[1]:
                self._empty[self._add(choice, self._begin(place), flags)].append(end)
            return end
        if operation in ("MAX_REPEAT", "MIN_REPEAT"):
            least, most, inner = argument
            return self._repeat(least, most, inner, place, flags)
        if operation == "AT" and str(argument) in (*_AT_START, *_AT_END):
            end = self._place()
            (self._at_start if str(argument) in _AT_START else self._at_end)[place].append(end)
            return end
        what = {"AT": "a word boundary", "GROUPREF": "a reference to a group", "GROUPREF_EXISTS": "a condition"}
        what |= {"ASSERT": "a look around", "ASSERT_NOT": "a look around"}
        raise ValueError(f"regex has {what.get(operation, 'an atomic or possessive part')}, which is not supported")

    def _begin(self, place: int) -> int:
        """A place of its own that is where `place` is."""
        begin = self._place()
        self._empty[place].append(begin)
        return begin

    def _repeat(self, least: int, most: Any, inner: Any, place: int, flags: int) -> int:
        for _ in range(least):
            place = self._add(inner, self._begin(place), flags)
        end = self._place()
        self._empty[place].append(end)
        if most == _parser.MAXREPEAT:
            self._empty[self._add(inner, self._begin(place), flags)].append(place)
            return end
        for _ in range(most - least):
            place = self._add(inner, self._begin(place), flags)
            self._empty[place].append(end)
        return end

    def _tokens(self, node: Any, flags: int) -> frozenset[int]:
        """The tokens whose character a part that matches one character matches: `re` says so."""
        key = (repr(node), flags)
        if key not in self._leaves:
            state = _parser.State()
            state.flags = flags
            leaf = _compiler.compile(_parser.SubPattern(state, [node]), flags)
            self._leaves[key] = frozenset(i for i, c in enumerate(self._characters) if leaf.fullmatch(c))
        return self._leaves[key]
