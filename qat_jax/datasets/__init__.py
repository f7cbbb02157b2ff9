"""Sources of images and texts: random access, deterministic, one record an item.

A source is anything with `len(source)` and `source[i]` → {"id": str, "image": PIL image or encoded bytes,
"caption": str or None, "instance": str or None}.
"""

from __future__ import annotations

import io
from typing import Any

from PIL import Image


class UnreadableImage(ValueError):
  """An image that cannot be decoded: the id of its item and why."""

  def __init__(self, id: str, reason: str) -> None:
    super().__init__(f"the image of {id!r} cannot be read: {reason}")
    self.id, self.reason = id, reason

  def __reduce__(self) -> tuple[type[UnreadableImage], tuple[str, str]]:
    return type(self), (self.id, self.reason)


def decode(record: dict[str, Any]) -> Image.Image:
  """Returns a record's image as RGB.

  Raises UnreadableImage where the bytes are no image, are cut short, or are of a kind that Pillow does not know.
  """
  image = record["image"]
  try:
    if isinstance(image, bytes | bytearray | memoryview):
      image = Image.open(io.BytesIO(image))
    return image.convert("RGB")
  except Exception as error:  # broken bytes make Pillow's decoders raise anything: RuntimeError, struct.error, KeyError
    raise UnreadableImage(str(record["id"]), f"{type(error).__name__}: {error}") from error
