"""The bytes of a picture's file become pixels here and nowhere else: for training, for judging and for `ease data check`.

They are what a viewer shows: the first frame or page, turned as EXIF says, what is transparent on white, colours of an ICC
profile and of CMYK, YCbCr, LAB and HSV in sRGB. For greys of more than 8 bits see `grey`. A picture takes bounded memory, or is
refused.
"""

from __future__ import annotations

import io
import logging
import threading
import warnings
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms, PngImagePlugin, UnidentifiedImageError

from ease_flwr.config import DataError
from ease_flwr.model.fitting import fitted

PIXELS = 80_000_000
"""Of a picture, at most."""
BYTES = 2**29
"""Of its file, at most."""
LARGE = 16_000_000
"""Pixels of a picture that others wait for: threads decode one such at a time."""
KINDS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "AVIF", "JPEG2000", "PPM")
"""Kinds of files, as Pillow calls them."""
ENDINGS = set(
    "jpg jpeg jpe jfif mpo png apng webp tif tiff bmp dib gif avif jp2 j2k ppm pgm pbm pnm pfm".split()  # noqa: SIM905
)
"""Of the names of such files."""
EXPORT = "export it as PNG or JPEG"
OTHERS = {  # what hospitals, phones and download tools also leave, by how a file begins
    (128, b"DICM"): f"a DICOM file, {EXPORT}",
    (4, b"ftyphei"): f"a HEIC picture, {EXPORT}",
    (4, b"ftyphev"): f"a HEIC picture, {EXPORT}",
    (4, b"ftypmif1"): f"a HEIC picture, {EXPORT}",  # of AVIF, which begins so too, it is none of these
    (4, b"ftypmsf1"): f"a HEIC picture, {EXPORT}",
    (0, b"%PDF"): f"a PDF, {EXPORT}",
    (0, b"%!PS"): f"PostScript, {EXPORT}",
    (0, b"<svg"): f"a drawing (SVG), {EXPORT}",
    (0, b"version https://git-lfs"): "a pointer of Git LFS, fetch the picture itself (`git lfs pull`)",
}
WHITES = (1, 255, 1023, 4095, 16383, 65535)
"""What white may be in a grey picture of 1, 8, 10, 12, 14 or 16 bits."""
DARK = 4
"""Times the largest value of a grey picture: what white may be at most, or all of it would be nearly black."""
TURNS = {  # by EXIF's orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
PLANES = ("RGB", "RGBA", "CMYK")
"""Modes of which Pillow reads a TIFF whose colours lie in planes, one behind the other."""
WIDENED = {"L;2": 85, "L;4": 17}
"""By how PNG packs greys of 2 or 4 bits: what Pillow multiplies them by."""
SRGB = ImageCms.createProfile("sRGB")
SPACES = {"RGB": "RGB ", "L": "GRAY", "CMYK": "CMYK", "LAB": "Lab "}
"""What ICC calls the colours of a mode."""

TURN = threading.Lock()
# Of what Pillow only warns about a viewer shows what there is; pictures that are too large are refused below.
warnings.filterwarnings("ignore", module=r"PIL\b")
logging.getLogger("PIL").setLevel(logging.CRITICAL)
# A long text (how a drawing program made it) or profile is no reason to refuse a PNG; all its texts have a limit of their own.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY


def decoded(content: bytes, side: int, resize: str = "", interpolation: str = "") -> NDArray[np.uint8]:
    """uint8 (side, side, 3). resize, interpolation: see DataConfig. Raises DataError, see `opened`."""
    return np.asarray(fitted(opened(content), side, resize, interpolation))


def opened(content: bytes) -> Image.Image:
    """The picture in 8-bit RGB, as a viewer shows it. Raises DataError: why that cannot be, without the name of the file."""
    try:
        with Image.open(io.BytesIO(content), formats=_kinds()) as image:
            if image.width * image.height > PIXELS:
                raise Image.DecompressionBombError
            if _unfinished(content, image.format):
                raise DataError("it ends in zero bytes before the picture does, it was not copied whole")
            if image.width * image.height <= LARGE:
                return shown(image)
            with TURN:
                return shown(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise DataError(f"it has more than {PIXELS // 1_000_000} million pixels, make it smaller") from None
    except UnidentifiedImageError:
        raise DataError(f"it {_is(content)}") from None
    except DataError:
        raise
    except Exception as error:  # Pillow's readers raise nearly everything at a damaged file
        raise DataError(_line(error)) from None


def read(file: Path, start: int = 0, size: int = -1) -> bytes:
    """The bytes of a picture that begins there in a file; size -1: all that follow. Raises DataError as `opened` does."""
    try:
        if (file.stat().st_size if size < 0 else size) > BYTES:
            raise DataError(f"it has more than {BYTES // 2**20} MiB, make it smaller")
        with file.open("rb") as f:
            f.seek(start)
            return f.read(size)
    except OSError as error:
        raise DataError(error.strerror or _line(error)) from None


def grey(values: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Greys of more than 8 bits on 0..255.

    Black is 0, and white the smallest of WHITES that is large enough; where that is more than DARK times the picture's largest
    value, it is that value. With negative or larger values, black and white are the picture's own smallest and largest; a
    picture of one such value is grey.
    """
    light = values.astype(np.float32)
    finite = np.isfinite(light)
    if not finite.any():
        raise DataError("none of its pixels is a number")
    low, high = float(light.min(where=finite, initial=np.inf)), float(light.max(where=finite, initial=-np.inf))
    if white := next((w for w in WHITES if low >= 0 and high <= w), 0):
        low, high = 0.0, high if 0 < high < white / DARK else float(white)
    light[~finite] = low
    if high == low:
        return np.full(light.shape, 128, np.uint8)
    light -= low
    light *= 255 / (high - low)
    return np.clip(np.rint(light, out=light), 0, 255, out=light).astype(np.uint8)


def shown(image: Image.Image) -> Image.Image:
    """An open picture in 8-bit RGB, see above. Raises what Pillow raises at a damaged one."""
    tags = getattr(image, "tag_v2", {})
    bits, signed = tags.get(258, ()), tags.get(339, (1,))  # Pillow gives 32 bits a sign that have none, and takes one of 8 bits
    if tags.get(284) == 2 and len(bits) > 1 and (image.mode not in PLANES or (max(bits) > 8 and tags.get(259, 1) == 1)):
        raise DataError(f"it is a TIFF of separate planes that is not read, {EXPORT}")  # Pillow mixes up its bytes
    if tags.get(254, 0) & 1 and 330 in tags:
        raise DataError(f"it is a camera's raw file, or another that begins with a small copy of its picture, {EXPORT}")
    _widen_clear(image)
    image.load()
    if image.mode == "P" and 0 < max(tags.get(320, (0,))) < 256:  # of old programs: colours of 8 bits where 16 are wanted
        image.putpalette(np.reshape(tags[320], (3, -1)).T.astype(np.uint8).tobytes())
    try:
        turn = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # of EXIF that is damaged: it turns nothing
        turn = 1
    if image.mode[0] in "IF" or (bits, signed) == ((8,), (2,)):
        values = np.asarray(image)
        if (bits, signed) == ((32,), (1,)):
            values = values.view(np.uint32)
        elif image.mode == "L":
            values = values.view(np.int8)
        shades = grey(values)
        flat = Image.fromarray(255 - shades if tags.get(262) == 0 else shades)  # of film: 0 is white
        if isinstance(clear := image.info.get("transparency"), int):
            flat.paste(255, mask=Image.fromarray(values == clear))
    else:
        flat = _in_srgb(_on_white(image), image.info.get("icc_profile"))
    return (flat.transpose(TURNS[turn]) if turn in TURNS else flat).convert("RGB")


def _is(content: bytes) -> str:
    """What a file is that is no picture, to be read behind "it"."""
    if other := next((what for (at, start), what in OTHERS.items() if content.startswith(start, at)), ""):
        return f"is {other}"
    if kind := next((k for k in _kinds() if (accepts := Image.OPEN[k][1]) and accepts(content[:16]) is True), ""):
        return f"begins as {kind}, and is damaged or of a form that is not read, {EXPORT}"
    return f"is {'no picture' if content else 'empty'}; read are {', '.join(KINDS)}"


def _unfinished(content: bytes, kind: str | None) -> bool:
    """Whether a file ends in zero bytes where its picture goes on, as download tools leave it that take its room beforehand."""
    if not content.endswith(bytes(16)):
        return False
    if kind == "PNG":
        return b"IEND\xaeB`\x82" not in content
    if kind == "WEBP":  # one without metadata behind the picture
        return content[12:16] in (b"VP8 ", b"VP8L") and content[: 8 + int.from_bytes(content[4:8], "little")].endswith(
            bytes(64)
        )
    at = 2
    while content[at] == 0xFF and content[at + 1] != 0xDA:  # to the scan: a thumbnail before it has an end of its own
        at += 1 if content[at + 1] == 0xFF else 2 + int.from_bytes(content[at + 2 : at + 4])
    return kind in ("JPEG", "MPO") and b"\xff\xd9" not in content[at:]


def _widen_clear(image: Image.Image) -> None:
    """The transparent colour of a PNG, which Pillow leaves in the file's bits, in those that it gives the picture."""
    said, tiles = image.info.get("transparency"), getattr(image, "tile", []) if image.format == "PNG" else []
    packed = tiles[0].args if tiles else ""
    if packed in WIDENED and isinstance(said, int):
        image.info["transparency"] = said * WIDENED[packed]
    elif packed == "RGB;16B" and isinstance(said, tuple):
        image.info["transparency"] = tuple(part >> 8 for part in said)


def _on_white(image: Image.Image) -> Image.Image:
    """The picture without transparency; greys stay greys, for their profile."""
    if not image.has_transparency_data:
        return image
    clear = (image.convert("LA") if image.mode == "La" else image).convert("LA" if image.mode[0] == "L" else "RGBA")
    flat = Image.new(clear.mode[:-1], clear.size, "white")
    flat.paste(clear, mask=clear)
    return flat


def _in_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """The picture in the colours of the screen; a profile that is damaged or of other colours is left aside, as viewers do."""
    flat = image if image.mode in SPACES else image.convert("L" if image.mode == "1" else "RGB")
    transform = _transform(profile or b"", flat.mode)
    return ImageCms.applyTransform(flat, transform) or flat if transform else flat


@lru_cache(maxsize=16)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """From the colours of a profile to sRGB; None where nothing is to be done."""
    try:
        own = ImageCms.ImageCmsProfile(io.BytesIO(profile)) if profile else None
        if own and own.profile.xcolor_space == SPACES[mode] and "sRGB" not in ImageCms.getProfileDescription(own):
            return ImageCms.buildTransform(own, SRGB, mode, "RGB")
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
        pass
    return ImageCms.buildTransform(ImageCms.createProfile("LAB"), SRGB, mode, "RGB") if mode == "LAB" else None


@lru_cache(maxsize=1)
def _kinds() -> list[str]:
    """Those of KINDS that this Pillow can read."""
    Image.init()
    return [kind for kind in KINDS if kind in Image.OPEN]


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
