"""What tells one data set from another, so that a run does not go on with data that it was not started on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypedDict

from charlm.data import Dataset, sha256
from charlm.schema import checked


class _Description(TypedDict):
    tokens: int
    sha256: str


@dataclass(frozen=True)
class Fingerprint:
    """Equal for datasets with the same vocabulary and the same tokens in the same splits.

    Attributes:
        tokens: how many tokens the whole text has, the boundaries before each line included.
        sha256: of the vocabulary in JSON and the tokens of train, dev and test, in hexadecimal.
    """

    tokens: int
    sha256: str

    @classmethod
    def of(cls, dataset: Dataset) -> Fingerprint:
        """The fingerprint of a dataset, at about the speed at which its text was read."""
        return cls(len(dataset.all.tokens), sha256(dataset))

    def check(self, dataset: Dataset, files: Iterable[str | None], kind: str) -> None:
        """ValueError where a dataset is another one.

        Args:
            dataset: to be checked.
            files: that it was read from.
            kind: what is trained on it, "run" or "sweep".
        """
        found = Fingerprint.of(dataset)
        if found == self:
            return
        size = found.tokens
        difference = f"it has {size:,} tokens, not {self.tokens:,}" if size != self.tokens else "other tokens"
        named = ", ".join(file for file in files if file is not None)
        raise ValueError(
            f"{named or 'the file of embedded names'} is not the data of this {kind} ({difference}): "
            "give the path of the file as it was"
        )

    def to_dict(self) -> dict[str, Any]:
        """For `from_dict`; JSON types only."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Fingerprint:
        """The inverse of `to_dict`; ValueError if it is not a fingerprint."""
        return cls(**checked(values, _Description, "data"))
