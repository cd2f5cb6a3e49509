"""The one decoder: orientation, modes, formats, damage."""

import contextlib
import io
import os
import struct
import zlib

import numpy as np
import pytest
from data_helpers import encode
from PIL import Image

from scone_pl.data import decoding
from scone_pl.data.decoding import FORMATS, decode_rgb, image_size, open_image, orientation_of, read_encoded
from scone_pl.data.sample import BrokenSampleError
from scone_pl.errors import UserError

WRITABLE = [format for format in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF") if format in FORMATS]
LOSSLESS = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}, "AVIF": {"quality": 100}}


def save(image, format="PNG", **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def corners():
    """48 x 32 pixels: red, green, blue, white quarters, so that every turn shows."""
    pixels = np.zeros((32, 48, 3), dtype=np.uint8)
    pixels[:16, :24, 0] = pixels[:16, 24:, 1] = pixels[16:, :24, 2] = 255
    pixels[16:, 24:] = 255
    return pixels


UPRIGHT = {
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.transpose(1, 0, 2),
    6: lambda p: np.rot90(p, -1),
    7: lambda p: p[::-1, ::-1].transpose(1, 0, 2),
    8: lambda p: np.rot90(p),
}
"""What a viewer shows of stored pixels, by EXIF orientation (EXIF 2.3, table 6)."""


def tagged(orientation, format="PNG", pixels=None):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(corners() if pixels is None else pixels)
    return save(image, format, exif=exif, **LOSSLESS.get(format, {}))


@pytest.mark.parametrize("format", WRITABLE)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(format, orientation):
    data = tagged(orientation, format)
    image, expected = decode_rgb(data), UPRIGHT[orientation](corners())
    assert image.mode == "RGB"
    assert (
        np.abs(np.asarray(image).astype(int) - expected)[2:14, 2:14].max() <= 8
    )  # within a quarter: JPEG smears edges
    assert np.abs(np.asarray(image).astype(int) - expected)[-14:-2, -14:-2].max() <= 8
    assert image.size == image_size(data) == expected.shape[1::-1]
    assert orientation_of(data) == (1 if format == "TIFF" else orientation)


@pytest.mark.parametrize("format", [format for format in WRITABLE if format != "TIFF"])
@pytest.mark.parametrize("orientation", [3, 6])
def test_orientation_is_ignored_on_request(format, orientation):
    data = tagged(orientation, format)
    image = decode_rgb(data, exif_orientation="ignore")
    assert image.size == image_size(data, "ignore") == open_image(data).size == (48, 32)
    assert np.abs(np.asarray(image).astype(int) - corners())[2:14, 2:22].max() <= 8


def test_tiff_is_turned_by_pillow_either_way():
    data = tagged(6, "TIFF")
    assert decode_rgb(data, exif_orientation="ignore").size == image_size(data, "ignore") == (32, 48)


@pytest.mark.parametrize("rule", ["apply", "ignore"])
def test_an_image_is_turned_once(rule):
    image = decode_rgb(tagged(6), exif_orientation=rule)
    again = decoding.upright_rgb(image, "apply")
    assert again.size == image.size
    assert np.array_equal(np.asarray(again), np.asarray(image))


def test_orientation_behind_the_pixels_of_a_png():
    data = tagged(6)
    at = data.index(b"eXIf") - 4
    chunk = data[at : at + 12 + int.from_bytes(data[at : at + 4], "big")]
    moved = data[:at] + data[at + len(chunk) :]
    moved = moved[:-12] + chunk + moved[-12:]
    assert decode_rgb(moved).size == image_size(moved) == (32, 48)


@pytest.mark.parametrize("value", [0, 9, 255, 65535])
def test_impossible_orientations_count_as_none(value):
    data = tagged(value, "JPEG")
    assert decode_rgb(data).size == image_size(data) == (48, 32)
    assert orientation_of(data) == 1


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_damaged_exif_does_not_fail(format):
    rng = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    whole = exif.tobytes()
    for length in (0, 1, 7, 9, 12, 15, 20, len(whole)):
        for _ in range(8):
            damaged = bytearray(whole[:length])
            for _ in range(3 if length else 0):
                damaged[rng.integers(0, length)] = rng.integers(0, 256)
            data = save(Image.fromarray(corners()), format, exif=bytes(damaged))
            image = decode_rgb(data)
            assert image.size in ((48, 32), (32, 48))
            assert image.size == image_size(data)


# ---------------------------------------------------------------------- modes
GREY = np.array([[0, 1, 128, 255]], dtype=np.uint8)


@pytest.mark.parametrize("dtype", ["<u2", ">u2"])
def test_sixteen_bit_grey_is_divided_by_257(dtype):
    values = (GREY.astype(np.uint16) * 257).astype(dtype)
    image = Image.frombytes("I;16" if dtype == "<u2" else "I;16B", (4, 1), values.tobytes())
    assert np.asarray(decode_rgb(save(image, "TIFF")))[0].tolist() == [[v] * 3 for v in GREY[0].tolist()]


@pytest.mark.parametrize(("factor", "format"), [(1, "TIFF"), (257, "TIFF"), (257, "PPM")])
def test_32_bit_integers_are_8_or_16_bit(factor, format):
    image = Image.fromarray(GREY.astype(np.int32) * factor)
    assert image.mode == "I"
    assert np.asarray(decode_rgb(save(image, format)))[0].tolist() == [[v] * 3 for v in GREY[0].tolist()]


@pytest.mark.parametrize("white", [1, 255])
def test_floats_are_fractions_or_8_bit(white):
    image = Image.fromarray(GREY.astype(np.float32) * np.float32(white / 255))
    assert image.mode == "F"
    assert np.asarray(decode_rgb(save(image, "TIFF")))[0].tolist() == [[v] * 3 for v in GREY[0].tolist()]


@pytest.mark.parametrize(
    "values",
    [
        np.array([[-1, 100]], dtype=np.int32),
        np.array([[0, 65536]], dtype=np.int32),
        np.array([[0, 2**31 - 1]], dtype=np.int32),
        np.array([[-0.5, 0.5]], dtype=np.float32),
        np.array([[0, 1000]], dtype=np.float32),
        np.array([[0, np.nan]], dtype=np.float32),
        np.array([[0, np.inf]], dtype=np.float32),
    ],
    ids=str,
)
def test_values_without_a_clear_scale_are_refused(values):
    image = Image.fromarray(values)
    with pytest.raises(BrokenSampleError, match=f"mode {image.mode} holds values") as error:
        decode_rgb(save(image, "TIFF"))
    assert error.value.reason == "unsupported pixels"


def test_transparent_sixteen_bit_grey_is_white():
    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    values = np.array([[500, 0, 65535]], dtype=">u2")
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 3, 1, 16, 0, 0, 0, 0))
    data += chunk(b"tRNS", struct.pack(">H", 500)) + chunk(b"IDAT", zlib.compress(b"\0" + values.tobytes()))
    image = decode_rgb(data + chunk(b"IEND", b""))
    assert [pixel[0] for pixel in np.asarray(image)[0].tolist()] == [255, 0, 255]


MODES = {
    "1": ("PNG", "TIFF", "GIF"),
    "L": ("JPEG", "PNG", "TIFF", "BMP", "PPM", "WEBP"),
    "P": ("PNG", "GIF", "TIFF", "BMP"),
    "RGB": ("JPEG", "PNG", "TIFF", "BMP", "PPM", "WEBP"),
    "RGBA": ("PNG", "TIFF", "WEBP", "GIF"),
    "LA": ("PNG", "TIFF"),
    "CMYK": ("JPEG", "TIFF"),
    "YCbCr": ("TIFF",),
    "LAB": ("TIFF",),
    "I;16": ("PNG", "TIFF"),
    "I": ("TIFF", "PPM"),
    "F": ("TIFF",),
}


def grey_of(mode, size=(6, 4)):
    """A light image in a mode."""
    grey = Image.new("L", size, 200)
    if mode == "LAB":
        return Image.new("LAB", size, (204, 128, 128))
    if mode == "I;16":
        return Image.fromarray(np.full(size[::-1], 200 * 257, dtype=np.uint16))
    if mode == "I":
        return Image.new("I", size, 200 * 257)
    if mode == "1":
        return Image.new("1", size, 1)
    return (grey if mode in ("L", "F", "LA", "P") else grey.convert("RGB")).convert(mode)


@pytest.mark.parametrize(("mode", "format"), [(mode, format) for mode, formats in MODES.items() for format in formats])
def test_every_mode_keeps_its_light(mode, format):
    image = decode_rgb(save(grey_of(mode), format))
    assert image.mode == "RGB"
    assert image.size == (6, 4)
    expected = 255 if mode == "1" else 200
    assert np.abs(np.asarray(image).astype(int) - expected).max() <= 6


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "La", "RGBa", "P"])
def test_transparency_goes_onto_white_in_every_mode(mode):
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    image.putpixel((0, 0), (0, 0, 0, 255))
    if mode == "P":
        image = Image.new("P", (2, 1), 1)
        image.putpalette([0, 0, 0, 9, 9, 9])
        image.putpixel((0, 0), 0)
        image.info["transparency"] = 1
    else:
        image = image.convert({"PA": "P", "La": "LA"}.get(mode, mode)).convert(mode)
    assert np.asarray(decoding.upright_rgb(image, "apply"))[0].tolist() == [[0] * 3, [255] * 3]


def test_transparency_goes_onto_white():
    rgba = Image.new("RGBA", (4, 4), (10, 20, 30, 0))
    rgba.putpixel((0, 0), (10, 20, 30, 255))
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([10, 20, 30, 200, 0, 0])
    palette.putpixel((0, 0), 1)
    for data, solid in (
        (save(rgba), (10, 20, 30)),
        (save(rgba.convert("LA")), None),
        (save(palette, transparency=0), (200, 0, 0)),
    ):
        image = decode_rgb(data)
        assert image.mode == "RGB"
        assert image.getpixel((3, 3)) == (255, 255, 255)
        assert image.getpixel((0, 0)) != (255, 255, 255)
        assert solid is None or image.getpixel((0, 0)) == solid


# ---------------------------------------------------------------------- formats
@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_several_images_the_first_is_taken(format):
    first, second = (Image.new("RGB", (16, 8), colour) for colour in ("white", "black"))
    data = save(first, format, save_all=True, append_images=[second, second])
    assert np.asarray(decode_rgb(data)).min() >= 250


def test_several_images_of_a_phone():
    first, second = (Image.new("RGB", (16, 8), colour) for colour in ("white", "black"))
    data = save(first, "MPO", save_all=True, append_images=[second])
    assert open_image(data).format == "MPO"
    assert np.asarray(decode_rgb(data)).min() >= 250


@pytest.mark.skipif("AVIF" not in FORMATS, reason="this Pillow cannot read AVIF")
def test_avif_is_read():
    assert np.abs(np.asarray(decode_rgb(tagged(1, "AVIF"))).astype(int) - corners())[2:14, 2:22].max() <= 8


@pytest.mark.parametrize(
    ("start", "name"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x18ftypisom\0\0\0\0", "video"),
        (b"%PDF-1.7", "PDF"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"\xff\x0a", "JPEG XL"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
        (b"\0\0\1\0\1\0", "ICO"),
        (b"8BPS\0\1", "Photoshop"),
    ],
)
def test_formats_that_are_not_read_are_named(start, name):
    with pytest.raises(BrokenSampleError, match=f"a {name}.* images can be JPEG, PNG, WEBP") as error:
        decode_rgb(start + bytes(64))
    assert error.value.reason == "unsupported format"
    assert ("pillow-heif" in str(error.value)) == (name == "HEIC")


def test_the_content_decides_and_not_the_extension(tmp_path):
    (tmp_path / "x.jpg").write_bytes(encode(8, 4))
    assert decoding.load_file(tmp_path / "x.jpg").size == (8, 4)


# ---------------------------------------------------------------------- odd files
def test_files_that_never_end_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    for path in (tmp_path / "pipe.png", tmp_path / "folder.png", "/dev/zero", "/dev/stdin"):
        with pytest.raises(UserError, match="not a regular file"):
            decoding.load_file(type(tmp_path)(path))
    for name in ("missing.png", "null\0.png", "half\udc80.png", "x" * 5000):
        with pytest.raises(UserError):
            decoding.load_file(tmp_path / name)


def test_huge_files_are_refused_before_they_are_read(tmp_path):
    with (tmp_path / "sparse.png").open("wb") as file:
        file.truncate(200 << 30)
    with pytest.raises(UserError, match="too many for an image"):
        read_encoded(tmp_path / "sparse.png")


def test_bombs_of_text_are_cheap():
    bomb = zlib.compress(bytes(100 << 20), 9)
    content = b"Comment\0\0" + bomb
    chunk = struct.pack(">I", len(content)) + b"zTXt" + content + struct.pack(">I", zlib.crc32(b"zTXt" + content))
    whole = encode(8, 4)
    with contextlib.suppress(BrokenSampleError):
        assert decode_rgb(whole[:33] + chunk + whole[33:]).size == (8, 4)


def test_a_bad_colour_profile_does_not_matter():
    for format in ("JPEG", "PNG", "WEBP", "TIFF"):
        assert decode_rgb(save(Image.new("RGB", (8, 4)), format, icc_profile=b"no profile" * 50)).size == (8, 4)


@pytest.mark.parametrize("size", [(1, 1), (1, 20_000), (20_000, 1)])
def test_thin_images_are_read(size):
    assert decode_rgb(save(Image.new("RGB", size))).size == image_size(save(Image.new("RGB", size))) == size


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty image"),
        (b"no image at all", "unreadable image"),
        (encode(64, 64, format="JPEG")[:-2000], "truncated image"),
        (encode(64, 64)[:-4000], "truncated image"),
        (encode(64, 64)[:40], "unreadable image"),
    ],
)
def test_broken_images_have_a_reason(data, reason):
    with pytest.raises(BrokenSampleError) as error:
        decode_rgb(data)
    if reason == "unreadable image":
        assert error.value.reason in ("unreadable image", "damaged image", "truncated image")
    else:
        assert error.value.reason == reason


def test_decompression_bomb(monkeypatch):
    monkeypatch.setattr(decoding, "MAX_DECODED_PIXELS", 100)
    with pytest.raises(BrokenSampleError, match="16 x 16") as error:
        decode_rgb(encode(16, 16))
    assert error.value.reason == "image too large"
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    with pytest.raises(BrokenSampleError) as error:
        decode_rgb(encode(16, 16))
    assert error.value.reason == "image too large"


# ---------------------------------------------------------------------- fuzz
def seeds():
    rng = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = "maker"
    for mode, formats in MODES.items():
        for format in formats:
            yield save(grey_of(mode, (24, 16)), format)
    noise = Image.fromarray(rng.integers(0, 256, (16, 24, 3), dtype=np.uint8))
    for format in WRITABLE:
        yield save(noise, format, exif=exif)
    yield save(noise, "JPEG", progressive=True)
    yield save(noise, "MPO", save_all=True, append_images=[noise])
    yield save(noise, "GIF", save_all=True, append_images=[noise.rotate(90)])


def damage(data, rng):
    kind = rng.integers(0, 4)
    if kind == 0:
        return data[: rng.integers(0, len(data))]
    changed = bytearray(data)
    reach = min(len(data), 64) if kind == 1 else len(data)
    for place in rng.integers(0, reach, rng.integers(1, 9)):
        changed[place] = rng.integers(0, 256) if kind != 2 else rng.choice([0, 1, 127, 128, 255])
    if kind == 3:
        at, length = rng.integers(0, len(data)), rng.integers(1, 40)
        changed[at:at] = changed[at : at + length] * int(rng.integers(1, 4))
    return bytes(changed)


REASONS = {
    *("empty image", "unreadable image", "unsupported format", "unsupported pixels", "image too large"),
    *("truncated image", "damaged image"),
}


def test_damage_is_an_image_or_one_line():
    rng = np.random.default_rng(1)
    read, refused = 0, []
    for data in seeds():
        for _ in range(20):
            damaged = damage(data, rng)
            rule = rng.choice(["apply", "ignore"])
            try:
                image = decode_rgb(damaged, exif_orientation=rule)
            except BrokenSampleError as error:
                refused.append(error)
                continue
            read += 1
            assert image.mode == "RGB"
            assert min(image.size) >= 1
            assert image.size == image_size(damaged, rule)
    assert read > 100
    assert {error.reason for error in refused} <= REASONS
    assert not any("\n" in str(error) for error in refused)
