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
from PIL import ExifTags, Image, ImageCms, ImageOps, TiffImagePlugin, UnidentifiedImageError

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
ENDINGS = {"jpg", "jpeg", "jpe", "mpo", "png", "webp", "tif", "tiff", "bmp", "gif", "avif", "jp2", "ppm", "pgm", "pbm", "pnm"}
"""Of the names of such files."""
EXPORT = "export it as PNG or JPEG"
OTHERS = {  # what hospitals, phones and download tools also leave, by how a file begins
    (128, b"DICM"): f"a DICOM file, {EXPORT}",
    (4, b"ftypheic"): f"a HEIC picture, {EXPORT}",
    (4, b"ftypheix"): f"a HEIC picture, {EXPORT}",
    (4, b"ftypmif1"): f"a HEIC picture, {EXPORT}",
    (0, b"%PDF"): f"a PDF, {EXPORT}",
    (0, b"%!PS"): f"PostScript, {EXPORT}",
    (0, b"<svg"): f"a drawing (SVG), {EXPORT}",
    (0, b"version https://git-lfs"): "a pointer of Git LFS, fetch the picture itself (`git lfs pull`)",
}
WHITES = (1, 255, 1023, 4095, 16383, 65535)
"""What white may be in a grey picture of 1, 8, 10, 12, 14 or 16 bits."""
SRGB = ImageCms.createProfile("sRGB")
SPACES = {"RGB": "RGB ", "L": "GRAY", "CMYK": "CMYK", "LAB": "Lab "}
"""What ICC calls the colours of a mode."""

TURN = threading.Lock()
# Of what Pillow only warns about a viewer shows what there is; pictures that are too large are refused below.
warnings.filterwarnings("ignore", module=r"PIL\b")
logging.getLogger("PIL").setLevel(logging.CRITICAL)


def decoded(content: bytes, side: int, resize: str = "", interpolation: str = "") -> NDArray[np.uint8]:
    """uint8 (side, side, 3). resize, interpolation: see DataConfig. Raises DataError, see `opened`."""
    return np.asarray(fitted(opened(content), side, resize, interpolation))


def opened(content: bytes) -> Image.Image:
    """The picture in 8-bit RGB, as a viewer shows it. Raises DataError: why that cannot be, without the name of the file."""
    if other := next((what for (at, start), what in OTHERS.items() if content.startswith(start, at)), ""):
        raise DataError(f"it is {other}")
    try:
        with Image.open(io.BytesIO(content), formats=_kinds()) as image:
            if image.width * image.height > PIXELS:
                raise Image.DecompressionBombError
            if image.width * image.height <= LARGE:
                return shown(image)
            with TURN:
                return shown(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise DataError(f"it has more than {PIXELS // 1_000_000} million pixels, make it smaller") from None
    except UnidentifiedImageError:
        raise DataError(f"it is {'no picture' if content else 'empty'}; read are {', '.join(KINDS)}") from None
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

    Black is 0, and white the smallest of WHITES that is large enough. With negative or larger values, black and white are the
    picture's own smallest and largest; a picture of one such value is grey.
    """
    light = values.astype(np.float32)
    finite = np.isfinite(light)
    if not finite.any():
        raise DataError("none of its pixels is a number")
    low, high = float(light.min(where=finite, initial=np.inf)), float(light.max(where=finite, initial=-np.inf))
    if white := next((w for w in WHITES if low >= 0 and high <= w), 0):
        low, high = 0.0, float(white)
    light[~finite] = low
    if high == low:
        return np.full(light.shape, 128, np.uint8)
    light -= low
    light *= 255 / (high - low)
    return np.clip(np.rint(light, out=light), 0, 255, out=light).astype(np.uint8)


def shown(image: Image.Image) -> Image.Image:
    """An open picture in 8-bit RGB, see above. Raises what Pillow raises at a damaged one."""
    image.load()
    try:
        turn = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # of EXIF that is damaged: it turns nothing
        turn = 1
    if image.mode[0] in "IF":
        values = grey(np.asarray(image))
        negative = isinstance(image, TiffImagePlugin.TiffImageFile) and image.tag_v2.get(262) == 0  # of film: 0 is white
        flat = Image.fromarray(255 - values if negative else values)
    else:
        flat = _in_srgb(_on_white(image), image.info.get("icc_profile"))
    if turn != 1:
        flat.getexif()[ExifTags.Base.Orientation] = turn
        flat = ImageOps.exif_transpose(flat)
    return flat.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    """The picture without transparency."""
    if not image.has_transparency_data:
        return image
    clear = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    flat = Image.new("RGB", clear.size, "white")
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
