"""Every form of a picture becomes the pixels it stands for, or is refused: never clipped, never black or white without a word."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms
from tifffile import imwrite

from unimind.data.pixels import GROUND, Forms, decode_picture, white_of
from unimind.data.sources.pictures import Pictures
from unimind.errors import InputError

RNG = np.random.default_rng(1)
GREY = RNG.integers(0, 256, (6, 9), dtype=np.uint8)
GREY[0, :2] = 0, 255
RGB = RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)
ALPHA = RNG.integers(0, 256, (6, 9), dtype=np.uint8)


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def png_16(values) -> bytes:
    """A PNG of 16 bits a channel by hand: uint16 (H, W, channels)."""
    height, width, channels = values.shape

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff(values, **options) -> bytes:
    stream = io.BytesIO()
    imwrite(stream, values, **options)
    return stream.getvalue()


def over_ground(rgb, alpha, ground=GROUND):
    share = alpha[..., None] / 255
    return rgb * share + ground * (1 - share)


def palette() -> Image.Image:
    image = Image.fromarray(GREY % 4, "P")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 255, 0, 255])
    return image


def turned(way) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = way
    return exif


PALETTE = np.array([[10, 20, 30], [40, 50, 60], [70, 80, 90], [255, 0, 255]], np.uint8)[GREY % 4]
G3 = np.repeat(GREY[..., None], 3, 2)
FORMS = {
    "grey": (encoded(Image.fromarray(GREY)), G3),
    "RGB": (encoded(Image.fromarray(RGB)), RGB),
    "bitmap of one bit": (encoded(Image.fromarray(GREY > 99)), np.where(G3 > 99, 255, 0)),
    "16-bit grey PNG": (png_16(GREY[..., None].astype(np.uint16) * 257), G3),
    "16-bit RGB PNG": (png_16(RGB.astype(np.uint16) * 257), RGB),
    "16-bit RGBA PNG": (png_16(np.dstack([RGB, ALPHA]).astype(np.uint16) * 257), over_ground(RGB, ALPHA)),
    "16-bit TIFF": (encoded(Image.fromarray(GREY.astype(np.uint16) * 257), "TIFF"), G3),
    "16-bit PGM": (b"P5 9 6 65535\n" + (GREY.astype(">u2") * 257).astype(">u2").tobytes(), G3),
    "float TIFF": (encoded(Image.fromarray(GREY.astype(np.float32) / 255), "TIFF"), G3),
    "float TIFF, rounding": (encoded(Image.fromarray(GREY.astype(np.float32) / 255 * np.float32(1.0005) - np.float32(1e-5)), "TIFF"), G3),
    "16-bit RGB TIFF": (tiff(RGB.astype(np.uint16) * 257, photometric="rgb"), RGB),
    "16-bit RGB TIFF in planes, packed": (
        tiff(np.ascontiguousarray(RGB.transpose(2, 0, 1)).astype(np.uint16) * 257, photometric="rgb", planarconfig="separate", compression="zlib"), RGB,
    ),
    "8-bit TIFF whose white is 0": (tiff(GREY, photometric="miniswhite"), 255 - G3),
    "16-bit TIFF whose white is 0": (tiff(GREY.astype(np.uint16) * 257, photometric="miniswhite"), 255 - G3),
    "float TIFF whose white is 0": (tiff(GREY.astype(np.float32) / 255, photometric="miniswhite"), 255 - G3),
    **{f"TIFF of orientation {way}": (encoded(Image.fromarray(RGB), "TIFF", tiffinfo={274: way}), RGB) for way in range(1, 9)},
    "PNG of orientation 6": (encoded(Image.fromarray(RGB), exif=turned(6)), RGB),
    "animation with a default image": (encoded(Image.fromarray(RGB), save_all=True, append_images=[Image.fromarray(~RGB)] * 2, default_image=True), RGB),
    "PGM whose white is 1023": (b"P5 9 6 1023\n" + np.round(GREY / 255 * 1023).astype(">u2").tobytes(), G3),
    "RGBA": (encoded(Image.fromarray(np.dstack([RGB, ALPHA]))), over_ground(RGB, ALPHA)),
    "grey and alpha": (encoded(Image.fromarray(np.dstack([GREY, ALPHA]), "LA")), over_ground(G3, ALPHA)),
    "palette": (encoded(palette()), PALETTE),
    "palette with a transparent colour": (encoded(palette(), transparency=1), np.where((GREY % 4 == 1)[..., None], GROUND, PALETTE)),
    "RGB with a transparent colour": (encoded(Image.fromarray(PALETTE), transparency=(255, 0, 255)), np.where((GREY % 4 == 3)[..., None], GROUND, PALETTE)),
    "GIF": (encoded(palette(), "GIF"), PALETTE),
    "CMYK TIFF": (encoded(Image.fromarray(np.dstack([255 - RGB, 0 * GREY]), "CMYK"), "TIFF"), RGB),
    "lossless WebP": (encoded(Image.fromarray(RGB), "WEBP", lossless=True), RGB),
    "colour profile": (encoded(Image.fromarray(RGB), icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()), RGB),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_pixels_it_stands_for(form):
    content, expected = FORMS[form]
    found = decode_picture(content, form)
    assert found.dtype == np.uint8 and abs(found - np.asarray(expected, float)).max() <= 1


def test_what_is_left_out_is_named_and_the_ground_is_the_study_s(tmp_path, capsys):
    (tmp_path / "a.jpg").write_bytes(encoded(Image.fromarray(RGB), "JPEG", exif=turned(6)))
    Image.fromarray(RGB).save(tmp_path / "b.gif", save_all=True, append_images=[Image.fromarray(255 - RGB)])
    Image.fromarray(np.dstack([RGB, 0 * ALPHA])).save(tmp_path / "c.png")
    (tmp_path / "d.heic").write_bytes(b"")
    pictures = Pictures.open(tmp_path, ground=7)
    assert pictures.names == ["a.jpg", "b.gif", "c.png"] and pictures.load("a.jpg").shape == RGB.shape and (pictures.load("c.png") == 7).all()
    assert pictures.first.tolist() == [0, 1, 2]
    said = capsys.readouterr().err
    for words in ("EXIF orientation not applied", "all frames but the first left out", "transparent pixels laid over grey 7 in 1 picture", "d.heic"):
        assert words in said


def huge() -> bytes:
    content = bytearray(png_16(GREY[..., None].astype(np.uint16)))
    content[16:24] = struct.pack(">II", 60000, 60000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    return bytes(content)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (huge(), "larger than|more than"),
        (png_16(np.full((2, 2, 1), 255, np.uint16)), "values from 255 to 255 in 16 bits"),
        (png_16(RGB.astype(np.uint16) * 16), "colours below 4096 in 16 bits"),
        (png_16(np.dstack([RGB, ALPHA]).astype(np.uint16)), "colours below 4096 in 16 bits"),
        (tiff(RGB.astype(np.uint16) * 16, photometric="rgb"), "colours below 4096 in 16 bits"),
        (b"P6 9 6 65535\n" + RGB.astype(">u2").tobytes(), "colours below 4096 in 16 bits"),
        (tiff(np.ascontiguousarray(RGB.transpose(2, 0, 1)).astype(np.uint16), photometric="rgb", planarconfig="separate"), "planes of their own"),
        (encoded(Image.fromarray(GREY.astype(np.int32)), "TIFF"), "white is not known"),
        (encoded(Image.fromarray(GREY.astype(np.float32)), "TIFF"), "values from 0 to 255; expected 0 to 1 for floats"),
        (encoded(Image.fromarray(np.full((2, 2), np.nan, np.float32)), "TIFF"), "missing or infinite"),
        (encoded(Image.fromarray(RGB).convert("LAB"), "TIFF"), "colours as LAB"),
        (b"II*\0" + bytes(60), "kind of TIFF that is not read|not a readable picture"),
        (b"no picture", "not a readable picture"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_in_one_line(content, words):
    with pytest.raises(InputError, match=words) as caught:
        decode_picture(content, "p.png", forms=Forms())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "low", "high", "white"),
    [
        ("u1", 0, 255, 255), ("u1", 0, 1, 1), ("i8", 0, 255, 255), ("bool", 0, 1, 1), ("u2", 0, 65535, 65535), ("u2", 0, 255, 255), ("u2", 3, 4095, None),
        ("f4", 0, 1, 1), ("f4", -1e-7, 1.0000001, 1), ("f4", 0, 255.0001, 255), ("f4", 0, 1.5, None), ("f4", -1, 1, None), ("f8", 0, 65535, None),
        ("i4", 0, 65535, None), ("i2", -5, 9, None), ("c8", 0, 1, None),
    ],
)  # fmt: skip
def test_white_of_an_array_of_pictures(kind, low, high, white):
    if white is None:
        with pytest.raises(InputError):
            white_of(kind, low, high, "p.npy")
    else:
        assert white_of(kind, low, high, "p.npy") == white
