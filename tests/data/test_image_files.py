"""Images are read as by detectron2, but those of 16 bits are scaled to 8 bits."""

import io
import struct
import zlib

import numpy as np
import pytest
from detectron2.data import detection_utils
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from apa_det.data import check_dataset
from apa_det.data.image_files import ImageFile, check_image_files, read_image
from apa_det.errors import MissingFileError, UserError
from apa_det.utils.json_files import write_json

NOISE = np.random.default_rng(0).integers(0, 65536, (6, 9), np.uint16)
FORMATS = ["RGB", "BGR", "L", "YUV-BT.601", None]


def divided(values):
    """Divide 16 bits by 257 in floats: the nearest integer is unique, as 257 is odd."""
    return np.round(values.astype(np.float64) / 257).astype(np.uint8)


def png(values, color_type):
    """Return a PNG file with 16 bits per channel, of (H, W, C) values."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    height, width = values.shape[:2]
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", width, height, 16, color_type, 0, 0, 0),
        b"IDAT": zlib.compress(rows),
        b"IEND": b"",
    }
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks.items()
    )


@pytest.mark.parametrize(
    "values, name",
    [
        (NOISE, "x.png"),  # I;16
        (NOISE, "x.tif"),
        (NOISE.astype(">u2"), "x.tif"),  # I;16B
        (NOISE.astype(np.int32), "x.tif"),  # I
        (np.arange(65536, dtype=np.uint16).reshape(256, 256), "x.png"),  # all values
    ],
)
def test_gray_images_of_16_bits(values, name, tmp_path):
    path = str(tmp_path / name)
    Image.fromarray(values).save(path)
    gray = divided(values)
    assert gray.min() < 20 and gray.max() > 235
    assert (read_image(path, "L")[:, :, 0] == gray).all()
    for format in ("RGB", "BGR"):
        assert (read_image(path, format) == gray[:, :, None]).all()
    (check,) = check_image_files([ImageFile(path, values.shape[::-1])])
    assert not check.problems and check.sixteen_bits


@pytest.mark.parametrize("channels, color_type", [(3, 2), (4, 6)])
def test_color_images_of_16_bits(channels, color_type, tmp_path):
    """Pillow reads their high byte, which differs by at most 1 from dividing by 257."""
    values = np.random.default_rng(1).integers(0, 65536, (6, 9, channels))
    (tmp_path / "x.png").write_bytes(png(values, color_type))
    image = read_image(tmp_path / "x.png", "RGB")
    assert (image == values[:, :, :3] >> 8).all()
    assert np.abs(image - divided(values[:, :, :3]).astype(int)).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_rotated_image_of_16_bits(orientation, tmp_path):
    """EXIF data rotate it like the same image of 8 bits."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(NOISE).save(tmp_path / "16.png", exif=exif)
    Image.fromarray(divided(NOISE)).save(tmp_path / "8.png", exif=exif)
    expected = detection_utils.read_image(str(tmp_path / "8.png"), "RGB")
    assert (read_image(tmp_path / "16.png", "RGB") == expected).all()
    size = expected.shape[1::-1]
    (check,) = check_image_files([ImageFile(str(tmp_path / "16.png"), size)])
    assert check.rotated == (orientation != 1) and not check.problems


@settings(max_examples=40, deadline=None)
@given(
    mode=st.sampled_from(["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"]),
    suffix=st.sampled_from(["png", "tif", "jpg", "webp"]),
    width=st.integers(1, 40),
    format=st.sampled_from(FORMATS),
    orientation=st.sampled_from([1, 3, 6, 9, 0]),
)
def test_equals_detectron2_on_8_bits(tmp_path_factory, mode, suffix, width, format, orientation):
    path = str(tmp_path_factory.getbasetemp() / f"equals.{suffix}")
    noise = np.random.default_rng(width).integers(0, 256, (7, width, 3), np.uint8)
    image = Image.fromarray(noise).convert("RGBA" if mode == "LA" else mode).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = orientation
    try:
        image.save(path, exif=exif)
        Image.open(path).load()
    except (OSError, ValueError):
        return  # this type of file has no such pixels, or Pillow cannot read its own file
    ours, theirs = read_image(path, format), detection_utils.read_image(path, format)
    assert ours.dtype == theirs.dtype and np.array_equal(ours, theirs)


def saved(values, suffix):
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, suffix)
    return buffer.getvalue()


FLOATS = saved(NOISE.astype(np.float32), "tiff")
TOO_LARGE = saved(NOISE.astype(np.int32) + 60_000, "tiff")
NEGATIVE = saved(-NOISE.astype(np.int32), "tiff")
JPEG = saved(np.random.default_rng(2).integers(0, 256, (40, 40, 3), np.uint8), "jpeg")


@pytest.mark.parametrize(
    "content, text",
    [
        (b"", "it is not an image"),
        (b"not an image", "it is not an image"),
        (JPEG[:20], "it is not an image"),
        (JPEG[:-300], "image file is truncated .*"),
        (saved(NOISE, "png")[:-40], ".*"),
        (FLOATS, "its pixels are floats; convert them to 8 or 16 bits"),
        (TOO_LARGE, "its values must be from 0 to 65535, got 60.* to 12.*; convert it to .*"),
        (NEGATIVE, "its values must be from 0 to 65535, got -.*; convert it to 8 or 16 bits"),
    ],
)
def test_unreadable_image(content, text, tmp_path):
    """One sentence, the same in the check."""
    path = tmp_path / "x.png"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"^Cannot read the image {path}: {text}\\.$") as caught:
        read_image(path, "RGB")
    (check,) = check_image_files([ImageFile(str(path), None)])
    ((kind, problem),) = check.problems
    assert kind == "unreadable image file"
    assert f"C{problem[1:]}." == str(caught.value)


def test_image_with_too_many_pixels(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    Image.fromarray(NOISE).save(tmp_path / "x.png")
    with pytest.raises(UserError, match=r"x\.png: Image size \(54 pixels\) exceeds limit of 40"):
        read_image(tmp_path / "x.png")


@pytest.mark.parametrize("name", ["nowhere.png", "", "\0", "\ud800", "."])
def test_no_such_file(name, tmp_path):
    with pytest.raises(UserError) as caught:
        read_image(tmp_path / name if name == "." else name)
    assert len(str(caught.value).splitlines()) == 1
    assert isinstance(caught.value, MissingFileError) == (name in ("nowhere.png", ""))


def test_check_of_a_dataset(small, write):
    path = write(small)
    Image.fromarray(np.full((20, 30), 30_000, np.uint16)).save(path.parent / "b.png")
    Image.fromarray(np.zeros((20, 30), np.float32)).save(path.parent / "float.tif")
    small["images"][1]["file_name"] = "float.tif"
    write_json(small, path)
    report = check_dataset(path, path.parent)
    (problem,) = report.problems
    assert (problem.kind, problem.record) == ("unreadable image file", ("images", 1))
    assert "image 3: cannot read the image" in problem.message and "floats" in problem.message
    (note,) = report.notes
    assert note.startswith("1 images have 16 bits per pixel, which training and evaluation divide")
