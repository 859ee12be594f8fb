"""Pictures that Pillow opens and does not show as a viewer does: written here byte by byte, as it cannot write them."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from ease_flwr.config import DataError
from ease_flwr.data import pictures
from tests.photographs import saved
from tests.test_pictures import seen

GREY, COLOURS = 0, 2
"""What PNG calls them."""


def png(values, bits, kind, clear):
    """A PNG of one row of these values, of which one is transparent."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    shape = struct.pack(">IIBBBBB", len(values), 1, bits, kind, 0, 0, 0)
    row = np.array(values, ">u2").tobytes() if bits == 16 else bytes(np.packbits(unpacked(values, bits)))
    parts = [
        (b"IHDR", shape),
        (b"tRNS", np.array(clear, ">u2").tobytes()),
        (b"IDAT", zlib.compress(b"\0" + row)),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def unpacked(values, bits):
    return [value >> place & 1 for value in values for place in reversed(range(bits))]


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_the_grey_that_is_transparent_is_white_in_every_depth(bits):
    largest = 2**bits - 1
    values = [0, largest // 3, largest]
    for clear in values:
        expected = [255 if value == clear else round(255 * value / largest) for value in values]
        assert seen(png(values, bits, GREY, clear))[0, :, 0].tolist() == expected


def test_the_colour_that_is_transparent_is_white_in_every_depth():
    values = [(0, 0, 0), (0x8000, 0x8000, 0x8000), (0xFFFF, 0, 0)]
    for i, clear in enumerate(values):
        found = seen(png(values, 16, COLOURS, clear))[0]
        assert found.tolist() == [[255] * 3 if n == i else [part >> 8 for part in value] for n, value in enumerate(values)]


def planes(values, colours, compression=1):
    """A TIFF whose colours lie in planes, one behind the other, as microscopes write it. values: (planes, height, width)."""
    bits = 8 * values.itemsize
    strips = [zlib.compress(plane.tobytes()) if compression == 8 else plane.tobytes() for plane in values]
    sizes = [len(strip) for strip in strips]
    tags = {256: [values.shape[2]], 257: [values.shape[1]], 258: [bits] * len(values), 259: [compression], 262: [colours]}
    tags |= {273: sizes, 277: [len(values)], 278: [values.shape[1]], 279: sizes, 284: [2]}
    ahead = 14 + 12 * len(tags)
    behind = ahead + sum(4 * len(said) for said in tags.values() if len(said) > 1)
    tags[273] = [behind + sum(sizes[:i]) for i in range(len(sizes))]
    entries, long = b"", b""
    for tag, said in tags.items():
        packed = struct.pack(f"<{len(said)}I", *said)
        entries += struct.pack("<HHI", tag, 4, len(said)) + (packed if len(said) == 1 else struct.pack("<I", ahead + len(long)))
        long += packed if len(said) > 1 else b""
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + long + b"".join(strips)


@pytest.mark.parametrize("compression", [1, 8])
@pytest.mark.parametrize("form", ["<u1", "<u2"])
@pytest.mark.parametrize(("colours", "count"), [(2, 3), (1, 2), (5, 4)])
def test_planes_are_those_of_the_picture_or_refused(form, compression, colours, count):
    ramp = np.linspace(0, 255, 48).astype(int).reshape(6, 8)
    values = np.stack([ramp, ramp[::-1], ramp[:, ::-1], ramp * 0][:count])
    deep = (values * (257 if form == "<u2" else 1)).astype(form)
    try:
        found = seen(planes(deep, colours, compression))
    except DataError as error:
        assert str(error).endswith("export it as PNG or JPEG")  # noqa: PT017
        assert (form == "<u2" and compression == 1) or colours == 1
        return
    expected = values[:3].transpose(1, 2, 0)
    assert abs(found - (255 - expected if colours == 5 else expected)).max() <= 1


def test_a_raw_file_of_a_camera_is_refused_by_name():
    """It is a TIFF whose first page is a thumbnail; the picture is in one of its own directories."""
    pages = saved(Image.new("RGB", (4, 4), (9, 9, 9)), "TIFF", tiffinfo={254: 0})
    assert (seen(pages) == 9).all()
    raw = saved(Image.new("RGB", (4, 4), (9, 9, 9)), "TIFF", tiffinfo={254: 1, 330: 8})
    with pytest.raises(DataError, match=r"^it is a camera's raw file, or .*, export it as PNG or JPEG$"):
        pictures.opened(raw)
    alone = saved(Image.new("RGB", (4, 4), (9, 9, 9)), "TIFF", tiffinfo={254: 1})  # some write so of the only page
    assert (seen(alone) == 9).all()


@pytest.mark.parametrize("largest", [255, 65535])
def test_a_palette_of_8_bits_is_not_black(largest):
    """TIFF wants 16 bits a colour; old programs have written 8, of which Pillow takes the upper ones."""
    picture = Image.new("P", (4, 4), 1)
    picture.putpalette([0, 0, 0, 255, 0, 255, 0, 255, 0])
    content = saved(picture, "TIFF")
    (at,) = struct.unpack_from("<I", content, content.index(struct.pack("<HHI", 320, 3, 768)) + 8)
    colours = np.frombuffer(content, "<u2", 768, at) >> 8
    content = content[:at] + (colours * (largest // 255)).astype("<u2").tobytes() + content[at + 1536 :]
    assert (seen(content) == (255, 0, 255)).all()


def grey_profile(gamma):
    """A profile of greys: what a value means is that value to the power of gamma."""
    said = {b"desc": b"desc" + struct.pack(">II", 0, 5) + b"grey\0" + bytes(79), b"cprt": b"text" + bytes(8)}
    white = struct.pack(">iii", 63190, 65536, 54061)
    said |= {b"wtpt": b"XYZ " + bytes(4) + white, b"kTRC": b"curv" + struct.pack(">IIHH", 0, 1, round(gamma * 256), 0)}
    table, content, ahead = struct.pack(">I", len(said)), b"", 132 + 12 * len(said)
    for name, part in said.items():
        table += name + struct.pack(">II", ahead + len(content), len(part))
        content += part + bytes(-len(part) % 4)
    head = struct.pack(">I4sI", ahead + len(content), b"lcms", 0x02400000) + b"mntrGRAYXYZ " + bytes(12) + b"acsp" + bytes(28)
    return (head + white).ljust(128, b"\0") + table + content


def test_a_profile_of_greys_counts_for_transparent_ones_too():
    profile = grey_profile(1.0)
    assert pictures._transform(profile, "L") is not None
    grey, clear = Image.new("L", (4, 4), 64), Image.new("LA", (4, 4), (64, 255))
    clear.putpixel((0, 0), (64, 0))
    expected = seen(saved(grey, icc_profile=profile))
    assert expected.min() > 128  # a quarter of the light is brighter than 64 on a screen
    found = seen(saved(clear, icc_profile=profile))
    assert (found[0, 0] == 255).all()
    assert (found[1:] == expected[1:]).all()
    assert (seen(saved(grey, icc_profile=profile, transparency=9)) == expected).all()
