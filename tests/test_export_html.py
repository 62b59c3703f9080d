"""charlm.export.to_html: a page that has the model in it whatever its characters are, and what it does in a browser.

Chromium is driven where CHARLM_BROWSER is the path of one.
"""

from __future__ import annotations

import base64
import copy
import json
import os
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from exported_models import HOSTILE, LETTERS, context_of, logits_in_double, model_log_probs, models, of_bytes

import charlm
from charlm import MLP, NeuralBigram, Vocabulary
from charlm.export import to_html
from charlm.sampler import probabilities

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

every_model = pytest.mark.parametrize("name", models())
# One for each way through the page's own code; files differ in nothing else.
in_a_browser = pytest.mark.parametrize(
    "name", ["counts", "smoothed counts", "bigram", "mlp", "mlp, float64", "any characters"]
)
TITLE = "</title><script>document.title = 'taken over'</script> & \"more\""


# The file


class Elements(HTMLParser):
    """The elements of a page, in order, and what is written in each script and in the title."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.contents: list[tuple[str, str]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.contents.append((tag, ""))

    def handle_data(self, data: str) -> None:
        if self.contents:
            tag, before = self.contents[-1]
            self.contents[-1] = (tag, before + data)

    def content(self, tag: str) -> list[str]:
        return [text.strip() for name, text in self.contents if name == tag]


def described(page: str) -> dict[str, Any]:
    model, _ = Elements(page).content("script")
    description: dict[str, Any] = json.loads(model)
    return description


@every_model
def test_the_page_has_the_model_to_the_last_bit(name: str) -> None:
    model, vocabulary = models()[name]
    description = described(to_html(model, vocabulary))
    assert description["kind"] == model.kind
    assert description["symbols"] == list(vocabulary.characters)
    assert description["boundary"] == vocabulary.boundary
    assert description["context_length"] == model.context_length
    assert description["softcap"] == getattr(model, "softcap", None)
    assert description["smoothing"] == getattr(model, "smoothing", 0.0)
    assert list(description["tensors"]) == list(model.state_dict())
    for key, tensor in model.state_dict().items():
        stored = description["tensors"][key]
        numbers = np.frombuffer(base64.b64decode(stored["data"]), np.dtype(stored["dtype"]).newbyteorder("<"))
        assert stored["size"] == tensor.numel()
        np.testing.assert_array_equal(numbers, tensor.double().flatten())


@every_model
def test_no_character_is_read_as_html(name: str) -> None:
    plain = Elements(to_html(MLP(9, 3, 2, 4), LETTERS))
    page = Elements(to_html(*models()[name], title=TITLE))
    assert page.tags == plain.tags
    assert page.content("title") == page.content("h1")[:1] == [TITLE]
    (model, _) = page.content("script")
    assert model.isascii()
    assert not set("<>&") & set(model)


def test_the_page_asks_for_nothing_from_elsewhere() -> None:
    page = to_html(*models()["mlp"])
    elements = Elements(page)
    assert not [tag for tag, attributes in elements.tags if {"src", "href", "action", "data"} & set(attributes)]
    assert not re.search(r"https?:|//\w+\.|url\(|@import|\bimport\b|\bfetch\b|XMLHttpRequest|innerHTML|eval\(", page)
    (policy,) = (a["content"] for tag, a in elements.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def test_every_field_has_a_label() -> None:
    tags = Elements(to_html(*models()["mlp"])).tags
    labelled = {attributes["for"] for tag, attributes in tags if tag == "label"}
    fields = {attributes["id"] for tag, attributes in tags if tag in ("input", "select", "textarea")}
    assert fields == labelled == {"text", "temperature", "top-k", "n", "seed", "max-length", "stop"}


def test_the_page_is_small() -> None:
    """The lecture's model, 11,897 weights of four bytes, three of which base64 makes four of."""
    model = MLP(27, 3, 10, 200)
    page = to_html(model, Vocabulary("abcdefghijklmnopqrstuvwxyz"))
    assert len(page.encode()) < 11_897 * 4 * 4 / 3 + 22_000


def test_what_cannot_be_exported_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^vocabulary must have the model's 4 tokens, got 9$"):
        to_html(NeuralBigram(4), LETTERS)
    vocabulary = Vocabulary("abcdefgh")
    vocabulary.tokens_are = "words"
    with pytest.raises(ValueError, match=r"^a page needs a vocabulary of characters or bytes, got one of words: "):
        to_html(NeuralBigram(9), vocabulary)
    with pytest.raises(TypeError, match=r"^title must be str, got int$"):
        to_html(NeuralBigram(9), LETTERS, title=5)  # type: ignore[arg-type]


# In a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = os.environ.get("CHARLM_BROWSER")
    if not path:
        pytest.skip("set CHARLM_BROWSER to the path of Chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Chromium's sandbox does not start for root, as in a container.
        started = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield started
        started.close()


class Opened:
    """A page in a browser, and all that it complains about or asks for."""

    def __init__(self, browser: Browser, path: Path, **options: Any) -> None:
        self.page: Page = browser.new_page(**options)
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())
        self.expected_requests = [path.as_uri()]

    def next(self) -> dict[int, float]:
        """The probability that the page has of each token that it shows."""
        shown = self.page.eval_on_selector_all(
            "#next button", "buttons => buttons.map(b => [b.dataset.token, b.dataset.probability])"
        )
        return {int(token): float(p) for token, p in shown}

    def drawn(self) -> list[str]:
        self.page.wait_for_selector("#drawn[aria-busy=false]")
        texts: list[str] = self.page.eval_on_selector_all("#drawn button", "buttons => buttons.map(b => b.textContent)")
        return ["" if text == "(nothing)" else text for text in texts]

    def set_temperature(self, value: float) -> None:
        self.page.locator("#temperature").fill(str(value))

    def close(self) -> None:
        self.page.close()
        assert self.complaints == []
        assert self.requests == self.expected_requests


@pytest.fixture
def opened(browser: Browser, tmp_path: Path) -> Iterator[Any]:
    pages: list[Opened] = []

    def open_page(name: str, **options: Any) -> Opened:
        path = tmp_path / "page.html"
        path.write_text(to_html(*models()[name], title=TITLE), encoding="utf-8", newline="")
        pages.append(Opened(browser, path, **options))
        return pages[-1]

    yield open_page
    for page in pages:
        page.close()


@in_a_browser
def test_the_browser_has_the_models_probabilities(name: str, opened: Any) -> None:
    model, vocabulary = models()[name]
    window: Opened = opened(name)
    assert window.page.title() == TITLE
    texts = ["", vocabulary.characters[-1], "".join(c for c in vocabulary.characters if c not in "\n\0\t")]
    for text in texts:
        window.page.fill("#text", text)
        logits = logits_in_double(model, context_of(text, model, vocabulary).unsqueeze(0))
        for temperature, top_k in ((1.0, None), (0.5, 3), (2.0, None), (0.0, None)):
            window.set_temperature(temperature)
            window.page.fill("#top-k", "" if top_k is None else str(top_k))
            expected = probabilities(logits, temperature, top_k)[0].tolist()
            assert window.next() == pytest.approx(dict(enumerate(expected)), rel=1e-9)
        assert window.page.inner_text("#temperature-value") == "0.00"
        window.page.fill("#top-k", "")
        contexts = torch.stack([context_of(text[:i], model, vocabulary) for i in range(len(text) + 1)])
        targets = [*vocabulary.encode(text).tolist(), vocabulary.boundary]
        log_probs = logits_in_double(model, contexts).log_softmax(1)[range(len(targets)), targets]
        score = float(window.page.get_attribute("#score", "data-log-probability").replace("Infinity", "inf"))
        assert score == pytest.approx(log_probs.sum().item(), rel=1e-9)
        bits = (-log_probs / np.log(2)).tolist()
        shown = window.page.locator("#surprises .bits").all_inner_texts()
        assert [float(x.replace("Infinity", "inf")) for x in shown] == pytest.approx(bits, abs=0.0501)


@in_a_browser
def test_the_browser_draws_the_texts_of_charlm_sample(name: str, opened: Any) -> None:
    model, vocabulary = models()[name]
    model = copy.deepcopy(model).double()
    prefix = vocabulary.characters[-1]
    window: Opened = opened(name)
    for text, temperature, top_k, n, seed in (
        ("", 1.0, None, 12, 0),
        (prefix, 0.5, 3, 5, -(2**63)),
        (prefix * 4, 1.0, None, 3, 2**64 - 1),
    ):
        window.page.fill("#text", text)
        window.set_temperature(temperature)
        window.page.fill("#top-k", "" if top_k is None else str(top_k))
        window.page.fill("#n", str(n))
        window.page.fill("#seed", str(seed))
        window.page.click("#draw")
        options: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "prefix": text}
        assert window.drawn() == charlm.sample(model, vocabulary, n, seed=seed, **options)
    window.page.fill("#max-length", "60")
    window.page.uncheck("#stop")
    window.page.click("#draw")
    assert window.drawn() == charlm.sample(model, vocabulary, n, seed=seed, max_length=60, stop=False, **options)


def test_the_page_is_worked_by_keyboard_and_by_clicks(opened: Any) -> None:
    window: Opened = opened("mlp")
    page = window.page
    page.locator("#text").press_sequentially("ab")
    assert page.inner_text("#most-probable").startswith("Most probable: ")
    page.keyboard.press("Enter")
    assert len(window.drawn()) == 10
    assert all(text.startswith("ab") for text in window.drawn())
    before = window.drawn()
    page.keyboard.press("Enter")
    assert window.drawn() != before
    # A bar puts its character behind the text, a drawn text takes its place.
    page.click("#next button:has(bdi:text-is('g'))")
    assert page.input_value("#text") == "abg"
    assert page.is_disabled("#next button:has(.named:text-is('end'))")
    chosen = window.drawn()[3]
    page.click("#drawn li:nth-child(4) button")
    assert page.input_value("#text") == chosen
    assert len(page.query_selector_all("#surprises li")) == len(chosen) + 1


def test_a_field_that_makes_no_sense_is_named(opened: Any) -> None:
    window: Opened = opened("mlp")
    page = window.page
    shown = window.next()
    for field, value, message in (
        ("#text", "abé", "“é” is not among the model's characters."),
        ("#top-k", "0", "Top k: "),
        ("#seed", "1.5", "Seed: "),
        ("#n", "", "How many: "),
        ("#max-length", "0", "Longest: "),
    ):
        before = page.input_value(field)
        page.fill(field, value)
        assert page.inner_text("#problem").startswith(message)
        assert page.locator("#problem").get_attribute("role") == "alert"
        assert window.next() == shown
        page.fill(field, before)
        assert page.inner_text("#problem") == ""


def test_a_draw_that_takes_long_ends_where_another_one_begins(opened: Any) -> None:
    window: Opened = opened("mlp")
    page = window.page
    page.uncheck("#stop")
    page.fill("#n", "1000")
    page.fill("#max-length", "100000")
    page.click("#draw")
    assert page.get_attribute("#drawn", "aria-busy") == "true"
    page.fill("#n", "2")
    page.fill("#max-length", "5")
    page.click("#draw")
    assert [len(text) for text in window.drawn()] == [5, 5]


def test_unknown_characters_have_a_token_where_the_model_has_one(browser: Browser, tmp_path: Path) -> None:
    vocabulary = Vocabulary("ab\ufffd")
    vocabulary.unknown = vocabulary.symbols.index("\ufffd")
    path = tmp_path / "page.html"
    path.write_text(to_html(MLP(4, 3, 2, 4), vocabulary), encoding="utf-8")
    window = Opened(browser, path)
    shown = []
    for text in ("aéb", "a\ufffdb", "ab"):
        window.page.fill("#text", text)
        shown.append(window.next())
    assert shown[0] == shown[1] != shown[2]
    window.close()


def test_bytes_are_the_utf8_of_texts(browser: Browser, tmp_path: Path) -> None:
    model, vocabulary = of_bytes()
    path = tmp_path / "page.html"
    path.write_text(to_html(model, vocabulary), encoding="utf-8")
    window = Opened(browser, path)
    window.page.fill("#text", "a中")
    expected = model_log_probs(model, list("中".encode()[-2:]))
    shown = window.next()
    assert len(shown) == 40
    assert shown == pytest.approx({token: np.exp(expected[token]) for token in shown}, rel=1e-9)
    assert window.page.locator("#surprises li").count() == 5
    disabled = window.page.eval_on_selector_all(
        "#next button:disabled", "buttons => buttons.map(b => Number(b.dataset.token))"
    )
    assert set(disabled) == {token for token in shown if token > 127 or token == 10}
    window.page.fill("#text", "é")
    window.page.click("#draw")
    assert all(text.startswith("é") for text in window.drawn())
    window.close()


def test_a_text_may_have_line_breaks_where_the_model_knows_them(opened: Any) -> None:
    window: Opened = opened("any characters")
    model, vocabulary = models()["any characters"]
    assert window.page.locator("label[for=text] + textarea#text").count() == 1
    window.page.fill("#text", "a\n1")
    logits = logits_in_double(model, context_of("a\n1", model, vocabulary).unsqueeze(0))
    assert window.next() == pytest.approx(dict(enumerate(logits.softmax(1)[0].tolist())), rel=1e-9)
    shown = window.page.locator("#next li").all_inner_texts()
    names = {text.split("\n")[0] for text in shown}
    assert {"end", "space", "tab", "U+0000", "U+0301", "U+202E", "U+2028", "<", "&", "😀"} <= names
    assert len(names) == len(HOSTILE) + 1


def test_of_many_characters_the_most_probable_are_shown(browser: Browser, tmp_path: Path) -> None:
    vocabulary = Vocabulary([chr(0x4E00 + i) for i in range(100)])
    model = NeuralBigram(101)
    with torch.no_grad():
        model.weight.normal_(generator=torch.Generator().manual_seed(0))
    path = tmp_path / "page.html"
    path.write_text(to_html(model, vocabulary), encoding="utf-8")
    window = Opened(browser, path)
    order = model.weight[0].argsort(descending=True)
    assert list(window.next()) == order[:40].tolist()
    rest = model.weight[0].double().softmax(0)[order[40:]].sum().item()
    assert window.page.inner_text("#others") == f"61 others together: {100 * rest:.1f} %"
    window.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1100, 360])
def test_it_fits_the_screen_and_can_be_read(scheme: str, width: int, opened: Any) -> None:
    window: Opened = opened("any characters", color_scheme=scheme, viewport={"width": width, "height": 800})
    window.page.click("#draw")
    assert window.page.evaluate("document.documentElement.scrollWidth") <= width
    colors = window.page.evaluate(
        "[...document.querySelectorAll('h1, label, button, #score, .named')].map((element) => {"
        "  let under = element;"
        "  while (getComputedStyle(under).backgroundColor === 'rgba(0, 0, 0, 0)') under = under.parentElement;"
        "  return [getComputedStyle(element).color, getComputedStyle(under).backgroundColor];"
        "})"
    )
    # The contrast that WCAG 2.1 asks for, level AA.
    for ink, paper in colors:
        one, other = sorted((luminance(ink), luminance(paper)))
        assert (other + 0.05) / (one + 0.05) >= 4.5, (ink, paper)


def luminance(color: str) -> float:
    """Relative luminance, as WCAG 2.1 defines it, of `rgb(...)`, or of `color(srgb ...)` with parts of 1."""
    scale = 255.0 if color.startswith("rgb") else 1.0
    parts = [float(x) / scale for x in re.findall(r"[\d.]+", color.removeprefix("color(srgb"))[:3]]
    red, green, blue = (x / 12.92 if x <= 0.03928 else ((x + 0.055) / 1.055) ** 2.4 for x in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
