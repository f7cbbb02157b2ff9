"""Pictures from files and bytes: the one place where they are opened and become RGB."""

import functools
import io
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from qat_jax.datasets.files import FORMATS, opened_endings
from qat_jax.datasets.sources import UnreadableImage
from qat_jax.stages import check_fetched

HEIF = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")  # kinds of HEIC that Pillow lacks


def decode(record: dict[str, Any]) -> Image.Image:
  """Returns a record's image as RGB, the way a viewer shows it.

  Turned as its EXIF says; what is transparent is white; 16-bit grey is scaled to 8 bits; of an animation the first
  frame. Colour profiles are not applied.

  Raises UnreadableImage where the bytes are no image, are cut short, are of a kind that Pillow does not know, or are a
  bomb: more than twice Pillow's MAX_IMAGE_PIXELS, 179 million, told by the header before anything is unpacked.
  """
  image = record["image"]
  try:
    if isinstance(image, bytes | bytearray | memoryview):
      image = opened(image)
    kind = _kind_of_samples(image)
    return _rgb(_upright(image), kind)
  except UnidentifiedImageError as error:  # which names an object by its address, another in every run
    raise UnreadableImage(str(record["id"]), "UnidentifiedImageError: it is no picture of a known format") from error
  except Exception as error:  # broken bytes make Pillow's decoders raise anything: RuntimeError, struct.error, KeyError
    raise UnreadableImage(str(record["id"]), f"{type(error).__name__}: {error}") from error


def opened(data: bytes | bytearray | memoryview) -> Image.Image:
  """Returns an encoded picture, of which only the header is read.

  Raises ValueError for a file that Git LFS has not fetched, ImportError for HEIC where the extra `heif` is missing,
  UnidentifiedImageError for formats that are not of `formats`.
  """
  check_fetched(bytes(data[:64]), "it")
  if bytes(data[4:8]) == b"ftyp" and bytes(data[8:12]) in HEIF and "HEIF" not in formats():
    raise ImportError("it is HEIC, which pip install 'qat-jax[heif]' opens")
  return Image.open(io.BytesIO(data), formats=formats())


@functools.cache
def formats() -> list[str]:
  """Returns those of FORMATS that this installation of Pillow can open."""
  Image.init()
  if ".heic" in opened_endings():
    import pillow_heif

    pillow_heif.register_heif_opener()
  return [name for name in FORMATS if name in Image.OPEN]


def _upright(image: Image.Image) -> Image.Image:
  image.load()
  try:
    return ImageOps.exif_transpose(image)
  except Exception:  # what is broken here is the EXIF: the picture itself has been read
    return image


def _kind_of_samples(image: Image.Image) -> str:
  """Returns how Pillow names the samples in the file, such as "RGB;16B"; "" where they are not in a file any more."""
  tiles = getattr(image, "tile", None)
  if not tiles:
    return ""
  arguments = tiles[0][3]
  return str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments)


def _rgb(image: Image.Image, kind: str) -> Image.Image:
  transparent = image.info.get("transparency")
  if image.mode.startswith("I"):  # 16 bits, of which Pillow's own conversion keeps the lower 8 and turns most to white
    sample_HW = np.asarray(image, np.int64)
    grey_HW = np.round(np.clip(sample_HW, 0, 65535) / 257)
    if isinstance(transparent, int):
      grey_HW[sample_HW == transparent] = 255
    return Image.fromarray(grey_HW.astype(np.uint8)).convert("RGB")
  if image.has_transparency_data:
    _scale_transparent(image, kind)
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
  if image.mode == "F":  # by custom 0 to 1, else 0 to 255
    grey = np.nan_to_num(np.asarray(image))
    image = Image.fromarray(np.clip(grey * (255 if grey.max() <= 1 else 1), 0, 255).astype(np.uint8))
  return image.convert("RGB")


def _scale_transparent(image: Image.Image, kind: str) -> None:
  """Brings the one colour that a PNG calls transparent to the 8 bits that Pillow brought its pixels to.

  Pillow keeps that colour with the bits of the file: of 16-bit colours it compares the lower bytes with the pixels'
  upper ones, and a grey of 2 or 4 bits with pixels that were spread over 0 to 255.
  """
  transparent = image.info.get("transparency")
  if isinstance(transparent, tuple) and "16" in kind:
    image.info["transparency"] = tuple(value >> 8 for value in transparent)
  elif isinstance(transparent, int) and image.mode in ("1", "L"):
    factor = {"1": 255, "L;2": 85, "L;4": 17}.get(kind, 1)
    image.info["transparency"] = min(transparent * factor, 255)
