"""Strangers' picture files to clean pixels, safely; and arrays back to PNG.

    parts counted -> header -> format and size checked -> draft -> decode -> upright -> 16 bit -> cut, scaled
    -> colours -> RGB

Nothing is decoded before its size is known: 34 bytes of WebP can ask for 1.3 GB. Knows no tensor and no mask.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, PngImagePlugin, TiffImagePlugin, UnidentifiedImageError

from model.budget import Budget
from model.clutter import MAX_PARTS, MAX_SCANS, Directory, is_cluttered
from model.errors import ImageError

Pixels = NDArray[np.uint8]
Box = tuple[int, int, int, int]
#: A picture as a caller of the library has it: a file's bytes, its path, a Pillow picture, or pixels.
Photo = bytes | str | Path | Image.Image | Pixels | NDArray[np.bool_]

#: Formats opened at all, by Pillow's name; the file's bytes decide, never its name.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
#: What files of them end in, to tell pictures from others in a folder or an archive.
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
#: Of text in a PNG's header, unpacked: a chunk may have 1 MB, and 63 of them fit into 64 KB. ``notes`` needs little.
PngImagePlugin.MAX_TEXT_MEMORY = 4 * 1024 * 1024
TiffImagePlugin.ImageFileDirectory_v2 = Directory  # type: ignore[misc] # of EXIF in all formats, too
MAX_PIXELS = 40_000_000  # width x height; about 8 bytes each while decoding
MAX_SIDE = 16_383  # pixels; a WebP has no more, and a result may be as large as its photo
MIN_SIDE = 8  # pixels
MAX_ASPECT = 20  # longer side / shorter side
MAX_RUN_PIXELS = 2**20  # of a BMP of run lengths, which Pillow unpacks in Python: a microsecond for each

# Pixels that are being decoded at a time, by all threads together: what one picture may have.
_DECODING = Budget(MAX_PIXELS)
# What Pillow raises for broken files of the formats above; of AVIF it writes the EXIF again, which can fail, too.
_BROKEN = (
    OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, MemoryError, LookupError, TypeError,
    AttributeError, ArithmeticError, RuntimeError,
)  # fmt: skip
_ORIENTATION = 0x0112  # EXIF
_LYING = (5, 6, 7, 8)  # orientations that swap width and height
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Formats that keep what Pillow's modes hold; a picture of any other mode is converted first.
_FILED = dict.fromkeys(("1", "L", "LA", "P", "RGB", "RGBA", "I;16"), "PNG") | dict.fromkeys(
    ("I", "F", "CMYK"), "TIFF"
)
_RUN_LENGTHS = (1, 2)  # compressions of a BMP
_SRGB = ImageCms.createProfile("sRGB")


class Picture:
    """A stranger's picture whose header was read and found harmless. Decoded once, when it is first cut.

    Waits until those that are open elsewhere leave room for its pixels; closed by ``with``.

    Args:
        data: The file.
        field: Request field to name in errors.

    Raises:
        ImageError: The format is not among ``FORMATS``, the file is broken, or its size is out of bounds.
    """

    def __init__(self, data: bytes, *, field: str = "image") -> None:
        self._field = field
        self._image = _open(data, field)
        with ExitStack() as held:
            held.enter_context(_DECODING.hold(self._image.width * self._image.height))
            try:
                # JPEG says in its header how it lies, and must not be decoded yet; others have to be, to be sure.
                if self._image.format not in ("JPEG", "MPO"):
                    self._image.load()
                self._orientation = self._image.getexif().get(_ORIENTATION, 1)
            except _BROKEN as error:
                raise _unreadable(error, self._field) from error
            self._held = held.pop_all()
        width, height = self._image.size
        #: Width and height of the upright picture.
        self.size = (height, width) if self._orientation in _LYING else (width, height)

    def __enter__(self) -> Picture:
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def cut(self, box: Box, size: tuple[int, int]) -> Pixels:
        """A part of the picture, scaled. May be called once.

        Args:
            box: Left, top, right, bottom in pixels of the upright picture.
            size: Width and height of the result.

        Returns:
            ``[height, width, 3] uint8`` sRGB, upright, first frame, transparency over white.

        Raises:
            ImageError: The file is broken.
        """
        image, (width, height) = self._image, self.size
        try:
            # JPEG can decode at an eighth, quarter or half: 5 times faster for a phone's photo, equal to the eye.
            # Twice the wanted resolution is left for the scaling below.
            less = max(1, min((box[2] - box[0]) // (2 * size[0]), (box[3] - box[1]) // (2 * size[1])))
            image.draft("RGB", (max(image.width // less, 1), max(image.height // less, 1)))
            profile = image.info.get("icc_profile")
            image = _eight_bit(_upright(image, self._orientation))
            # Palettes cannot be scaled; resize before the colour conversion, which costs by the pixel.
            if image.mode in ("P", "1"):
                image = image.convert("RGBA" if image.has_transparency_data else "RGB")
            elif image.has_transparency_data and image.mode not in ("RGBA", "LA"):
                image = image.convert("RGBA")
            across, down = image.width / width, image.height / height  # below 1 where less was decoded
            left, right = round(box[0] * across), round(box[2] * across)
            top, bottom = round(box[1] * down), round(box[3] * down)
            # Not from ImageOps.fit: it would scale by its own box; bicubic with antialiasing, as in training.
            image = image.crop((left, top, right, bottom))
            if image.size != size:
                image = image.resize(size, Image.Resampling.BICUBIC)
            return np.asarray(_to_srgb(image, profile))
        except _BROKEN as error:
            raise _unreadable(error, self._field) from error


def file_of(photo: Photo, *, field: str = "image") -> bytes:
    """A picture as a file's bytes; what is no file yet is written as one, its pixels unchanged.

    Args:
        photo: A file's bytes, its path, a Pillow picture (which is turned upright, and keeps its colour profile), or
            pixels ``[H, W]``, ``[H, W, 3]`` or ``[H, W, 4]``, of ``uint8`` or booleans.
        field: To name in errors.

    Raises:
        ImageError: It is none of these, or cannot be read.
    """
    if isinstance(photo, bytes | bytearray | memoryview):
        return bytes(photo)
    if isinstance(photo, str | Path):
        try:
            return Path(photo).read_bytes()
        except (OSError, ValueError) as error:  # ValueError: a null character
            reason = getattr(error, "strerror", None) or error
            raise ImageError(
                f"{str(photo)!r:.200} cannot be read ({reason}).",
                code="image-missing",
                hint="Check the path.",
                field=field,
            ) from error
    if isinstance(photo, np.ndarray):
        channels = photo.shape[2] if photo.ndim == 3 else 1
        known = photo.dtype in (np.uint8, np.bool_) and photo.ndim in (2, 3) and channels in (1, 3, 4)
        if not known or photo.size == 0:
            raise ImageError(
                f"{field} is an array of {photo.dtype} {list(photo.shape)}; arrays are uint8, [H, W], [H, W, 3] or "
                "[H, W, 4].",
                code="image-array",
                hint="Channels come last, and values of 0 to 1 are scaled first: (255 * array).astype('uint8').",
                field=field,
            )
        photo = Image.fromarray(photo[..., 0] if photo.ndim == 3 and channels == 1 else photo)
    if not isinstance(photo, Image.Image):
        raise ImageError(
            f"{field} is a {type(photo).__name__}; a picture is given as bytes, path, Pillow picture or uint8 array.",
            code="image-type",
            hint="Give one picture, as one of these.",
            field=field,
        )
    buffer = io.BytesIO()
    try:
        upright = _upright(photo, photo.getexif().get(_ORIENTATION, 1))
        if upright.mode not in _FILED:
            upright = upright.convert("RGBA" if upright.has_transparency_data else "RGB")
        kind = _FILED[upright.mode]
        upright.save(buffer, kind, icc_profile=photo.info.get("icc_profile"), compress_level=1)
    except _BROKEN as error:
        raise _unreadable(error, field) from error
    return buffer.getvalue()


def load_square(data: bytes, side: int, *, field: str = "image") -> Pixels:
    """Read a picture file and cut the centre square, scaled to ``side``; the aspect is kept, never squashed.

    Args:
        data: The file.
        side: Side of the result, pixels.
        field: Request field to name in errors.

    Returns:
        ``[side, side, 3] uint8`` as from ``Picture.cut``.

    Raises:
        ImageError: As for ``Picture``.
    """
    with Picture(data, field=field) as picture:
        return picture.cut(_centre(*picture.size), (side, side))


def load_grey(data: bytes, *, field: str = "drawing") -> Pixels:
    """Read a drawing as ``[H, W] uint8``: white, and what is opaque, counts as 255.

    A drawing with transparent places is read by its opacity, any other by its brightness.

    Raises:
        ImageError: As for ``load_square``.
    """
    image = _open(data, field)
    with _DECODING.hold(image.width * image.height):
        try:
            image.load()  # some formats tell only then how they lie
            image = _eight_bit(_upright(image, image.getexif().get(_ORIENTATION, 1)))
            if image.has_transparency_data:
                opacity = np.asarray(image.convert("RGBA").getchannel("A"))
                if opacity.min() < 255:  # many programs save an opacity that is full everywhere
                    return opacity
            return np.asarray(image.convert("L"))
        except _BROKEN as error:
            raise _unreadable(error, field) from error


def grey(pixels: Pixels) -> Pixels:
    """Colours ``[H, W, 3]`` to equal ones, by brightness."""
    return np.asarray(Image.fromarray(pixels).convert("L").convert("RGB"))


def lay_over(
    picture: Pixels, part: Pixels, box: Box, cells: NDArray[np.bool_] | None, *, smooth: bool
) -> Pixels:
    """A part scaled onto its box of a picture.

    Args:
        picture: ``[H, W, 3]``; not changed.
        part: ``[h, w, 3]``.
        box: Left, top, right, bottom in the picture.
        cells: ``[rows, columns]`` over the box: only where True the part is laid; None for everywhere.
        smooth: Bicubic instead of nearest, which keeps maps' colours exact.
    """
    whole, size = Image.fromarray(picture), (box[2] - box[0], box[3] - box[1])
    how = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
    mask = None
    if cells is not None:
        mask = Image.fromarray(cells.astype(np.uint8) * np.uint8(255)).resize(size, Image.Resampling.NEAREST)
    whole.paste(Image.fromarray(part).resize(size, how), (box[0], box[1]), mask)
    return np.asarray(whole)


def encode(
    pixels: Pixels, kind: str, *, xmp: str | None = None, text: dict[str, str] | None = None, **saving: Any
) -> bytes:
    """``[H, W, 3] uint8`` to a picture file.

    Args:
        pixels: The picture.
        kind: Format by Pillow's name: PNG, WEBP, JPEG, AVIF.
        xmp: XMP packet to put in.
        text: For PNG: text chunks by their keyword.
        **saving: What Pillow takes for this format.
    """
    if kind == "PNG":
        chunks = PngImagePlugin.PngInfo()
        for keyword, value in (text or {}).items():
            chunks.add_text(keyword, value)
        if xmp is not None:
            chunks.add_itxt("XML:com.adobe.xmp", xmp)
        # Faster than level 1 alone, which is three times as fast as the default, and for what a model paints a sixth
        # smaller: after PNG's filters the pixels of a photo hardly repeat, but for runs of hidden patches.
        saving = {"compress_level": 1, "compress_type": zlib.Z_RLE, "pnginfo": chunks} | saving
    elif xmp is not None:
        saving["xmp"] = xmp.encode()
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **saving)
    return buffer.getvalue()


def notes(data: bytes) -> dict[str, str]:
    """What stands in words in a picture file's header: PNG text chunks by keyword, and ``xmp``.

    Raises:
        ImageError: As for ``Picture``.
    """
    info = _open(data, "image", shaped=False).info  # panels side by side are wider than any photo may be
    known = {key: value for key, value in info.items() if isinstance(key, str) and isinstance(value, str)}
    packet = info.get("xmp", b"")
    return known | {"xmp": packet.decode(errors="replace") if isinstance(packet, bytes) else str(packet)}


def _open(data: bytes, field: str, *, shaped: bool = True) -> Image.Image:
    """Read the header only, and refuse by it; ``shaped``: also what no square can be cut from."""
    if not data:
        raise ImageError(f"{field} is empty.", code="image-format", hint="Send a picture.", field=field)
    if is_cluttered(data):
        raise ImageError(
            f"{field} is made of more than {MAX_PARTS} segments, or of more than {MAX_SCANS} scans.",
            code="image-parts",
            hint="Save it again without its metadata.",
            field=field,
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # our own bounds follow; a warning would be noise in the log
            image = Image.open(io.BytesIO(data), formats=FORMATS)  # noqa: TID251 (this is the place)
    except Image.DecompressionBombError as error:
        raise _too_large(str(error), field) from error
    except UnidentifiedImageError as error:
        raise ImageError(
            f"{field} is not a picture of a known format.",
            code="image-format",
            hint=f"Send one of {', '.join(FORMATS)}.",
            field=field,
        ) from error
    except _BROKEN as error:
        raise _unreadable(error, field) from error
    width, height = image.size
    if image.info.get("compression") in _RUN_LENGTHS and width * height > MAX_RUN_PIXELS:
        raise ImageError(
            f"{field} is a BMP of {width} x {height} pixels stored as run lengths; the limit of those is "
            f"{MAX_RUN_PIXELS:,}.",
            code="image-pixels",
            hint="Save it as PNG.",
            field=field,
        )
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise _too_large(f"{width} x {height}", field)
    if shaped and (min(width, height) < MIN_SIDE or max(width, height) > MAX_ASPECT * min(width, height)):
        raise ImageError(
            f"{field} is {width} x {height} pixels; the shorter side must have at least {MIN_SIDE} pixels and the "
            f"longer side may be at most {MAX_ASPECT} times as long.",
            code="image-shape",
            hint="Crop or enlarge it.",
            field=field,
        )
    return image


def _upright(image: Image.Image, orientation: object) -> Image.Image:
    """Not ``ImageOps.exif_transpose``: it writes all of the EXIF again, and fails where one entry cannot be."""
    turn = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if turn is None else image.transpose(turn)


def _eight_bit(image: Image.Image) -> Image.Image:
    """16-bit and float greys to 8 bit: Pillow's own conversion clips them to white."""
    if not image.mode.startswith("I") and image.mode != "F":
        return image
    values = np.array(image, dtype=np.float32)  # and all that follows in place: it may be 160 MB
    np.nan_to_num(values, copy=False, nan=0.0, posinf=0.0, neginf=0.0)
    top = 65535.0 if image.mode.startswith("I") else 1.0
    top = max(top, float(values.max()))  # 32-bit files state no range: the largest value is white
    np.clip(values, 0, None, out=values)
    values *= 255 / top
    return Image.fromarray(np.round(values, out=values).astype(np.uint8))


def _centre(width: int, height: int) -> Box:
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Colours as a screen shows them: embedded profile applied, transparency laid over white."""
    alpha = image.getchannel("A") if image.mode in ("RGBA", "LA") else None
    if image.mode in ("RGBA", "LA"):
        image = image.convert(image.mode[:-1])
    if profile and image.mode in ("RGB", "L", "CMYK"):
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            converted = ImageCms.profileToProfile(image, source, _SRGB, outputMode="RGB")
            image = converted if converted is not None else image
        except (ImageCms.PyCMSError, OSError):
            pass  # a broken or unfitting profile: the bare numbers are the best guess
    image = image.convert("RGB")
    if alpha is not None:
        image = Image.composite(image, Image.new("RGB", image.size, "white"), alpha)
    return image


def _too_large(what: str, field: str) -> ImageError:
    return ImageError(
        f"{field} has too many pixels ({what}); the limit is {MAX_PIXELS // 1_000_000} million, {MAX_SIDE} per side.",
        code="image-pixels",
        hint="Make it smaller.",
        field=field,
    )


def _unreadable(error: BaseException, field: str) -> ImageError:
    return ImageError(
        f"{field} is damaged and cannot be read ({type(error).__name__}).",
        code="image-unreadable",
        hint="Save it again, or send another picture.",
        field=field,
    )
