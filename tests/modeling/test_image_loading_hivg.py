"""Pictures of every kind open as a viewer shows them; bad ones are refused in one sentence that names them."""

import base64
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from io import BytesIO
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
import torch

from helpers.turned_pictures import UNDONE, save_turned
from hivg_hf.modeling.image_loading_hivg import image_size, is_reduced, load_grounding_image, open_image


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


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.parametrize("orientation", UNDONE)
def test_files_are_upright_and_objects_as_they_are_held(tmp_path: Path, orientation: int, suffix: str) -> None:
    ramp = np.add.outer(np.arange(48) * 3, np.arange(64)).astype(np.uint8)  # no symmetry, and kind to JPEG
    shown = PIL.Image.fromarray(np.stack([ramp] * 3, axis=-1))
    path = tmp_path / f"turned.{suffix}"
    stored = save_turned(shown, path, orientation, **({"lossless": True} if suffix == "webp" else {"quality": 95}))

    def differs(opened: PIL.Image.Image, expected: PIL.Image.Image) -> int:
        assert opened.size == expected.size
        return int(np.abs(np.asarray(opened).astype(int) - np.asarray(expected)).max())

    data = path.read_bytes()
    for source in (path, str(path), data, bytearray(data), BytesIO(data), {"bytes": data, "path": None}):
        upright = load_grounding_image(source)
        assert differs(upright, shown) <= 4
        assert differs(load_grounding_image(upright), shown) <= 4  # nothing is turned twice
    with PIL.Image.open(path) as lazy:
        assert differs(load_grounding_image(lazy), stored) <= 4
        assert differs(load_grounding_image(lazy.convert("RGB")), stored) <= 4
        by_hand = lazy.transpose(PIL.Image.Transpose.ROTATE_90)  # keeps the tag
        assert differs(load_grounding_image(by_hand), stored.transpose(PIL.Image.Transpose.ROTATE_90)) <= 4
        assert differs(load_grounding_image(PIL.ImageOps.exif_transpose(lazy)), shown) <= 4


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


@pytest.mark.parametrize("mode", ["I", "I;16", "F"])
def test_8_bit_values_in_a_deeper_mode_are_not_black(mode: str) -> None:
    values = np.array([[0, 90, 255]])
    held = PIL.Image.fromarray(values.astype({"I": np.int32, "I;16": np.uint16, "F": np.float32}[mode]))
    assert held.mode == mode
    opened = load_grounding_image(held)
    assert [pixel(opened, x)[0] for x in range(3)] == [0, 90, 255]


def test_samples_out_of_range_are_refused_by_value() -> None:
    for value in (-1, 70000):
        with pytest.raises(ValueError, match=f"samples from 0 to {value}|samples from {value} to 0"):
            load_grounding_image(PIL.Image.fromarray(np.array([[0, value]], dtype=np.int32)))
    with pytest.raises(ValueError, match="The 1 x 1 image has pixels that are not finite"):
        load_grounding_image(PIL.Image.fromarray(np.array([[np.nan]], dtype=np.float32)))


def test_floats_in_either_range_are_pixels() -> None:
    eight_bit = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    expected = np.asarray(load_grounding_image(eight_bit))
    for floats in (eight_bit / 255, eight_bit.astype(np.float32), (eight_bit / 255).astype(np.float32) * 1.0000002):
        assert np.array_equal(np.asarray(load_grounding_image(floats)), expected)
    assert np.array_equal(np.asarray(load_grounding_image(eight_bit.astype(np.uint16))), expected)
    assert np.array_equal(np.asarray(load_grounding_image(eight_bit.astype(np.uint16) * 257)), expected)
    assert np.array_equal(np.asarray(load_grounding_image(eight_bit.astype(">u2") * 257)), expected)


def test_input_data_format_settles_what_a_shape_does_not() -> None:
    array = np.zeros((3, 5, 3), dtype=np.uint8)
    assert load_grounding_image(array, input_data_format="channels_first").size == (3, 5)
    assert load_grounding_image(array, input_data_format="channels_last").size == (5, 3)
    with pytest.raises(ValueError, match="does not have 1, 3 or 4 channels as channels_first says"):
        load_grounding_image(np.zeros((5, 7, 3), dtype=np.uint8), input_data_format="channels_first")
    with pytest.raises(ValueError, match="must be 'channels_first' or 'channels_last', got 'HWC'"):
        load_grounding_image(array, input_data_format="HWC")


def png_header(width: int, height: int) -> bytes:
    """A PNG that announces a size and holds next to nothing."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(("width", "height"), [(12_000, 12_000), (60_000, 60_000), (2**31 - 1, 2**31 - 1)])
def test_a_bomb_is_refused_by_its_header(tmp_path: Path, width: int, height: int) -> None:
    data = png_header(width, height)
    (tmp_path / "bomb.png").write_bytes(data)
    for source in (data, tmp_path / "bomb.png", BytesIO(data), base64.b64encode(data).decode()):
        with pytest.raises(ValueError, match=r"is too large to open safely: .*\d{9}"):
            load_grounding_image(source)


def test_the_limit_can_be_lower() -> None:
    data = png_bytes(PIL.Image.new("RGB", (20, 10)))
    assert load_grounding_image(data, max_pixels=200).size == (20, 10)
    with pytest.raises(ValueError, match="20 x 10 = 200 pixels, and at most 199 are allowed"):
        load_grounding_image(data, max_pixels=199)


def test_formats_that_start_programs_are_not_opened(tmp_path: Path) -> None:
    picture = PIL.Image.new("RGB", (20, 10))
    for format in ("EPS", "PDF", "ICO", "TGA", "PCX", "SGI", "ICNS", "JPEG2000"):
        path = tmp_path / "picture.png"  # a name says nothing of what is inside
        picture.save(path, format)
        with pytest.raises(ValueError, match=r"picture\.png' is not an image in a supported format"):
            load_grounding_image(path)
    picture.save(path, "EPS")
    with PIL.Image.open(path) as lazy, pytest.raises(ValueError, match="in the format EPS, expected one of JPEG"):
        load_grounding_image(lazy)
    with PIL.Image.open(path, formats=["EPS"]) as lazy:
        assert lazy.format == "EPS"  # so Pillow would have


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "BMP", "DIB", "PPM", "WEBP", "TIFF", "AVIF", "MPO"])
def test_formats_of_pictures_are_opened(format: str) -> None:
    buffer = BytesIO()
    PIL.Image.new("RGB", (20, 10), "white").save(buffer, format)
    for source in (buffer, PIL.Image.open(buffer)) if format != "DIB" else (PIL.Image.open(buffer),):
        assert load_grounding_image(source).getpixel((3, 3)) == (255, 255, 255)


def test_a_closed_picture_says_so(red_file: Path) -> None:
    with PIL.Image.open(red_file) as closed:
        pass
    with pytest.raises(ValueError, match=r"red\.png' was closed before its pixels were read"):
        load_grounding_image(closed)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "BMP", "PPM", "WEBP", "TIFF", "AVIF"])
def test_damaged_bytes_give_a_picture_or_one_sentence(format: str) -> None:
    rng = np.random.default_rng(5)
    buffer = BytesIO()
    PIL.Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)).save(buffer, format)
    whole = np.frombuffer(buffer.getvalue(), dtype=np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(60):
            damaged = whole.copy()
            places = rng.integers(0, min(len(whole), 200), rng.integers(1, 6))
            damaged[places] = rng.integers(0, 256, len(places))
            try:
                message = load_grounding_image(damaged.tobytes(), max_pixels=10**6).mode
            except ValueError as error:
                message = str(error)
            assert "\n" not in message


def test_arrays_and_tensors_in_every_layout() -> None:
    color = np.zeros((5, 7, 3), dtype=np.uint8)
    color[..., 2] = 200
    for array in (color, color.transpose(2, 0, 1), torch.from_numpy(color), color.astype(np.int64)):
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


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_a_large_jpeg_can_be_decoded_small_and_keeps_its_size(orientation: int, tmp_path: Path) -> None:
    ramp = np.linspace(0, 255, 800, dtype=np.uint8)[None, :, None].repeat(501, 0).repeat(3, 2)
    image = PIL.Image.fromarray(ramp)
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(tmp_path / "photo.jpg", exif=exif, quality=95)
    whole = open_image(tmp_path / "photo.jpg")
    for source in (tmp_path / "photo.jpg", (tmp_path / "photo.jpg").read_bytes()):
        small = open_image(source, reduce_to=200)
        assert max(small.size) == 200
        assert image_size(small) == image_size(whole) == whole.size[::-1]
        assert is_reduced(small)
        expected = np.asarray(whole.resize(small.size, PIL.Image.Resampling.BOX), dtype=float)
        assert np.abs(np.asarray(small) - expected).mean() < 3
    kept = open_image(tmp_path / "photo.jpg", reduce_to=500)  # at half its size a side would be shorter than that
    assert kept.size == whole.size
    assert not is_reduced(kept)


def test_only_jpeg_files_are_decoded_small(tmp_path: Path) -> None:
    PIL.Image.new("RGB", (800, 500)).save(tmp_path / "drawing.png")
    assert open_image(tmp_path / "drawing.png", reduce_to=100).size == (800, 500)
    assert open_image(PIL.Image.new("RGB", (800, 500)), reduce_to=100).size == (800, 500)
