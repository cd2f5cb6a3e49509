import io
import json

import numpy as np
import pytest
import torch
from data_helpers import GOLDEN
from PIL import Image
from safetensors.torch import load_file

from scone_pl.data.decoding import decode_rgb
from scone_pl.data.transforms import ImageResize, ResizeLimits, to_tensor
from scone_pl.model.builder import patchify_image
from scone_pl.model.vae import as_float


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
        assert torch.equal(as_float(image), tensors[f"vae.input.{i}"])
    assert f"vae.input.{len(vae_images)}" not in tensors
    assert torch.equal(as_float(torch.cat(patches)), tensors["pack.packed_vit_tokens"])


def test_size_is_the_size_of_the_result():
    resize = ImageResize(14, 98, 56)
    for width, height in ((10, 300), (300, 10), (57, 56), (1000, 1000), (98, 14), (1, 1)):
        image = resize(Image.new("RGB", (width, height)))
        assert image.shape[1:] == resize.size(width, height)[::-1]
        assert max(image.shape[1:]) <= 98
        assert resize.grid(width, height) == (image.shape[1] // 14, image.shape[2] // 14)


@pytest.mark.parametrize("limits", [(1024, 512, 16), (518, 224, 14), (98, 56, 14)])
def test_a_turn_exchanges_the_sides_and_nothing_else(limits):
    most, least, stride = limits
    resize = ResizeLimits(max_size=most, min_size=least).with_stride(stride)
    for width, height in np.random.default_rng(0).integers(1, 5000, (300, 2)).tolist():
        assert resize.size(width, height) == resize.size(height, width)[::-1]


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


def test_to_tensor_range():
    image = Image.new("RGB", (2, 1))
    image.putpixel((1, 0), (255, 255, 255))
    assert as_float(to_tensor(image)).tolist() == [[[-1.0, 1.0]]] * 3


def test_normalisation_is_the_releases_to_the_last_bit():
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(as_float(levels), ((levels.float() / 255) - 0.5) / 0.5)
    floats = torch.rand(3)
    assert as_float(floats) is floats


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
        assert (one.int() - two.int()).abs().max() <= gap
    assert torch.equal(fast(drafted), to_tensor(fast.resize(drafted)))
    png = save(photo(600, 400))
    assert decode_rgb(png, draft_for=[fast]).size == (600, 400)


def test_interleaved_is_only_a_layout():
    image = photo(30, 20)
    assert torch.equal(to_tensor(image), to_tensor(image, interleaved=True))
    assert to_tensor(image).is_contiguous()
