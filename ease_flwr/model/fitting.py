"""A picture of any shape as the square that a model sees. Imports no torch: data are looked at without it."""

from __future__ import annotations

from PIL import Image

LONGEST = 128
"""Times as long as wide is what is resized of a strip: all of a picture of 1 x 20000 would fill the memory."""


def fitted(image: Image.Image, side: int, resize: str = "", interpolation: str = "") -> Image.Image:
    """A square of so many pixels, to the pixel as open_clip makes it. resize, interpolation: see DataConfig."""
    by = Image.Resampling[(interpolation or "bicubic").upper()]
    if resize == "squash":
        return image.resize((side, side), by)
    if resize == "longest":
        longest = max(image.size)
        image = image.resize((max(1, round(image.width * side / longest)), max(1, round(image.height * side / longest))), by)
        left, top = -((side - image.width) // 2), -((side - image.height) // 2)
    else:
        shortest = min(image.size)
        width, height = (min(length, LONGEST * shortest) for length in image.size)
        image = _centre(image, width, height) if (width, height) != image.size else image
        image = image.resize((side * image.width // shortest, side * image.height // shortest), by)
        left, top = round((image.width - side) / 2), round((image.height - side) / 2)
    return image.crop((left, top, left + side, top + side))


def _centre(image: Image.Image, width: int, height: int) -> Image.Image:
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))
