"""A picture of any shape as the square that a model sees. Imports no torch: data are looked at without it."""

from __future__ import annotations

from PIL import Image


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
        image = image.resize((side * image.width // shortest, side * image.height // shortest), by)
        left, top = round((image.width - side) / 2), round((image.height - side) / 2)
    return image.crop((left, top, left + side, top + side))
