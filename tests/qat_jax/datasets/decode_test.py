"""Every kind of picture, opened as a viewer would show it."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from qat_jax.datasets import UnreadableImage, decode


def opened(image, kind="PNG", **options):
  """Returns a picture saved as `kind` and decoded, as an array."""
  buffer = io.BytesIO()
  image.save(buffer, kind, **options)
  return np.asarray(decode({"id": "a", "image": buffer.getvalue()}))


def test_a_photo_is_turned_as_its_exif_says():
  photo = Image.new("RGB", (40, 20), "black")
  photo.paste("white", (0, 0, 10, 20))  # a white left edge
  exif = Image.Exif()
  exif[0x0112] = 6  # to be turned by 90° clockwise: the left edge becomes the top
  turned = opened(photo, "JPEG", exif=exif, quality=95)
  assert turned.shape == (40, 20, 3)
  assert turned[:8].min() > 200 and turned[14:].max() < 50


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_a_broken_exif_costs_no_picture():
  photo = Image.new("RGB", (40, 20), "red")
  assert opened(photo, "JPEG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff").shape == (20, 40, 3)


def test_16_bit_grey_keeps_its_shades():
  values = np.array([[0, 257 * 100, 65535]], np.uint16)
  assert opened(Image.fromarray(values))[0, :, 0].tolist() == [0, 100, 255]
  assert opened(Image.fromarray(values.astype(np.int32)), "TIFF")[0, :, 1].tolist() == [0, 100, 255]


def test_floating_point_greys_are_shares_of_white_or_bytes():
  assert opened(Image.fromarray(np.array([[0, 0.5, 1]], np.float32)), "TIFF")[0, :, 0].tolist() == [0, 127, 255]
  assert opened(Image.fromarray(np.array([[0, 100, 300]], np.float32)), "TIFF")[0, :, 0].tolist() == [0, 100, 255]


def test_what_is_transparent_is_white():
  half = np.array([[[255, 0, 0, 255], [255, 0, 0, 0], [0, 0, 0, 128]]], np.uint8)
  assert opened(Image.fromarray(half)).tolist() == [[[255, 0, 0], [255, 255, 255], [127, 127, 127]]]
  grey = Image.fromarray(np.array([[[0, 0], [0, 255]]], np.uint8), "LA")
  assert opened(grey)[0, :, 0].tolist() == [255, 0]
  palette = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
  palette.putpalette([0, 0, 0, 0, 200, 0])
  assert opened(palette, transparency=0).tolist() == [[[255, 255, 255], [0, 200, 0]]]


def test_print_colours_palettes_and_black_and_white_become_rgb():
  cyan = opened(Image.new("CMYK", (16, 16), (255, 0, 0, 0)), "JPEG", quality=95)[8, 8]
  assert cyan[0] < 20 and cyan[1:].min() > 235
  palette = Image.new("P", (2, 2), 1)
  palette.putpalette([0, 0, 0, 9, 80, 200])
  assert opened(palette)[0, 0].tolist() == [9, 80, 200]
  assert opened(Image.new("1", (2, 2), 1))[0, 0].tolist() == [255, 255, 255]


def test_of_an_animation_the_first_frame_is_shown():
  frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
  assert opened(frames[0], "GIF", save_all=True, append_images=frames[1:])[0, 0].tolist() == [255, 0, 0]


def test_a_bomb_is_refused_by_name_before_it_is_unpacked():
  chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
  header = chunk(b"IHDR", struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0))
  bomb = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
  with pytest.raises(UnreadableImage, match=r"the image of 'boom' cannot be read: DecompressionBomb"):
    decode({"id": "boom", "image": bomb})
