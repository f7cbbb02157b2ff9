"""What encodes queries: texts and pictures → features, in batches of few sizes, so that few shapes are compiled."""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from qat_jax.encoders import Encoder
from qat_jax.serve.limits import invalid

SIZES = (1, 8, 16, 32)  # of batches, of queries and of what is encoded: clients that wait come back by halves


def size_of(count: int) -> int:
  """Returns the least size of a batch that so many fit into, or their number where there is none."""
  return next((size for size in SIZES if size >= count), count)


class Encoding:
  """An encoder in each size of a batch, or none: then texts and pictures are refused."""

  def __init__(self, encoder: Encoder | None) -> None:
    self.encoder, self._of_size = encoder, {size: _padded_to(encoder, size) for size in SIZES}

  @property
  def reads_text(self) -> bool:
    """Whether texts can be encoded."""
    return self.encoder is not None and self.encoder.max_tokens > 0

  def pixels(self, image: Image.Image) -> Any:
    """Returns an RGB picture as the encoder takes it, small; in any thread. Raises Refused without an encoder."""
    if self.encoder is None:
      raise invalid("this server has no encoder, so it takes items and vectors, no pictures: start it with --encoder")
    return self.encoder.prepare(image) if hasattr(self.encoder, "prepare") else image

  def texts(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
    """Returns the feature (D) of each text, each encoded once. Raises Refused where the encoder reads no text."""
    once = list(dict.fromkeys(texts))
    if once and not self.reads_text:
      raise invalid(
        "this server encodes no text: search with an item, a picture or a vector, or start it with --encoder"
      )
    return dict(zip(once, (row for encoder, some in self._batches(once) for row in encoder.texts(some)), strict=True))

  def images(self, images: list[Any]) -> list[np.ndarray]:
    """Returns the feature (D) of each picture that `pixels` made."""
    return [row for encoder, some in self._batches(images) for row in encoder.images(some)]

  def notes_of(self, text: str) -> list[str]:
    """Returns a note if the encoder leaves out the end of a text. Only texts that are long enough are looked at."""
    encoder: Any = self.encoder
    if len(text.encode("utf-8", "replace")) <= encoder.max_tokens - 3 or not encoder.is_cut(text):
      return []
    return [f"the encoder reads {encoder.max_tokens} tokens of a text; the end of this one is left out"]

  def warm(self, size: int) -> None:
    """Compiles for one size of a batch."""
    if self.reads_text:
      self._of_size[size].texts(["a picture"] * size)
    if self.encoder is not None:
      self._of_size[size].images([self.pixels(Image.new("RGB", (64, 64), "white"))] * size)

  def _batches(self, things: list[Any]) -> list[tuple[Any, list[Any]]]:
    """Returns things in batches, each with an encoder of the least size that takes it."""
    batches = [things[start : start + SIZES[-1]] for start in range(0, len(things), SIZES[-1])]
    return [(self._of_size[size_of(len(some))], some) for some in batches]


def _padded_to(encoder: Encoder | None, size: int) -> Any:
  """Returns an encoder that pads to another size; weights and compiled functions are shared."""
  other = copy.copy(encoder)
  if other is not None and hasattr(other, "batch_size"):
    other.batch_size = size
  return other
