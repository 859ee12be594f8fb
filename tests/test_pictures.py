"""A picture is seen as a viewer shows it, whatever its mode, depth, direction and shape, or refused by name."""

import struct
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageDraw, PngImagePlugin

from ease_flwr.config import DataError
from ease_flwr.data import pictures
from tests.photographs import bomb, saved


def seen(content):
    return np.asarray(pictures.opened(content)).astype(int)


def scene():
    """Colours, with a white part and a black one."""
    picture = Image.new("RGB", (24, 16), (200, 60, 40))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, 0, 7, 7), "white")
    draw.rectangle((12, 8, 23, 15), "black")
    return picture


MODES = {  # mode: (kind of file, how far a channel may be off)
    "RGB": ("PNG", 0),
    "RGBX": ("TIFF", 0),
    "RGBA": ("PNG", 0),
    "P": ("PNG", 50),
    "PA": ("TIFF", 30),
    "CMYK": ("TIFF", 1),
    "YCbCr": ("TIFF", 3),
    "LAB": ("TIFF", 6),
}


@pytest.mark.parametrize("mode", MODES)
def test_colours_in_every_mode_are_those_of_the_scene(mode):
    kind, off = MODES[mode]
    if mode == "LAB":
        to = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
        picture = ImageCms.applyTransform(scene(), to)
    elif mode == "PA":
        picture = scene().convert("RGBA").quantize(8).convert("PA")
    else:
        picture = scene().convert(mode)
    assert abs(seen(saved(picture, kind)) - np.asarray(scene()).astype(int)).max() <= off


@pytest.mark.parametrize("mode", ["1", "L", "LA"])
def test_greys_are_those_of_the_scene(mode):
    bright = Image.fromarray((np.asarray(scene().convert("L")) > 127).astype(np.uint8) * 255)
    assert (seen(saved(bright.convert(mode))) == np.asarray(bright.convert("RGB"))).all()


def test_what_is_transparent_is_white():
    clear = scene().convert("RGBA")
    clear.putalpha(Image.fromarray(np.full((16, 24), 0, np.uint8)))
    half = scene().convert("RGBA")
    half.putalpha(128)
    assert (seen(saved(clear)) == 255).all()
    assert abs(seen(saved(half)) - (np.asarray(scene()).astype(int) + 255) / 2).max() <= 2
    grey = Image.new("LA", (4, 4), (0, 0))
    assert (seen(saved(grey)) == 255).all()
    palette = Image.new("P", (4, 4), 3)
    palette.putpalette([0, 0, 0] * 8)
    assert (seen(saved(palette, transparency=3)) == 255).all()
    assert (seen(saved(palette, "GIF", transparency=3)) == 255).all()
    assert (seen(saved(palette, transparency=bytes([255, 255, 255, 0]))) == 255).all()
    assert (seen(saved(Image.new("RGB", (4, 4), (9, 9, 9)), transparency=(9, 9, 9))) == 255).all()
    assert (seen(saved(Image.new("L", (4, 4), 9), transparency=9)) == 255).all()


RAMP = np.linspace(0, 1, 256).reshape(16, 16)
DEEP = {
    "16 bits": (RAMP * 65535).astype("<u2"),
    "16 bits, the other order": (RAMP * 65535).astype(">u2"),
    "12 bits": (RAMP * 4095).astype("<u2"),
    "10 bits": (RAMP * 1023).astype("<u2"),
    "8 bits in 16": (RAMP * 255).astype("<u2"),
    "32 bits": (RAMP * 2**31 - 2).astype("<i4"),
    "Hounsfield units": (RAMP * 4000 - 1000).astype("<i4"),
    "shares": RAMP.astype("<f4"),
    "large numbers": (RAMP * 1e6 - 5e5).astype("<f4"),
}


def deep(values):
    """A TIFF as devices write it."""
    if values.dtype == np.dtype(">u2"):
        return saved(Image.frombytes("I;16B", values.shape[::-1], values.tobytes()), "TIFF")
    return saved(Image.fromarray(values), "TIFF")


@pytest.mark.parametrize("kind", DEEP)
def test_deep_greys_are_a_ramp_from_black_to_white(kind):
    found = seen(deep(DEEP[kind]))
    assert (found == found[:, :, :1]).all()
    assert abs(found[:, :, 0] - RAMP * 255).max() <= 1


def test_deep_greys_of_other_files_are_the_same():
    values = DEEP["16 bits"]
    for kind in ("PNG", "PPM", "JPEG2000"):
        assert abs(seen(saved(Image.fromarray(values), kind))[:, :, 0] - RAMP * 255).max() <= 1
    negative = saved(Image.fromarray(values), "TIFF", tiffinfo={262: 0})  # of film: 0 is white
    assert abs(255 - seen(negative)[:, :, 0] - RAMP * 255).max() <= 1
    signed = saved(Image.fromarray(np.full((4, 4), -7, "<i4")), "TIFF")
    assert (seen(signed) == 128).all()
    some = np.array([[np.nan, 0.0], [0.5, np.inf]], "<f4")
    assert seen(saved(Image.fromarray(some), "TIFF"))[:, :, 0].tolist() == [[0, 0], [128, 0]]


@pytest.mark.parametrize("largest", [0.01, 1.0, 1.02, 3, 63, 255, 300, 2000, 60_000])
@pytest.mark.parametrize("form", ["<f4", "<u2"])
def test_no_grey_is_nearly_black(form, largest):
    """A share that is a little more than 1, as resampling leaves it, is no value of 255."""
    values = (RAMP * largest).astype(form)
    if values.any():
        assert seen(deep(values)).max() >= 255 // pictures.DARK
    assert (seen(deep(np.zeros_like(values))) == 0).all()


def test_a_grey_has_a_sign_where_its_file_says_so():
    """Pillow gives one to 32 bits that have none, and takes it from 8 bits."""
    content = saved(Image.fromarray((RAMP * (2**32 - 1)).astype("<u4").view("<i4")), "TIFF")
    content = content.replace(struct.pack("<HHIHH", 339, 3, 1, 2, 0), struct.pack("<HHIHH", 339, 3, 1, 1, 0))
    assert abs(seen(content)[:, :, 0] - RAMP * 255).max() <= 1
    content = saved(Image.fromarray((RAMP * 255 - 128).astype("i1").view("u1")), "TIFF", tiffinfo={339: 2})
    assert abs(seen(content)[:, :, 0] - RAMP * 255).max() <= 1


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_as_its_exif_says(kind, orientation):
    shown = np.zeros((16, 32, 3), np.uint8)
    shown[:8, :16] = 255  # what is up on the left is white
    turns = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a),
        7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
        8: lambda a: np.rot90(a, -1),
    }
    exif = Image.Exif()
    exif[0x112] = orientation
    kept = Image.fromarray(np.ascontiguousarray(turns[orientation](shown)))
    found = seen(saved(kept, kind, exif=exif))
    assert found.shape == shown.shape
    assert ((found > 127) == (shown > 127)).all()


@pytest.mark.parametrize("field", [(0x100, 9, -5), (0x11A, 3, 72), (0x128, 5, 8), (0x8825, 4, 9999), (0x112, 3, 6)])
def test_strange_exif_turns_a_picture_all_the_same(field):
    """Fields of other types than they should have, which Pillow reads and cannot write again."""
    fields = b"".join(struct.pack("<HHIi", tag, kind, 1, value) for tag, kind, value in sorted({field, (0x112, 3, 6)}))
    exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(fields) // 12) + fields + bytes(4)
    shown = np.asarray(scene().transpose(Image.Transpose.ROTATE_270)).astype(int)
    assert (seen(saved(scene(), "PNG", exif=exif)) == shown).all()


def test_long_texts_and_profiles_are_no_reason_to_refuse():
    texts = PngImagePlugin.PngInfo()
    texts.add_itxt("workflow", "x" * 2**21, zip=True)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes() + bytes(2**21)
    assert (seen(saved(scene(), pnginfo=texts, icc_profile=profile)) == np.asarray(scene())).all()


def test_damaged_exif_and_profiles_are_left_aside():
    content = saved(scene(), "PNG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff", icc_profile=b"no profile")
    assert (seen(content) == np.asarray(scene())).all()


def test_colours_of_a_profile_are_those_of_the_screen():
    """A profile in which red and blue have changed places; what is written in it is shown as it was meant."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    profile = (
        profile.replace(b"rXYZ", b"####")
        .replace(b"bXYZ", b"rXYZ")
        .replace(b"####", b"bXYZ")
        .replace(b"s\0R\0G\0B", b"O\0w\0n\0_")
    )
    swapped = saved(Image.fromarray(np.asarray(scene())[:, :, ::-1].copy()), "PNG", icc_profile=bytes(profile))
    assert abs(seen(swapped) - np.asarray(scene()).astype(int)).max() <= 3
    grey = saved(Image.new("L", (4, 4), 77), "PNG", icc_profile=bytes(profile))  # a profile of other colours
    assert (seen(grey) == 77).all()


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF", "AVIF"])
def test_the_first_frame_or_page_is_seen(kind):
    red, blue = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    found = seen(saved(red, kind, save_all=True, append_images=[blue]))
    assert abs(found - (255, 0, 0)).max() <= 5


@pytest.mark.parametrize("size", [(1, 1), (1, 20_000), (20_000, 1), (3, 7), (4000, 2)])
def test_shapes(size):
    assert (pictures.decoded(saved(Image.new("L", size, 77)), 224) == 77).all()


def test_a_strip_shows_its_middle():
    strip = np.zeros((10, 3000, 3), np.uint8)
    strip[:, 1490:1510] = 255
    assert (pictures.decoded(saved(Image.fromarray(strip)), 10) == 255).all()


BOUNDED = """
import io, resource, sys
from PIL import Image
from ease_flwr.data import pictures
from tests.photographs import bomb
out = io.BytesIO()
Image.new("L", (1, 70_000), 77).save(out, "PNG")
pictures.opened(out.getvalue())
now = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + 300 * 2**20,) * 2)
assert (pictures.decoded(out.getvalue(), 224) == 77).all()
"""


def test_a_strip_takes_little_memory():
    """Resized as a whole it would have 224 x 15,680,000 pixels."""
    done = subprocess.run([sys.executable, "-c", BOUNDED], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-500:]


def test_what_is_too_large_is_refused_by_name(monkeypatch, tmp_path):
    for content in (saved(Image.new("1", (8001, 10_000))), bomb()):  # at the second Pillow itself raises
        with pytest.raises(DataError, match=r"^it has more than 80 million pixels, make it smaller$"):
            pictures.opened(content)
    monkeypatch.setattr(pictures, "BYTES", 2**20)
    (tmp_path / "large").write_bytes(bytes(2**20 + 1))
    with pytest.raises(DataError, match=r"^it has more than 1 MiB, make it smaller$"):
        pictures.read(tmp_path / "large")


def test_large_pictures_take_turns(monkeypatch):
    monkeypatch.setattr(pictures, "LARGE", 100)
    waited = []
    monkeypatch.setattr(
        pictures, "TURN", type("Turn", (), {"__enter__": lambda _: waited.append(1), "__exit__": lambda *_: None})()
    )
    pictures.opened(saved(scene()))
    pictures.opened(saved(Image.new("L", (10, 10))))
    assert len(waited) == 1


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_file_that_was_not_copied_whole_is_refused(kind):
    """Download tools take the room beforehand: what did not come is zeros."""
    thumbnail = Image.Exif()
    thumbnail[0x927C] = b"\xff\xda" + saved(scene(), "JPEG")
    many = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    for picture, how in [(many, {}), (many // 16 * 16, {"exif": thumbnail} if kind == "JPEG" else {})]:
        whole = saved(Image.fromarray(picture), kind, **how)
        assert (seen(whole + bytes(2**12)) == seen(whole)).all()
        for share in (0.5, 0.7, 0.9):
            kept = int(len(whole) * share)
            with pytest.raises(DataError):
                pictures.opened(whole[:kept] + bytes(len(whole) - kept))


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "it is empty; read are JPEG, PNG, "),
        (b"no picture", "it is no picture; read are JPEG, PNG, "),
        (bytes(128) + b"DICM", "it is a DICOM file, export it as PNG or JPEG"),
        (b"\0\0\0\x24ftypheic", "it is a HEIC picture, export it as PNG or JPEG"),
        (b"\0\0\0\x24ftypmif1", "it is a HEIC picture, export it as PNG or JPEG"),
        (
            b"II*\0\x10\0\0\0CR\2\0" + bytes(20),
            "it begins as TIFF, and is damaged or of a form that is not read, export it as PNG or JPEG",
        ),
        (b"%PDF-1.7", "it is a PDF, export it as PNG or JPEG"),
        (saved(scene(), "EPS"), "it is PostScript, export it as PNG or JPEG"),
        (saved(scene(), "JPEG")[:-200], ""),
        (saved(scene())[:70], ""),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(content, why):
    with pytest.raises(DataError) as error:
        pictures.decoded(content, 8)
    assert str(error.value).startswith(why)
    assert "\n" not in str(error.value)
