"""The demo page: what it answers, and, driven in a browser, what a visitor sees."""

import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

import hivg_hf
from hivg_hf import HiVGForVisualGrounding, HiVGProcessor, VisualGroundingPipeline
from hivg_hf.inference import load_pipeline
from hivg_hf.inference.web_page import DISPLAY_SIDE, MOST_EXPRESSIONS, answer_question, build_page, serve

SECONDS = 30
HOSTILE = (
    """<img src=x onerror="document.title='hacked'"><script>document.title='hacked'</script> **b** """
    "[a](javascript:0) ![p](/p) ${document.title='hacked'} {{7*7}} $$x^2$$ &lt;b&gt;"
)


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


def test_the_models_own_threshold_is_where_the_slider_begins_and_zero_turns_it_off(
    pipe: VisualGroundingPipeline, photo: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slider() -> float:
        components = build_page(pipe).config["components"]
        return next(one["props"]["value"] for one in components if one["type"] == "slider")

    assert slider() == 0
    monkeypatch.setattr(pipe.model.config, "num_queries", 3)
    assert slider() == 0.5  # as the pipeline has it for several boxes
    monkeypatch.setattr(pipe.model.config, "num_queries", 1)
    monkeypatch.setattr(pipe.model.config, "score_threshold", 1.0)
    assert slider() == 1
    assert answer_question(pipe, photo, "the star", slider())[-1].startswith("Below the threshold")
    assert answer_question(pipe, photo, "the star", threshold=0)[-1] == ""


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


def test_words_of_a_visitor_are_text(pipe: VisualGroundingPipeline, photo: str) -> None:
    *_, table, message = answer_question(pipe, photo, HOSTILE, threshold=1.0)
    assert "&lt;img src=x onerror=" in message
    assert "<" not in message
    assert table[0][0] == HOSTILE  # cells are shown as text
    *_, message = answer_question(pipe, str(Path(photo).with_name("<script>.png")), "the star")
    assert "<script" not in message


@pytest.mark.parametrize(
    ("lines", "threshold", "message"),
    [
        ("m" * 501, 0.0, "at most 500 characters; one of these has 501"),
        ("the star\n" + "m" * 10**6, 0.0, "at most 500 characters"),
        ("a\n" * 10**5, 0.0, f"at most {MOST_EXPRESSIONS} expressions; these are 100000"),
        ("the \ud800star", 0.0, "halves of characters"),
        ("the star", 1.5, "threshold must be a number from 0 to 1, got 1.5"),
        ("the star", float("nan"), "got nan"),
        ("the star", "high" * 100, "got highhigh"),
        ("the star", None, "got None"),
    ],
)
def test_words_and_numbers_beyond_the_limits_are_refused(
    pipe: VisualGroundingPipeline, photo: str, lines: str, threshold: Any, message: str
) -> None:
    *_, said = answer_question(pipe, photo, lines, threshold)
    assert message in said
    assert len(said) < 200


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (png_header(6400, 6400), "has 41 million pixels, more than 40 million"),
        (png_header(13_000, 13_000), "has 169 million pixels, more than 40 million"),
        (png_header(2**31 - 1, 2**31 - 1), "cannot be opened"),
        (png_header(0, 7), "is not an image|cannot be opened"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is not an image of a kind this page reads: JPEG"),
        (b"P6 9 9 255\n" + bytes(243), "is not an image of a kind this page reads"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is not an image of a kind"),
        (b"", "is not an image of a kind"),
        (b"GIF89a", "is not an image of a kind|cannot be opened"),
        (b"\xff\xd8\xff", "is not an image of a kind|cannot be opened"),
    ],
    ids=["41 megapixels", "169 megapixels", "huge", "no pixels", "eps", "ppm", "svg", "empty", "cut gif", "cut jpeg"],
)
def test_the_header_decides_before_pixels_are_read(
    pipe: VisualGroundingPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes, message: str
) -> None:
    def load(*arguments: Any) -> None:
        raise AssertionError("pixels were read")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    (tmp_path / "picture.png").write_bytes(data)
    *_, said = answer_question(pipe, str(tmp_path / "picture.png"), "the star")
    assert re.search(message, said)
    assert str(tmp_path) not in said


def test_large_pictures_are_drawn_at_display_size_with_boxes_of_the_upload(
    pipe: VisualGroundingPipeline, tmp_path: Path
) -> None:
    PIL.Image.effect_mandelbrot((3000, 2000), (-3, -2.5, 2, 2.5), 50).save(tmp_path / "large.png")
    drawn, heatmaps, rows, message = answer_question(pipe, str(tmp_path / "large.png"), "the star\nred")
    assert message == ""
    assert drawn.size == heatmaps[0][0].size == (DISPLAY_SIDE, round(DISPLAY_SIDE * 2 / 3))
    expected = pipe(str(tmp_path / "large.png"), "the star")
    assert rows[0] == ["the star", round(expected["score"], 3), *(round(x, 1) for x in expected["box"].values())]


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_photographs_of_many_megapixels_are_decoded_smaller(
    pipe: VisualGroundingPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, orientation: int
) -> None:
    """As a phone writes them: more pixels than are decoded, turned by EXIF."""
    monkeypatch.setattr("hivg_hf.inference.web_page.MOST_PIXELS", 100_000)
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    PIL.Image.effect_mandelbrot((800, 601), (-3, -2.5, 2, 2.5), 50).save(tmp_path / "phone.jpg", exif=exif, quality=95)
    _, heatmaps, rows, message = answer_question(pipe, str(tmp_path / "phone.jpg"), "the star")
    assert message == ""
    width, height = (800, 601) if orientation < 5 else (601, 800)
    assert heatmaps[0][0].size == ((width + 3) // 4, (height + 3) // 4)
    expected = pipe(str(tmp_path / "phone.jpg"), "the star")["box"]
    assert rows[0][2:] == pytest.approx(list(expected.values()), abs=12)  # the same within its own resampling
    PIL.Image.new("RGB", (800, 600)).save(tmp_path / "web.jpg", progressive=True)  # all of it is held in memory
    *_, message = answer_question(pipe, str(tmp_path / "web.jpg"), "the star")
    assert "more than 0 million" in message


MEMORY_SCRIPT = """
import resource, sys
from hivg_hf import TINY_CHECKPOINT
from hivg_hf.inference import load_pipeline
from hivg_hf.inference.web_page import answer_question
pipe = load_pipeline(sys.argv[1], "cpu")
answer_question(pipe, sys.argv[2], "warm up")
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + int(sys.argv[4])
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
drawn, heatmaps, rows, message = answer_question(pipe, sys.argv[3], "\\n".join(f"star {n}" for n in range(16)))
print(len(heatmaps), len(rows), message)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc and RLIMIT_AS")
def test_sixteen_expressions_of_forty_megapixels_need_less_than_a_gigabyte(
    tiny_model: HiVGForVisualGrounding, tiny_processor: HiVGProcessor, photo: str, tmp_path: Path
) -> None:
    VisualGroundingPipeline(tiny_model, processor=tiny_processor, device="cpu").save_pretrained(tmp_path / "model")
    PIL.Image.new("RGB", (8000, 5000), (200, 30, 30)).save(tmp_path / "large.png", compress_level=1)
    arguments = [str(tmp_path / "model"), photo, str(tmp_path / "large.png"), str(2**30)]
    done = subprocess.run(
        [sys.executable, "-c", MEMORY_SCRIPT, *arguments], capture_output=True, text=True, timeout=120
    )
    assert done.stdout.split() == ["16", "16"], done.stdout + done.stderr


def test_what_does_not_fit_into_memory_is_said(photo: str) -> None:
    def no_memory(*arguments: Any, **options: Any) -> Any:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    *_, message = answer_question(no_memory, photo, "the star")
    assert message == "⚠ There was not enough memory for this picture: send a smaller one."


def test_faults_of_the_model_are_not_taken_for_a_lack_of_memory(photo: str) -> None:
    def faulty(*arguments: Any, **options: Any) -> Any:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        answer_question(faulty, photo, "the star")


@pytest.mark.filterwarnings("ignore:The expression")
def test_damaged_pictures_and_odd_words_give_an_answer_or_a_sentence(
    pipe: VisualGroundingPipeline, tmp_path: Path
) -> None:
    """HIVG_FUZZ_CASES=10000 tries more."""
    random = np.random.default_rng(2026 + int(os.environ.get("HIVG_FUZZ_SEED", "0")))
    pixels = random.integers(0, 256, (24, 32, 4), dtype=np.uint8)
    whole = []
    for kind, mode in (
        ("png", "RGBA"),
        ("jpeg", "RGB"),
        ("webp", "RGBA"),
        ("gif", "P"),
        ("bmp", "L"),
        ("png", "I;16"),
    ):
        picture = PIL.Image.fromarray(pixels).convert("L" if mode == "I;16" else mode)
        picture.convert(mode).save(tmp_path / "whole", kind)
        whole.append((tmp_path / "whole").read_bytes())
    letters = ["star", " ", "\n", "\0", "\ud800", "\u202e", "\u0301", "<b>", "$$", "é", "😀", "\x1b[31m", "m" * 300]
    counts = {"answers": 0, "sentences": 0}
    for _ in range(int(os.environ.get("HIVG_FUZZ_CASES", "200"))):
        data = bytearray(whole[random.integers(len(whole))])
        for _ in range(random.integers(0, 6)):
            data[random.integers(len(data))] = random.integers(256)
        if random.random() < 0.2:
            data = data[: random.integers(len(data))]
        (tmp_path / "picture").write_bytes(data)
        lines = "".join(random.choice(letters, random.integers(1, 12)))
        drawn, heatmaps, rows, message = answer_question(pipe, str(tmp_path / "picture"), lines, random.random())
        assert "<" not in message
        assert str(tmp_path) not in message
        if drawn is None:
            assert message.startswith("⚠ ")
            assert len(message) < 400
        else:
            assert len(heatmaps) == len({expression for expression, *_ in rows}) > 0  # one where two lines are alike
            assert np.isfinite(np.array([row[1:] for row in rows], dtype=float)).all()
        counts["sentences" if drawn is None else "answers"] += 1
    assert min(counts.values()) > 20


@pytest.mark.parametrize(
    ("name", "knows_shapes", "shown"),
    [
        (
            "tiny",
            True,
            "Model: <code>tiny</code>, which knows rendered shapes only. For photos: <code>hivg demo --model",
        ),
        ("official:base-mixup", False, "Model: <code>official:base-mixup</code>"),
        ("me/<b>", False, "Model: <code>me/&lt;b&gt;</code>"),
    ],
)
def test_the_page_names_its_model_and_has_examples_for_the_one_that_knows_them(
    pipe: VisualGroundingPipeline, name: str, knows_shapes: bool, shown: str
) -> None:
    pytest.importorskip("gradio", reason="gradio is not installed: pip install 'hivg_hf[demo]'")
    components = build_page(pipe, name).config["components"]
    (about,) = [part["props"]["value"] for part in components if part["props"].get("elem_id") == "model"]
    assert about.startswith(shown)
    assert ("rendered shapes" in about) == knows_shapes
    assert any(part["type"] == "dataset" for part in components) == knows_shapes


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
        self._profile = tempfile.TemporaryDirectory(prefix="hivg-browser-")
        quiet = ("--disable-gpu", "--disable-background-networking", "--no-first-run")
        size, profile = "--window-size=1400,1000", f"--user-data-dir={self._profile.name}"
        for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", *quiet, size, profile):
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

    def set_threshold(self, value: float) -> None:
        self._wait.until(lambda browser: browser.find_element("xpath", "//button[contains(., 'Options')]")).click()
        field = self._wait.until(lambda browser: browser.find_element("css selector", "input[type=number]"))
        self._wait.until(lambda _: field.is_displayed())
        field.clear()
        field.send_keys(f"{value}\t")

    def tab(self, label: str) -> None:
        self._wait.until(
            lambda browser: browser.find_element("xpath", f"//button[@role='tab'][contains(., '{label}')]")
        )
        self.browser.find_element("xpath", f"//button[@role='tab'][contains(., '{label}')]").click()

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
def test_an_expression_with_markup_is_shown_as_text(open_page: Any, photo: str, tmp_path: Path) -> None:
    visitor = open_page()
    title = visitor.browser.title
    visitor.upload(photo)
    visitor.write(HOSTILE)
    visitor.set_threshold(1)
    visitor.find()
    assert visitor.rows(HOSTILE) == [HOSTILE]
    assert visitor.message("Below the threshold") == f"Below the threshold, so perhaps not in the picture: {HOSTILE}."
    visitor.tab("Heat maps")
    assert visitor.element("#heatmaps .caption-label, #heatmaps figcaption, #heatmaps .caption").text == HOSTILE
    selector = "#message *, #heatmaps figcaption *, #table td *"
    tags = {part.tag_name for part in visitor.browser.find_elements("css selector", selector)}
    assert not tags & {"img", "script", "a", "strong", "b", "math"}
    name = tmp_path / "<img src=x onerror=document.title=1>.png"
    name.write_text("no picture")
    other = open_page()
    other.element("#picture input[type=file]").send_keys(str(name))
    other._wait.until(lambda _: other.browser.find_elements("css selector", "#picture img"))
    other.write("the star")
    other.find()
    other.message("is not an image")
    assert visitor.browser.title == other.browser.title == title


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


def test_a_page_of_any_model_keeps_pictures_in_a_folder_of_its_own() -> None:
    """Components read the folder once, when they are made: in a new process, in which nothing has set it."""
    code = (
        "from hivg_hf.inference import load_pipeline\n"
        "from hivg_hf.inference.web_page import _page_folder, build_page\n"
        "page = build_page(load_pipeline('tiny'), 'mine')\n"
        "kept = {block.GRADIO_CACHE for block in page.blocks.values() if hasattr(block, 'GRADIO_CACHE')}\n"
        "assert kept == {str(_page_folder())}, kept\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "GRADIO_TEMP_DIR"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
