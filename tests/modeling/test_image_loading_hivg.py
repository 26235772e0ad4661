"""Pictures of every kind open as a viewer shows them; bad ones are refused in one sentence that names them."""

import base64
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from io import BytesIO
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from hivg_hf.modeling.image_loading_hivg import load_grounding_image


def png_bytes(image: PIL.Image.Image) -> bytes:
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def red_file(tmp_path: Path) -> Path:
    path = tmp_path / "red.png"
    PIL.Image.new("RGB", (6, 4), (255, 0, 0)).save(path)
    return path


@pytest.fixture
def server(red_file: Path) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = self.path == "/red.png"
            self.send_response(200 if found else 404)
            self.end_headers()
            self.wfile.write(red_file.read_bytes() if found else b"")

        def log_message(self, *args: object) -> None:
            pass

    httpd = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    httpd.server_close()


def pixel(image: PIL.Image.Image, x: int = 0, y: int = 0) -> tuple[int, ...]:
    assert image.mode == "RGB"
    return image.getpixel((x, y))


def test_path_string_bytes_url_and_data_url_give_the_same_picture(red_file: Path, server: str) -> None:
    data = red_file.read_bytes()
    data_url = "data:image/png;base64," + base64.b64encode(data).decode()
    sources = [red_file, str(red_file), data, f"{server}/red.png", data_url, PIL.Image.open(red_file), {"bytes": data}]
    for source in sources:
        image = load_grounding_image(source)
        assert image.size == (6, 4)
        assert pixel(image, 5, 3) == (255, 0, 0)


def test_exif_rotation_is_applied_once(tmp_path: Path) -> None:
    image = PIL.Image.new("RGB", (64, 48), "black")
    image.paste((255, 255, 255), (0, 0, 8, 8))
    exif = image.getexif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by 90 degrees clockwise
    image.save(tmp_path / "turned.png", exif=exif)
    upright = load_grounding_image(tmp_path / "turned.png")
    assert upright.size == (48, 64)
    assert pixel(upright, 45, 2) == (255, 255, 255)  # the white corner has gone to the top right
    again = load_grounding_image(upright)
    assert again.size == (48, 64)


def test_grey_palette_alpha_and_cmyk_pictures_show_as_in_a_viewer() -> None:
    assert pixel(load_grounding_image(PIL.Image.new("L", (3, 3), 90))) == (90, 90, 90)
    assert pixel(load_grounding_image(PIL.Image.new("1", (3, 3), 1))) == (255, 255, 255)
    web_palette = PIL.Image.new("RGB", (3, 3), (0, 204, 0)).convert("P")
    assert pixel(load_grounding_image(web_palette)) == (0, 204, 0)
    assert pixel(load_grounding_image(PIL.Image.new("CMYK", (3, 3), (0, 255, 255, 0)))) == (255, 0, 0)
    assert pixel(load_grounding_image(PIL.Image.new("RGBA", (3, 3), (255, 0, 0, 0)))) == (255, 255, 255)
    half = pixel(load_grounding_image(PIL.Image.new("RGBA", (3, 3), (0, 0, 0, 128))))
    assert half == pytest.approx((127, 127, 127), abs=1)
    assert pixel(load_grounding_image(PIL.Image.new("LA", (3, 3), (0, 0)))) == (255, 255, 255)


def test_transparent_palette_entry_becomes_white(tmp_path: Path) -> None:
    image = PIL.Image.new("P", (4, 4), 0)
    image.putpalette([10, 20, 30, 200, 0, 0] + [0] * 762)
    image.putpixel((1, 1), 1)
    image.save(tmp_path / "palette.png", transparency=0)
    opened = load_grounding_image(tmp_path / "palette.png")
    assert pixel(opened, 0, 0) == (255, 255, 255)
    assert pixel(opened, 1, 1) == (200, 0, 0)


def test_sixteen_bit_samples_are_scaled_not_saturated(tmp_path: Path) -> None:
    ramp = np.array([[0, 32639, 65535]], dtype=np.uint16)
    PIL.Image.fromarray(ramp).save(tmp_path / "deep.png")
    for source in (tmp_path / "deep.png", ramp, PIL.Image.fromarray(ramp.astype(np.int32))):
        opened = load_grounding_image(source)
        assert [pixel(opened, x)[0] for x in range(3)] == [0, 127, 255]


def test_arrays_and_tensors_in_every_layout() -> None:
    colour = np.zeros((5, 7, 3), dtype=np.uint8)
    colour[..., 2] = 200
    for array in (colour, colour.transpose(2, 0, 1), torch.from_numpy(colour), colour.astype(np.int64)):
        opened = load_grounding_image(array)
        assert opened.size == (7, 5)
        assert pixel(opened) == (0, 0, 200)
    assert pixel(load_grounding_image(torch.full((3, 5, 7), 0.5, dtype=torch.bfloat16))) == (128, 128, 128)
    assert pixel(load_grounding_image(np.ones((5, 7), dtype=bool))) == (255, 255, 255)
    assert pixel(load_grounding_image(np.zeros((5, 7, 4), dtype=np.uint8))) == (255, 255, 255)


def test_files_that_cannot_be_shown_are_named(tmp_path: Path, red_file: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"Image file not found: '.*absent\.png'"):
        load_grounding_image(tmp_path / "absent.png")
    with pytest.raises(ValueError, match="is a folder"):
        load_grounding_image(tmp_path)
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(ValueError, match=r"empty\.jpg' is empty"):
        load_grounding_image(tmp_path / "empty.jpg")
    (tmp_path / "page.jpg").write_text("<html>404</html>")
    with pytest.raises(ValueError, match=r"page\.jpg' is not an image"):
        load_grounding_image(tmp_path / "page.jpg")
    noise = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    for suffix in ("jpg", "png"):
        whole = BytesIO()
        noise.save(whole, {"jpg": "JPEG", "png": "PNG"}[suffix])
        (tmp_path / f"cut.{suffix}").write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
        with pytest.raises(ValueError, match=rf"cut\.{suffix}' is truncated or damaged"):
            load_grounding_image(tmp_path / f"cut.{suffix}")


def test_a_lazily_opened_truncated_picture_is_named_too(tmp_path: Path) -> None:
    noise = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    (tmp_path / "cut.png").write_bytes(png_bytes(noise)[:5000])
    with PIL.Image.open(tmp_path / "cut.png") as opened, pytest.raises(ValueError, match=r"cut\.png' is truncated"):
        load_grounding_image(opened)


def test_unreachable_urls_are_named(server: str) -> None:
    with pytest.raises(ConnectionError, match=r"/nothing\.png' could not be fetched: HTTP 404"):
        load_grounding_image(f"{server}/nothing.png")
    with pytest.raises(ConnectionError, match=r"127\.0\.0\.1:1/x\.png' could not be fetched"):
        load_grounding_image("http://127.0.0.1:1/x.png")
    with pytest.raises(ValueError, match="valid base64"):
        load_grounding_image("data:image/png;base64,???")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((1, 3, 3), np.uint8), "first or the last axis"),
        (np.zeros((5, 7, 2), np.uint8), "1, 3 or 4 channels"),
        (np.zeros((2, 2, 5, 7), np.uint8), "2 or 3 axes"),
        (np.zeros((0, 7), np.uint8), "must have pixels"),
        (np.full((5, 7), np.nan), "not finite"),
        (torch.full((3, 5, 7), float("inf")), "not finite"),
        (np.full((5, 7, 3), 300.0), "from 0 to 1 or 0 to 255, found 300"),
        (np.full((5, 7, 3), -1.0), "already normalized"),
        (np.full((5, 7, 3), 1.5), "clip it to 0..1"),
        (np.full((5, 7, 3), 300), "from 0 to 255"),
    ],
)
def test_ambiguous_or_impossible_arrays_are_refused(array: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_grounding_image(array)


def test_things_that_are_no_images_are_refused() -> None:
    with pytest.raises(TypeError, match="not int"):
        load_grounding_image(7)
    with pytest.raises(TypeError, match="integers or floats"):
        load_grounding_image(np.zeros((5, 7), dtype=complex))
