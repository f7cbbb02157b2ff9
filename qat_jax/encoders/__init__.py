"""Encoders: images and texts to unit features of one width.

An encoder is anything with `images(list of PIL RGB) → ND`, `texts(list of str) → ND` (unit float32), `width`, `name`,
`revision`, `max_tokens` and `truncated`, the number of texts that were cut so far.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from PIL import Image


class Encoder(Protocol):
  """Images and texts → unit features (float32, ND)."""

  name: str
  revision: str  # the hub's commit, or a hash of the folder's files
  width: int
  max_tokens: int
  truncated: int

  def images(self, images: list[Image.Image]) -> np.ndarray:
    """Returns the features of images (ND)."""

  def texts(self, texts: list[str]) -> np.ndarray:
    """Returns the features of texts (ND); one longer than `max_tokens` is cut and counted in `truncated`."""


def load_encoder(name: str, batch_size: int = 256) -> Encoder:
  """Returns the CLIP of a Hugging Face hub name or a local folder; "toy_clip" is the small one of the demo.

  Raises:
    FileNotFoundError: no such folder, or a hub name that is neither cached nor to be had.
    ValueError: what was found is not a CLIP.
  """
  from qat_jax.encoders import clip

  return clip.load(name, batch_size)
