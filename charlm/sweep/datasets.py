"""The data of a sweep: one data set for each length of contexts, all of the same text."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from charlm.configuration import KEPT_TEXTS, STANDARD_INPUT, TrainingConfig
from charlm.data import Dataset
from charlm.token_arrays import OnRead
from charlm.vocabulary import Vocabulary


def load(
    configs: Iterable[TrainingConfig],
    vocabulary: Vocabulary | None = None,
    kept: Mapping[str, str] | None = None,
    on_read: OnRead | None = None,
) -> dict[int, Dataset]:
    """The data sets by what `config.context_length` asks for; the first one has the texts that came out of a pipe.

    Args:
        configs: which differ in nothing else that data sets are made with.
        vocabulary, kept, on_read: as in `TrainingConfig.load_data`.
    """
    found: dict[int, Dataset] = {}
    piped: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        for config in configs:
            if config.context_length in found:
                continue
            dataset = replace(config, **piped).load_data(vocabulary, kept, on_read)  # type: ignore[arg-type]
            found[config.context_length] = dataset
            if dataset.piped:
                # It cannot be read again: the others take a copy.
                piped = dict.fromkeys(dataset.piped, STANDARD_INPUT)
                kept = {name: str(Path(folder, file)) for name, file in KEPT_TEXTS.items()}
                for name, text in dataset.piped.items():
                    Path(kept[name]).write_bytes(text)
    return found
