"""Strangers' picture files: what comes out upright and in colour, and what is refused."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, PngImagePlugin, TiffImagePlugin

from model.clutter import Directory, is_cluttered
from model.errors import ImageError
from model.images import MAX_PIXELS, MAX_SIDE, Photo, Picture, encode, file_of, load_grey, load_square
from tests.pictures import encoded, photo


def _load(
    pixels: np.ndarray, mode: str = "RGB", kind: str = "PNG", side: int = 64, **options: object
) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, kind, **options)
    return load_square(buffer.getvalue(), side)


def test_a_picture_of_the_right_size_comes_back_bit_by_bit() -> None:
    pixels = photo(64, 64)
    assert np.array_equal(load_square(encoded(pixels), 64), pixels)


def test_the_widest_photo_there_may_be_can_be_written_in_every_format() -> None:
    for kind in ("PNG", "WEBP", "JPEG"):
        assert encode(np.zeros((8, MAX_SIDE, 3), np.uint8), kind)


def test_what_we_encode_we_read_back() -> None:
    pixels = photo(64, 64)
    assert np.array_equal(load_square(encode(pixels, "PNG"), 64), pixels)


def test_the_centre_square_is_cut_and_never_squashed() -> None:
    pixels = np.zeros((64, 128, 3), dtype=np.uint8)
    pixels[:, 32:96] = 200
    assert (load_square(encoded(pixels), 64) == 200).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_every_allowed_format_opens(kind: str) -> None:
    pixels = photo(64, 64)
    loaded = load_square(encoded(pixels, kind), 64)
    assert np.abs(loaded.astype(int) - pixels).mean() < 16


@pytest.mark.parametrize(
    "given",
    [
        pytest.param(lambda path: path.read_bytes(), id="bytes"),
        pytest.param(lambda path: memoryview(path.read_bytes()), id="memoryview"),
        pytest.param(lambda path: path, id="path"),
        pytest.param(str, id="text"),
        pytest.param(Image.open, id="Pillow"),
        pytest.param(lambda path: Image.open(path).convert("RGBA"), id="Pillow, opaque"),
        pytest.param(lambda path: np.asarray(Image.open(path)), id="array"),
    ],
)
def test_however_a_caller_has_the_picture_its_pixels_are_the_same(
    tmp_path: Path, given: Callable[[Path], Photo]
) -> None:
    path = tmp_path / "photo.png"
    path.write_bytes(encoded(photo(64, 64)))
    assert np.array_equal(load_square(file_of(given(path)), 64), photo(64, 64))


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "I", "F", "I;16"]
)
def test_a_pillow_picture_of_any_mode_is_read_as_its_own_conversion_would_be(mode: str) -> None:
    pixels = photo(64, 64)
    if mode in ("I", "F", "I;16"):
        dark, light = {"I": (0, 65535), "I;16": (0, 65535), "F": (0.0, 1.0)}[mode]
        grey = np.linspace(dark, light, 64 * 64).reshape(64, 64)
        image = Image.fromarray(grey.astype({"I": np.int32, "I;16": np.uint16, "F": np.float32}[mode]))
        wanted = np.repeat(np.linspace(0, 255, 64 * 64).reshape(64, 64, 1), 3, axis=2)
    else:
        plain = Image.fromarray(pixels).convert("P" if mode == "PA" else mode)
        image = plain.convert("PA") if mode == "PA" else plain
        wanted = np.asarray(plain.convert("RGB")).astype(float)
    assert image.mode == mode
    assert np.abs(load_square(file_of(image), 64) - wanted).mean() < 4


def test_a_pillow_photo_is_turned_upright_as_its_file_is() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    file = encoded(photo(64, 64), "JPEG", exif=exif)
    assert np.array_equal(load_square(file_of(Image.open(io.BytesIO(file))), 64), load_square(file, 64))


def test_grey_arrays_and_booleans_are_pictures_too() -> None:
    grey = photo(64, 64)[..., 0]
    for array in (grey, grey[..., None]):
        assert np.array_equal(load_grey(file_of(array)), grey)
    assert np.array_equal(load_grey(file_of(grey > 128)), 255 * (grey > 128))


@pytest.mark.parametrize(
    ("given", "code", "words"),
    [
        ("absent.jpg", "image-missing", "'absent.jpg' cannot be read (No such file or directory)"),
        ("nul\0", "image-missing", "cannot be read"),
        (np.zeros((8, 8, 3)), "image-array", "float64 [8, 8, 3]"),
        (np.zeros((3, 8, 8), np.uint8), "image-array", "uint8 [3, 8, 8]"),
        (np.zeros((2, 8, 8, 3), np.uint8), "image-array", "uint8 [2, 8, 8, 3]"),
        (np.zeros((0, 8, 3), np.uint8), "image-array", "uint8 [0, 8, 3]"),
        ([b"one", b"two"], "image-type", "a list"),
        (None, "image-type", "a NoneType"),
        (Image.open(io.BytesIO(encoded(photo())[:-900])), "image-unreadable", "damaged"),
    ],
)
def test_what_is_no_picture_is_refused_by_name(given: Photo, code: str, words: str) -> None:
    with pytest.raises(ImageError) as caught:
        file_of(given, field="photo")
    assert (caught.value.code, caught.value.field) == (code, "photo")
    assert words in str(caught.value)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_photo_is_set_upright(orientation: int) -> None:
    pixels = photo(64, 64)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(pixels)
    turn = {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }.get(orientation)  # fmt: skip
    stored = image if turn is None else image.transpose(turn)
    buffer = io.BytesIO()
    stored.save(buffer, "PNG", exif=exif)
    assert np.array_equal(load_square(buffer.getvalue(), 64), pixels)


@pytest.mark.parametrize("mode", ["L", "P", "1", "CMYK", "RGBA", "LA"])
def test_every_colour_mode_becomes_rgb(mode: str) -> None:
    kind = "TIFF" if mode == "CMYK" else "PNG"
    loaded = _load(photo(64, 64), mode, kind)
    assert loaded.shape == (64, 64, 3)
    reference = np.asarray(Image.fromarray(photo(64, 64)).convert(mode).convert("RGB"))
    assert np.abs(loaded.astype(int) - reference).mean() < 3


def test_a_16_bit_grey_is_not_clipped_to_white() -> None:
    ramp = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    loaded = load_square(encoded(ramp), 64)
    assert abs(float(loaded.mean()) - 127.5) < 1


def test_transparency_is_laid_over_white() -> None:
    pixels = np.zeros((64, 64, 4), dtype=np.uint8)
    pixels[..., 0] = 255  # transparent red
    assert (load_square(encoded(pixels), 64) == 255).all()
    red = pixels[..., :3].copy()
    place = Image.fromarray(red).convert("P").getpixel((0, 0))
    assert (_load(red, "P", transparency=place) == 255).all(), "in a palette, too"


def test_a_large_jpeg_is_decoded_at_no_more_than_twice_to_four_times_its_wanted_size() -> None:
    with Picture(encoded(photo(1600, 1200), "JPEG")) as picture:
        picture.cut((200, 0, 1400, 1200), (200, 200))
        assert picture._image.size == (800, 600)


def test_an_animation_shows_its_first_frame() -> None:
    first, second = Image.new("RGB", (64, 64), "red"), Image.new("RGB", (64, 64), "blue")
    buffer = io.BytesIO()
    first.save(buffer, "GIF", save_all=True, append_images=[second])
    assert load_square(buffer.getvalue(), 64)[0, 0].tolist() == [255, 0, 0]


def test_an_embedded_profile_changes_the_numbers_and_a_broken_one_is_ignored() -> None:
    pixels = np.full((64, 64, 3), (200, 120, 90), dtype=np.uint8)
    linear = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
    assert (load_square(encoded(pixels, icc_profile=b"nonsense"), 64) == pixels).all()
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert np.abs(load_square(encoded(pixels, icc_profile=srgb), 64).astype(int) - pixels).max() <= 1
    assert load_square(encoded(pixels, icc_profile=linear), 64).shape == (64, 64, 3)


def _grey_profile() -> bytes:
    """A profile whose greys are light itself, as ICC.1 lays it out: header, one white point, one curve."""
    white = b"XYZ " + bytes(4) + struct.pack(">iii", 63190, 65536, 54061)
    curve = b"curv" + bytes(8)  # no points: the identity
    at = 128 + 4 + 2 * 12
    tags = (
        struct.pack(">I", 2)
        + b"wtpt"
        + struct.pack(">II", at, 20)
        + b"kTRC"
        + struct.pack(">II", at + 20, 12)
    )
    body = tags + white + curve
    head = struct.pack(">I", 128 + len(body)) + bytes(4) + b"\x02\x10\0\0" + b"mntrGRAYXYZ "
    return head.ljust(36, b"\0") + b"acsp" + bytes(28) + white[8:] + bytes(48) + body


def test_a_profile_holds_for_greys_of_16_bits_as_for_those_of_8() -> None:
    eight = np.full((64, 64), 64, dtype=np.uint8)
    sixteen = eight.astype(np.uint16) * 257
    told, same = (load_square(encoded(grey, icc_profile=_grey_profile()), 64) for grey in (eight, sixteen))
    assert told[0, 0, 0] == pytest.approx(137, abs=1)  # a quarter of the light
    assert np.array_equal(told, same)


def test_a_large_jpeg_is_drafted_without_visible_loss() -> None:
    pixels = photo(1600, 1200)
    data = encoded(pixels, "JPEG", quality=95)
    full = Image.open(io.BytesIO(data)).crop((200, 0, 1400, 1200)).resize((64, 64), Image.Resampling.BICUBIC)
    assert np.abs(load_square(data, 64).astype(int) - np.asarray(full)).mean() < 1.5


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "image-format"),
        (b"hello", "image-format"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image-format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "image-format"),
        (encoded(photo())[:400], "image-unreadable"),
        (encoded(photo(), "JPEG")[:500], "image-unreadable"),
        (encoded(photo(200, 8)), "image-shape"),
        (encoded(photo(6, 6)), "image-shape"),
    ],
)
def test_what_cannot_be_used_is_refused_with_a_reason(data: bytes, code: str) -> None:
    with pytest.raises(ImageError) as caught:
        load_square(data, 64)
    assert caught.value.code == code
    assert caught.value.field == "image"
    assert caught.value.hint


def test_text_that_unpacks_without_end_is_refused() -> None:
    def with_text(megabytes: int) -> bytes:
        text = PngImagePlugin.PngInfo()
        for number in range(megabytes):
            text.add_text(f"k{number}", "a" * 1_000_000, zip=True)
        return encoded(photo(), pnginfo=text)

    assert load_square(with_text(3), 64).shape == (64, 64, 3)
    with pytest.raises(ImageError) as caught:
        load_square(with_text(20), 64)
    assert caught.value.code == "image-unreadable"


def _png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("size", [(20_000, 20_000), (9_459, 9_459), (16_384, 900), (65_000, 64_000)])
def test_too_many_pixels_are_refused_by_the_header_alone(size: tuple[int, int]) -> None:
    assert size[0] * size[1] > MAX_PIXELS or max(size) > MAX_SIDE
    with pytest.raises(ImageError) as caught:
        load_square(_png_header(*size), 64)
    assert caught.value.code == "image-pixels"


_SEEDS = [encoded(photo(40, 30), kind) for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")]


@settings(max_examples=300, deadline=None)
@given(
    data=st.sampled_from(_SEEDS),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=12),
    cut=st.floats(0.05, 1),
)
def test_a_mutated_file_is_read_or_refused_and_nothing_else(
    data: bytes, changes: list[tuple[float, int]], cut: float
) -> None:
    mutated = bytearray(data[: int(len(data) * cut)])
    for place, value in changes:
        if mutated:
            mutated[int(place * len(mutated))] = value
    for load in (lambda d: load_square(d, 32), load_grey):
        with suppress(ImageError):
            assert load(bytes(mutated)).ndim in (2, 3)


def test_a_file_of_no_bytes_is_called_empty() -> None:
    with pytest.raises(ImageError, match="image is empty"):
        load_square(b"", 32)


def test_a_drawing_is_read_by_brightness_or_by_opacity() -> None:
    grey = np.array([[0, 255]] * 8 * 8, dtype=np.uint8).reshape(8, 16)
    assert np.array_equal(load_grey(encoded(grey)), grey)
    clear = np.zeros((8, 8, 4), dtype=np.uint8)
    clear[:4, :, 3] = 255
    assert load_grey(encoded(clear)).mean() == 255 / 2
    opaque = np.dstack([grey, grey, grey, np.full_like(grey, 255)])
    assert np.array_equal(load_grey(encoded(opaque)), grey)


def _jpeg(segments: int = 0, scans: int = 0, junk: int = 0, trailer: bytes = b"", exif: int = 0) -> bytes:
    """A progressive JPEG with more of everything."""
    data = encoded(np.full((16, 16, 3), 90, dtype=np.uint8), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return (
        data[:2]
        + b"\xff\xe5\0\2" * segments
        + b"\xff\xe1\0\x0aExif\0\0MM" * exif
        + b"x" * junk
        + data[2:-2]
        + data[last:-2] * scans
        + data[-2:]
        + trailer
    )


def _png(chunks: int) -> bytes:
    data = encoded(np.full((16, 16, 3), 90, dtype=np.uint8))
    chunk = bytes(4) + b"prIv" + zlib.crc32(b"prIv").to_bytes(4, "big")
    return data[:33] + chunk * chunks + data[33:]


def _gif(comments: int, blocks: int = 1) -> bytes:
    data = encoded(np.full((16, 16, 3), 90, dtype=np.uint8), "GIF")
    start = 13 + (3 << (data[10] & 7) + 1)
    return data[:start] + (b"!\xfe" + b"\1x" * blocks + b"\0") * comments + data[start:]


@pytest.mark.parametrize(
    "data",
    [
        _jpeg(segments=20_000), _jpeg(junk=20_000), _jpeg(scans=60), _jpeg(exif=200), _png(20_000),
        _gif(20_000), _gif(1, 20_000),
        # The end of a picture in a comment ends nothing.
        _jpeg(scans=60).replace(b"\xff\xda", b"\xff\xfe\0\4\xff\xd9\xff\xda", 2),
    ],
    ids=["segments", "junk", "scans", "exif", "chunks", "comments", "blocks", "scans behind a comment"],
)  # fmt: skip
def test_a_file_of_countless_parts_is_refused_before_it_is_opened(
    data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("opened"))
    with pytest.raises(ImageError) as caught:
        load_square(data, 32)
    assert caught.value.code == "image-parts"


@pytest.mark.parametrize(
    "data",
    [
        _jpeg(segments=500), _jpeg(scans=20), _jpeg(trailer=b"\xff\xda" * 1000), _png(500), _gif(20, 20),
        _jpeg()[:100], _png(3)[:40], _gif(3)[:20],
    ],
    ids=["segments", "scans", "a film behind the photo", "chunks", "comments", "cut jpeg", "cut png", "cut gif"],
)  # fmt: skip
def test_files_of_as_many_parts_as_cameras_and_editors_make_are_opened(data: bytes) -> None:
    with suppress(ImageError):  # of the cut ones
        load_square(data, 32)
    assert not is_cluttered(data)


Entry = tuple[int, int, int, bytes]  # tag, type, how many, content


def _exif(entries: list[Entry], shared: bytes = b"") -> bytes:
    """A directory as TIFF and EXIF have it; entries of more than 4 bytes without content all point at ``shared``."""
    end = 8 + 2 + 12 * len(entries) + 4
    table, contents = b"", shared
    for tag, kind, count, content in sorted(entries):
        if len(content) > 4:
            content, contents = struct.pack("<L", end + len(contents)), contents + content
        table += struct.pack("<HHL", tag, kind, count) + (content or struct.pack("<L", end)).ljust(4, b"\0")
    return b"II*\0" + struct.pack("<LH", 8, len(entries)) + table + bytes(4) + contents


def _tiff(entries: list[Entry], shared: bytes) -> bytes:
    """Of 16 x 16 greys, whose one strip is the file's beginning."""
    short = {256: 16, 257: 16, 258: 8, 259: 1, 262: 1, 277: 1, 278: 16}
    needed = [(tag, 3, 1, struct.pack("<HH", value, 0)) for tag, value in short.items()]
    needed += [(273, 4, 1, struct.pack("<L", 8)), (279, 4, 1, struct.pack("<L", 256))]
    given = {entry[0] for entry in entries}
    return _exif([*entries, *(entry for entry in needed if entry[0] not in given)], shared)


def _with_exif(kind: str, exif: bytes) -> bytes:
    buffer = io.BytesIO()
    with mock.patch.object(
        TiffImagePlugin, "ImageFileDirectory_v2", Directory.__base__
    ):  # as it is elsewhere
        Image.new("RGB", (24, 16)).save(buffer, kind, exif=b"Exif\0\0" + exif)
    return buffer.getvalue()


OVER_AND_OVER: list[Entry] = [(tag, 7, 60_000, b"") for tag in range(40_000, 40_050)]


@pytest.mark.parametrize(
    "data",
    [
        *(_with_exif(kind, _exif(OVER_AND_OVER, bytes(60_000))) for kind in ("PNG", "WEBP", "AVIF")),
        _tiff(OVER_AND_OVER, bytes(60_000)),
        _tiff([(40_000 + number, 3, 1, bytes(4)) for number in range(10_001)], bytes(256)),
        _tiff([(256, 3, 200_000, b"")], bytes(400_000)),
        _tiff([(273, 4, 70_000, b""), (279, 4, 70_000, b"")], bytes(280_000)),
        _tiff([(324, 4, 70_000, b""), (325, 4, 70_000, b"")], bytes(280_000)),
    ],
    ids=["png", "webp", "avif", "tiff", "entries", "numbers", "strips", "tiles"],
)
def test_a_directory_that_costs_more_than_its_file_is_refused_before_it_is_read(
    data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Directory.__base__, "load", lambda *_: pytest.fail("read"))
    with pytest.raises(ImageError) as caught:
        load_square(data, 32)
    assert isinstance(caught.value.__cause__, ValueError)


def test_of_a_jpeg_such_a_directory_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    data = _with_exif("JPEG", _exif(OVER_AND_OVER, bytes(60_000)))
    monkeypatch.setattr(Directory.__base__, "load", lambda *_: pytest.fail("read"))
    assert load_square(data, 16).shape == (16, 16, 3), "Pillow takes it for a photo without EXIF"


def test_a_directory_as_cameras_and_scanners_write_it_is_read() -> None:
    # Tables of a 16-bit scan, many rows each a strip of its own, and two entries that share their content.
    strips = 4_000
    whole = _tiff(
        [
            (301, 3, 3 * 65_536, b""), (282, 5, 1, b""), (283, 5, 1, b""), (257, 3, 1, struct.pack("<HH", strips, 0)),
            (256, 3, 1, struct.pack("<HH", 400, 0)), (278, 3, 1, struct.pack("<HH", 1, 0)),
            (273, 4, strips, struct.pack("<L", 8) * strips), (279, 4, strips, struct.pack("<L", 400) * strips),
        ],
        bytes(6 * 65_536),
    )  # fmt: skip
    assert load_square(whole, 32).shape == (32, 32, 3)
    big = io.BytesIO()
    Image.fromarray(photo(32, 32)).save(big, "TIFF", big_tiff=True)
    assert np.array_equal(load_square(big.getvalue(), 32), photo(32, 32))


def test_a_picture_of_run_lengths_is_refused_where_unpacking_it_would_take_seconds() -> None:
    def coded(width: int, height: int) -> bytes:
        colours, runs = bytes(1024), b"\1\5\0\0" * height + b"\0\1"
        start = 14 + 40 + len(colours)
        head = struct.pack("<LllHHLLllLL", 40, width, height, 1, 8, 1, len(runs), 0, 0, 256, 0)
        return b"BM" + struct.pack("<LHHL", start + len(runs), 0, 0, start) + head + colours + runs

    assert load_square(coded(100, 90), 32).shape == (32, 32, 3)
    with pytest.raises(ImageError, match="run lengths") as caught:
        load_square(coded(16_383, 1_000), 32)
    assert caught.value.code == "image-pixels"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_photo_is_turned_whatever_else_its_exif_says(kind: str, orientation: int) -> None:
    odd: list[Entry] = [
        (0x0112, 3, 1, struct.pack("<H", orientation)),
        (0x010E, 5, 1, struct.pack("<LL", 1, 1)),  # a description that is a fraction
        (0x0131, 3, 1, b"\1\0"),  # a program's name that is a number
    ]
    with Picture(_with_exif(kind, _exif(odd))) as picture:
        assert picture.size == ((24, 16) if orientation == 1 else (16, 24))
        assert picture.cut((0, 0, *picture.size), (16, 16)).shape == (16, 16, 3)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's own, of the same damage
def test_damage_is_told_as_such_whatever_pillow_makes_of_it() -> None:
    whole = encoded(photo(32, 32), "AVIF")
    damaged = [
        bytes([*whole[:place], whole[place] ^ 255, *whole[place + 1 :]]) for place in range(len(whole))
    ]
    told = set()
    for data in damaged:
        try:
            with Picture(data) as picture:
                picture.cut((0, 0, *picture.size), (32, 32))
        except ImageError as error:
            told.add(type(error.__cause__).__name__)
    assert "RuntimeError" in told, "which is not among what Pillow says it raises"
