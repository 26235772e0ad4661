"""The demo page: what it answers, and, driven in a browser, what a visitor sees."""

import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

import hivg_hf
from hivg_hf import HiVGForVisualGrounding, HiVGProcessor, VisualGroundingPipeline
from hivg_hf.inference import load_pipeline
from hivg_hf.web_page import MOST_EXPRESSIONS, answer_question, build_page, serve

SECONDS = 60


@pytest.fixture(scope="module")
def pipe(tiny_model: HiVGForVisualGrounding, tiny_processor: HiVGProcessor) -> VisualGroundingPipeline:
    return VisualGroundingPipeline(tiny_model, processor=tiny_processor, device="cpu")


@pytest.fixture
def photo(tmp_path: Path) -> str:
    pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    PIL.Image.fromarray(pixels).save(tmp_path / "photo.png")
    return str(tmp_path / "photo.png")


def test_each_line_gets_a_row_and_a_heat_map(pipe: VisualGroundingPipeline, photo: str) -> None:
    picture, heatmaps, rows, message = answer_question(pipe, photo, "the star\n\n  the red \n")
    assert picture.size == (480, 320)
    assert [caption for _, caption in heatmaps] == ["the star", "the red"]
    assert heatmaps[0][0].size == (90, 60)
    expected = pipe(photo, "the star")
    assert rows[0] == ["the star", round(expected["score"], 3), *(round(x, 1) for x in expected["box"].values())]
    assert message == ""
    *_, message = answer_question(pipe, photo, "the star", threshold=1.0)
    assert message == "Below the threshold, so perhaps not in the picture: the star."


@pytest.mark.parametrize(
    ("image", "lines", "message"),
    [
        (None, "the star", "Choose an example or upload a picture first"),
        ("photo", " \n", "Write at least one expression"),
        ("photo", "\n".join("abcdefghijklmnopqrstuvwxyz"), f"at most {MOST_EXPRESSIONS} expressions; these are 26"),
        ("text", "the star", "'notes.png' is not an image"),
    ],
)
def test_what_cannot_be_answered_is_said(
    pipe: VisualGroundingPipeline, photo: str, tmp_path: Path, image: str | None, lines: str, message: str
) -> None:
    (tmp_path / "notes.png").write_text("no picture")
    chosen = {"photo": photo, "text": str(tmp_path / "notes.png"), None: None}[image]
    picture, heatmaps, rows, said = answer_question(pipe, chosen, lines)
    assert (picture, heatmaps, rows) == (None, [], [])
    assert message in said
    assert str(tmp_path) not in said


@pytest.fixture(scope="module")
def address(pipe: VisualGroundingPipeline) -> Iterator[str]:
    """The page of the shipped checkpoint, or, in a checkout without it, of a tiny model."""
    if Path(hivg_hf.TINY_CHECKPOINT).is_dir():
        pipe = load_pipeline(hivg_hf.TINY_CHECKPOINT, "cpu")
    pytest.importorskip("gradio", reason="gradio is not installed: pip install 'hivg_hf[demo]'")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    page = build_page(pipe)
    serve(page, port=port, prevent_thread_lock=True, quiet=True)
    yield f"http://127.0.0.1:{port}"
    page.close()


@pytest.fixture
def open_page(address: str) -> Iterator[Any]:
    """A function that opens the page in a window of a headless Chromium and returns a `Visitor`."""
    pytest.importorskip("selenium", reason="selenium is not installed")
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("there is no chromium and chromedriver: apt-get install chromium chromium-driver")
    visitors: list[Visitor] = []

    def open_one() -> "Visitor":
        visitors.append(Visitor(address))
        return visitors[-1]

    yield open_one
    for visitor in visitors:
        visitor.browser.quit()


class Visitor:
    """Somebody at the page."""

    def __init__(self, address: str):
        from selenium import webdriver
        from selenium.webdriver.support.wait import WebDriverWait

        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which("chromium")
        for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1400,1000"):
            options.add_argument(argument)
        service = webdriver.ChromeService(executable_path=shutil.which("chromedriver"))
        self.browser = webdriver.Chrome(options=options, service=service)
        self._wait = WebDriverWait(self.browser, SECONDS)
        self.browser.get(address)
        self.element("#find")

    def element(self, selector: str) -> Any:
        return self._wait.until(lambda browser: browser.find_element("css selector", selector))

    def upload(self, path: str) -> None:
        self.element("#picture input[type=file]").send_keys(path)
        self.element("#picture img")

    def write(self, *expressions: str) -> None:
        field = self.element("#expressions textarea")
        field.clear()
        field.send_keys("\n".join(expressions))

    def find(self) -> None:
        self.element("#find").click()

    def rows(self, first: str) -> list[str]:
        """The expressions of the table, once the first of them is `first`."""

        def cells(browser: Any) -> list[str]:
            selector = "#table [data-testid^=cell-][data-col='0']"
            texts = [cell.text.strip() for cell in browser.find_elements("css selector", selector)]
            texts = [text for text in texts if text]
            return texts if texts[:1] == [first] else []

        return self._wait.until(cells)

    def message(self, part: str) -> str:
        return self._wait.until(lambda _: part in (text := self.element("#message").text) and text)


@pytest.mark.browser
def test_an_example_is_answered(open_page: Any) -> None:
    visitor = open_page()
    visitor.element("#examples table tbody tr, #examples .gallery-item").click()
    visitor.element("#picture img")
    expressions = visitor._wait.until(lambda _: visitor.element("#expressions textarea").get_attribute("value"))
    visitor.find()
    assert visitor.rows(expressions.splitlines()[0]) == expressions.splitlines()
    assert visitor.element("#boxes img").get_attribute("naturalWidth") != "0"
    if "HIVG_SCREENSHOT" in os.environ:  # HIVG_SCREENSHOT=docs/images/demo.png renews the README's picture
        visitor.browser.save_screenshot(os.environ["HIVG_SCREENSHOT"])


@pytest.mark.browser
def test_an_upload_and_several_expressions_then_mistakes(open_page: Any, photo: str, tmp_path: Path) -> None:
    visitor = open_page()
    visitor.upload(photo)
    visitor.write("the star", "the red", "a blue ring")
    visitor.find()
    assert visitor.rows("the star") == ["the star", "the red", "a blue ring"]
    visitor.write(" ")
    visitor.find()
    assert "Write at least one expression" in visitor.message("Write")
    (tmp_path / "notes.png").write_text("no picture")
    other = open_page()
    other.element("#picture input[type=file]").send_keys(str(tmp_path / "notes.png"))
    other.write("the star")
    other._wait.until(lambda _: other.browser.find_elements("css selector", "#picture img"))
    other.find()
    assert "notes.png' is not an image" in other.message("not an image")


@pytest.mark.browser
def test_two_visitors_at_once_get_their_own_answers(open_page: Any, photo: str) -> None:
    first, second = open_page(), open_page()
    for visitor, expression in ((first, "the star"), (second, "the red ring")):
        visitor.upload(photo)
        visitor.write(expression)
    first.find()
    second.find()
    assert second.rows("the red ring") == ["the red ring"]
    assert first.rows("the star") == ["the star"]
