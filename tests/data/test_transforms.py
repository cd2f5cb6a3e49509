import contextlib
import io
import json

import numpy as np
import pytest
import torch
from data_helpers import GOLDEN, encode
from PIL import Image
from safetensors.torch import load_file

from scone_pl.data import transforms
from scone_pl.data.sample import BrokenSampleError
from scone_pl.data.transforms import ImageResize, ResizeLimits, decode_rgb, open_image, to_tensor
from scone_pl.model.builder import patchify_image


@pytest.fixture(scope="module")
def golden():
    return json.loads((GOLDEN / "expected.json").read_text()), load_file(GOLDEN / "expected.safetensors")


def golden_resize(config):
    return ImageResize(config["image_stride"], config["max_image_size"], config["min_image_size"])


def test_golden_vae_and_vit_images(golden):
    expected, tensors = golden
    vae, vit = (golden_resize(expected["config"][name]) for name in ("vae_transform", "vit_transform"))
    vae_images, patches = [], []
    for number, sample in enumerate(expected["samples"]):
        for i in range(sample["num_refs"] + 1):
            image = Image.fromarray(tensors[f"sample{number}.image{i}"].numpy())
            vae_images.append(vae(image))
            if i < sample["num_refs"]:
                patches.append(patchify_image(vit(image), vit.stride))
    for i, image in enumerate(vae_images):
        assert torch.equal(image, tensors[f"vae.input.{i}"])
    assert f"vae.input.{len(vae_images)}" not in tensors
    assert torch.equal(torch.cat(patches), tensors["pack.packed_vit_tokens"])


def test_size_is_the_size_of_the_result():
    resize = ImageResize(14, 98, 56)
    for width, height in ((10, 300), (300, 10), (57, 56), (1000, 1000), (98, 14), (1, 1)):
        image = resize(Image.new("RGB", (width, height)))
        assert image.shape[1:] == resize.size(width, height)[::-1]
        assert max(image.shape[1:]) <= 98
        assert resize.grid(width, height) == (image.shape[1] // 14, image.shape[2] // 14)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((1024, 1024), (1024, 1024)),
        ((4000, 3000), (1024, 768)),
        ((300, 200), (768, 512)),
        ((1000, 200), (1024, 208)),  # the short side's least size gives way to the long side's most
        ((1016, 1016), (1024, 1024)),  # 63.5 tokens: Python rounds half to even
        ((1000, 1000), (992, 992)),  # 62.5 tokens
    ],
)
def test_published_vae_sizes(size, expected):
    assert ResizeLimits(max_size=1024, min_size=512).with_stride(16).size(*size) == expected


def test_max_pixels_applies_the_ratio_of_areas():
    assert ImageResize(16, 4096, 16, max_pixels=1024 * 1024).size(2048, 1024) == (1024, 512)


def save(image, format="PNG", **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


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


def test_sixteen_bit_grey_is_scaled():
    values = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    assert np.asarray(decode_rgb(save(Image.fromarray(values))))[0, :, 0].tolist() == [0, 1, 128, 255]


def test_exif_orientation_is_not_applied():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = save(Image.new("RGB", (8, 4)), "JPEG", exif=exif)
    assert decode_rgb(data).size == open_image(data).size == (8, 4)


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


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_damage_anywhere_is_an_image_or_the_one_error(format):
    data = encode(32, 32, format=format)
    rng = np.random.default_rng(0)
    for _ in range(200):
        damaged = bytearray(data)
        for place in rng.integers(0, len(data), 3):
            damaged[place] = rng.integers(0, 256)
        with contextlib.suppress(BrokenSampleError):
            decode_rgb(bytes(damaged[: rng.integers(1, len(data) + 1)]))


def test_decompression_bomb(monkeypatch):
    monkeypatch.setattr(transforms, "MAX_DECODED_PIXELS", 100)
    with pytest.raises(BrokenSampleError, match="16 x 16") as error:
        decode_rgb(encode(16, 16))
    assert error.value.reason == "image too large"
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    with pytest.raises(BrokenSampleError) as error:
        decode_rgb(encode(16, 16))
    assert error.value.reason == "image too large"


def test_to_tensor_range():
    image = Image.new("RGB", (2, 1))
    image.putpixel((1, 0), (255, 255, 255))
    assert to_tensor(image).tolist() == [[[-1.0, 1.0]]] * 3


def photo(width, height):
    """Smooth colours, as JPEG likes them."""
    y, x = np.mgrid[:height, :width] / 100
    pixels = np.stack([np.sin(x + y), np.cos(x), np.sin(y)], -1)
    return Image.fromarray((127.5 + 120 * pixels).astype(np.uint8))


@pytest.mark.parametrize(("size", "gap"), [((300, 200), 2), ((1000, 333), 12), ((2400, 1600), 12)])
def test_fast_pixels_have_the_same_sizes_and_nearly_the_same_values(size, gap):
    data = save(photo(*size), "JPEG", quality=95)
    limits = ResizeLimits(max_size=256, min_size=128)
    exact, fast = limits.with_stride(16), limits.with_stride(16, fast=True)
    drafted = decode_rgb(data, draft_for=[fast])
    assert (drafted.size != size) == (size[0] > 512)
    for interleaved in (False, True):
        one, two = exact(decode_rgb(data)), fast(drafted, interleaved=interleaved)
        assert one.shape == two.shape
        assert (one - two).abs().max() * 127.5 <= gap
    assert torch.equal(fast(drafted), to_tensor(fast.resize(drafted)))
    png = save(photo(600, 400))
    assert decode_rgb(png, draft_for=[fast]).size == (600, 400)


def test_interleaved_is_only_a_layout():
    image = photo(30, 20)
    assert torch.equal(to_tensor(image), to_tensor(image, interleaved=True))
    assert to_tensor(image).is_contiguous()
