"""Every kind of picture, opened as a viewer would show it."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from qat_jax.datasets import UnreadableImage
from qat_jax.datasets.pictures import decode


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


def written_png(sample_HWC, bits, colour_type, transparent):
  """A PNG with samples of some bits, and one colour that is transparent (tRNS)."""
  chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
  height, width, channels = sample_HWC.shape
  header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
  if bits == 16:
    rows = [b"\0" + row.astype(">u2").tobytes() for row in sample_HWC]
  else:
    digits = [format(int(sample), f"0{bits}b") for sample in sample_HWC.ravel()]
    step = width * channels
    lines = ["".join(digits[start : start + step]) for start in range(0, len(digits), step)]
    lines = [line.ljust(-(-len(line) // 8) * 8, "0") for line in lines]
    rows = [b"\0" + int(line, 2).to_bytes(len(line) // 8, "big") for line in lines]
  colour = struct.pack(f">{len(transparent)}H", *transparent) if transparent else b""
  body = chunk(b"IHDR", header) + (chunk(b"tRNS", colour) if transparent else b"")
  return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IDAT", zlib.compress(b"".join(rows))) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("bits", "colour_type"), [(1, 0), (2, 0), (4, 0), (8, 0), (16, 0), (8, 2), (16, 2)])
@pytest.mark.parametrize("place", [0, -1, 1])
def test_the_one_transparent_colour_of_a_png_is_white_and_no_other_is_changed(bits, colour_type, place):
  channels = 3 if colour_type == 2 else 1
  levels = np.unique(np.linspace(0, 2**bits - 1, min(2**bits, 24)).round().astype(int))
  sample_HWC = np.repeat(levels[None, :, None], channels, axis=2)
  if channels == 3:
    sample_HWC[..., 1] = sample_HWC[..., 1][:, ::-1]
  opened = lambda colour: np.asarray(
    decode({"id": "a", "image": written_png(sample_HWC, bits, colour_type, colour)})
  ).copy()
  expected = opened(())
  expected[0, place] = 255
  np.testing.assert_array_equal(opened(tuple(sample_HWC[0, place])), expected)


@pytest.mark.parametrize(
  ("data", "reason"),
  [
    (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n", "UnidentifiedImageError"),  # Pillow would run Ghostscript
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 3\n", "a pointer of Git LFS"),
    (b"<html>not found</html>", "UnidentifiedImageError"),
    (b"", "UnidentifiedImageError"),
  ],
)
def test_what_is_no_picture_is_refused(data, reason):
  with pytest.raises(UnreadableImage, match=f"'a' cannot be read: .*{reason}"):
    decode({"id": "a", "image": data})
