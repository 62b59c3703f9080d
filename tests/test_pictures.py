"""The pictures in docs/pictures are those that `python -m scripts.draw_pictures` draws today."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from scripts import draw_pictures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

README_PICTURES = ("bigrams", "embedding", "next")
PAGE = (draw_pictures.FOLDER.parent / "pictures.md").read_text()
README = (draw_pictures.FOLDER.parent.parent / "README.md").read_text()


@pytest.fixture(scope="module")
def drawn() -> Mapping[str, Figure]:
    """Of models that are hardly trained: what is written in the figures is the same."""
    return draw_pictures.figures(steps=2)


def test_what_is_written_in_them_is_what_is_drawn_today(drawn: Mapping[str, Figure]) -> None:
    files = {path.stem: path for path in draw_pictures.FOLDER.iterdir()}
    assert files.keys() == drawn.keys()
    for name, figure in drawn.items():
        with Image.open(files[name]) as picture:
            assert json.loads(picture.info[draw_pictures.KEY]) == draw_pictures.texts(figure), name
            width, height = (round(inches * 150) for inches in figure.get_size_inches())
            assert picture.size == pytest.approx((width, height), abs=1)


def test_the_counts_in_the_text_are_those_of_the_names(drawn: Mapping[str, Figure]) -> None:
    cells = dict(text.get_text().split("\n") for text in drawn["bigrams"].axes[0].texts)
    for page, number in ((PAGE, 4), (README, 3)):
        (alternative,) = re.findall(r"!\[([^]]*)\]\([\w/]*pictures/bigrams\.png\)", page)
        told = re.findall(r'"(\w\S)" (?:came )?([\d,]+)', alternative)
        assert len(told) == number
        assert {pair: count.replace(",", "") for pair, count in told} == {pair: cells[pair] for pair, _ in told}
    after_q = sorted((int(count) for pair, count in cells.items() if pair[0] == "q" and pair[1] != "."), reverse=True)
    assert after_q[:2] == [171, 14]


def test_the_speeds_on_the_page_are_those_of_the_race() -> None:
    (alternative,) = re.findall(r"!\[(.*)\]\(pictures/speed\.png\)", PAGE)
    for row in draw_pictures.results()["races"][0]["results"]:
        assert f"{row['name']} {row['steps_per_second']:,.0f}" in alternative


def test_every_picture_is_on_the_page_with_what_is_to_be_seen() -> None:
    shown = re.findall(r"!\[(.*)\]\(pictures/(\w+)\.png\)", PAGE)
    assert sorted(name for _, name in shown) == sorted(path.stem for path in draw_pictures.FOLDER.iterdir())
    assert all(len(alternative.split()) >= 20 for alternative, _ in shown)


def test_the_readme_shows_three_and_they_are_small() -> None:
    assert re.findall(r"\(docs/pictures/(\w+)\.png\)", README) == [*README_PICTURES]
    assert sum((draw_pictures.FOLDER / f"{name}.png").stat().st_size for name in README_PICTURES) < 600_000
