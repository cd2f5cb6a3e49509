"""Where images may be written, and in which format."""

import os
import socket

import numpy as np
import pytest
from PIL import Image

from scone_pl.errors import UserError
from scone_pl.image_files import check_image_output, write_image


def image(width=32, height=16):
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([8 * x, 8 * y, 4 * x + 4 * y], -1).astype(np.uint8))


@pytest.mark.parametrize(
    ("name", "format"),
    [("x.png", "PNG"), ("x.PNG", "PNG"), ("x.jpg", "JPEG"), ("x.jpeg", "JPEG"), ("x.JPG", "JPEG"), ("x.webp", "WEBP")],
)
def test_the_extension_is_a_promise(tmp_path, name, format):
    file = check_image_output(tmp_path / "new" / name, "--output")
    write_image(image(), file)
    with Image.open(file) as written:
        assert written.format == format
        error = np.abs(np.asarray(written.convert("RGB")).astype(int) - np.asarray(image()))
    assert error.mean() <= (0 if format == "PNG" else 3)
    assert os.listdir(file.parent) == [name]


@pytest.mark.parametrize("name", ["x", "x.", ".png", "x.gif", "x.tiff", "x.heic", "x.png.txt", "x.pn\u0261", "", "."])
def test_other_names_are_refused(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="--output") as error:
        check_image_output(name, "--output")
    assert "\n" not in str(error.value)


def test_what_cannot_be_written_is_refused_before_the_work(tmp_path, monkeypatch):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").write_text("")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "device.png").symlink_to("/dev/full")
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(tmp_path)  # a socket's path must be short
        server.bind("socket.png")
    names = ["folder.png", "file/x.png", "file/deep/x.png", "pipe.png", "device.png", "socket.png", "nul\0.png"]
    names += ["half\udc80.png", "x" * 5000 + ".png"]
    for name in names:
        with pytest.raises(UserError, match=r"file|cannot|folder") as error:
            check_image_output(tmp_path / name, "--output")
        assert "\n" not in str(error.value)
        str(error.value).encode()


def test_an_image_too_long_for_the_format(tmp_path):
    with pytest.raises(UserError, match="at most 16383 pixels"):
        write_image(Image.new("RGB", (16384, 1)), tmp_path / "x.webp")
    assert not list(tmp_path.iterdir())
