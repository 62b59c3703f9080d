"""Which texts are wanted, as one deterministic finite automaton over tokens."""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

# More would take seconds to make.
MAX_STATES = 1 << 16


class Machine(Protocol):
    """One rule: it reads a text token by token.

    Attributes:
        start: the state before the first token.
        told_apart: sets of tokens; those that are in the same ones lead from a state to the same state.
    """

    start: Hashable

    @property
    def told_apart(self) -> Iterable[frozenset[int]]: ...

    def step(self, state: Any, token: int) -> Hashable | None:
        """The state after one more token; None where no text is accepted any more."""

    def accepts(self, state: Any) -> bool:
        """Whether a text that ends here keeps the rule."""


class _Words:
    """The automaton of Aho and Corasick 1975, "Efficient string matching": which word ends where, in one pass.

    State s is the longest beginning of a word that the text ends with.
    """

    start: Hashable = 0

    def __init__(self, words: Iterable[Sequence[int]]) -> None:
        self._children: list[dict[int, int]] = [{}]
        self._ends = [False]
        for word in words:
            state = 0
            for token in word:
                if token not in self._children[state]:
                    self._children[state][token] = len(self._children)
                    self._children.append({})
                    self._ends.append(False)
                state = self._children[state][token]
            self._ends[state] = True
        self._shorter = [0] * len(self._children)
        queue = deque(self._children[0].values())
        while queue:
            state = queue.popleft()
            for token, child in self._children[state].items():
                self._shorter[child] = self.next(self._shorter[state], token)
                self._ends[child] = self._ends[child] or self._ends[self._shorter[child]]
                queue.append(child)

    @property
    def told_apart(self) -> Iterable[frozenset[int]]:
        return {frozenset([token]) for children in self._children for token in children}

    def next(self, state: int, token: int) -> int:
        while state and token not in self._children[state]:
            state = self._shorter[state]
        return self._children[state].get(token, 0)

    def ends_with_one(self, state: int) -> bool:
        return self._ends[state]


class EndsWith(_Words):
    """Texts that end with one of some words."""

    def step(self, state: int, token: int) -> int | None:
        return self.next(state, token)

    def accepts(self, state: int) -> bool:
        return self.ends_with_one(state)


class Contains(_Words):
    """Texts that contain one of some words."""

    _FOUND = -1

    def step(self, state: int, token: int) -> int | None:
        if state != self._FOUND:
            state = self.next(state, token)
        return self._FOUND if state == self._FOUND or self.ends_with_one(state) else state

    def accepts(self, state: int) -> bool:
        return state == self._FOUND


class ContainsNone(_Words):
    """Texts that contain none of some words."""

    def step(self, state: int, token: int) -> int | None:
        state = self.next(state, token)
        return None if self.ends_with_one(state) else state

    def accepts(self, state: int) -> bool:
        return True


@dataclass(frozen=True)
class Automaton:
    """State 0 is that of texts which nothing can follow to make them wanted; it leads to itself.

    Attributes:
        classes: (V,) the class of each token; those of a class are treated alike.
        next: (D, K) the state after one more token, by state and class.
        accepting: (D,) whether a text that ends there is wanted.
        shortest: (D,) how many more tokens it takes at least to one that is; 0 for state 0.
        start: the state before the first token.
    """

    classes: array[int]
    next: list[list[int]]
    accepting: list[bool]
    shortest: list[int]
    start: int

    def after(self, tokens: Iterable[int]) -> int:
        """The state after a text."""
        state = self.start
        for token in tokens:
            state = self.next[state][self.classes[token]]
        return state


def combine(machines: Sequence[Machine], vocab_size: int) -> Automaton:
    """The automaton of the texts that every machine accepts, with as few states as there can be.

    Raises:
        ValueError: there are more than `MAX_STATES`.
    """
    classes, examples = _classes(machines, vocab_size)
    start = tuple(machine.start for machine in machines)
    numbers: dict[tuple[Hashable, ...], int] = {start: 1}
    rows = [[0] * len(examples), []]
    accepting = [False, _all_accept(machines, start)]
    queue = deque([start])
    while queue:
        states = queue.popleft()
        row = rows[numbers[states]]
        for token in examples:
            after = tuple(machine.step(state, token) for machine, state in zip(machines, states, strict=True))
            if None in after:
                row.append(0)
                continue
            if after not in numbers:
                if len(rows) > MAX_STATES:
                    raise ValueError(f"suffix, contains, ban and regex take more than {MAX_STATES:,} states together")
                numbers[after] = len(rows)
                rows.append([])
                accepting.append(_all_accept(machines, after))
                queue.append(after)
            row.append(numbers[after])
    shortest = _shortest(rows, accepting)
    for state, row in enumerate(rows):
        rows[state] = [after if shortest[after] is not None else 0 for after in row]
    return _smallest(classes, rows, accepting, shortest)


def _all_accept(machines: Sequence[Machine], states: Sequence[Hashable]) -> bool:
    return all(machine.accepts(state) for machine, state in zip(machines, states, strict=True))


def _classes(machines: Sequence[Machine], vocab_size: int) -> tuple[array[int], list[int]]:
    """The class of each token, and one token of each class."""
    memberships: list[list[int]] = [[] for _ in range(vocab_size)]
    for number, tokens in enumerate({tokens for machine in machines for tokens in machine.told_apart}):
        for token in tokens:
            memberships[token].append(number)
    numbers: dict[tuple[int, ...], int] = {}
    classes = array("I", (numbers.setdefault(tuple(membership), len(numbers)) for membership in memberships))
    examples = [0] * len(numbers)
    for token, number in enumerate(classes):
        examples[number] = token
    return classes, examples


def _shortest(rows: list[list[int]], accepting: list[bool]) -> list[int | None]:
    """How many more tokens lead to acceptance, of each state; None where none do."""
    before: list[set[int]] = [set() for _ in rows]
    for state, row in enumerate(rows):
        for after in row:
            before[after].add(state)
    shortest: list[int | None] = [0 if accepts else None for accepts in accepting]
    queue = deque((state, 0) for state, accepts in enumerate(accepting) if accepts)
    while queue:
        state, length = queue.popleft()
        for earlier in before[state]:
            if shortest[earlier] is None:
                shortest[earlier] = length + 1
                queue.append((earlier, length + 1))
    return shortest


def _smallest(
    classes: array[int], rows: list[list[int]], accepting: list[bool], shortest: list[int | None]
) -> Automaton:
    """States that accept the same continuations become one: Moore 1956, by refinement of a partition."""
    table = torch.tensor(rows, dtype=torch.int64, device="cpu")
    labels: Tensor = torch.tensor(accepting, device="cpu").long()
    count = -1
    while count != (count := int(labels.max())):
        _, labels = torch.unique(torch.cat([labels[:, None], labels[table]], dim=1), dim=0, return_inverse=True)
    number = {int(labels[0]): 0}
    for label in labels.tolist():
        number.setdefault(label, len(number))
    representative = [0] * len(number)
    for state, label in enumerate(labels.tolist()):
        representative[number[label]] = state
    names = [number[label] for label in labels.tolist()]
    return Automaton(
        classes,
        [[names[after] for after in rows[state]] for state in representative],
        [accepting[state] for state in representative],
        [shortest[state] or 0 for state in representative],
        names[1],
    )
