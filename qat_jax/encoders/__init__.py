"""Encoders: images and texts to unit features of one width.

An encoder is anything with `images(list of PIL RGB) → ND`, `texts(list of str) → ND` (unit float32), `width`, `name`,
`revision`, `max_tokens` and `truncated`, the number of texts that were cut so far.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
from PIL import Image

if TYPE_CHECKING:
  import jax

  from qat_jax.encoders.encoder import TowerEncoder


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


def load_encoder(
  name: str,
  batch_size: int = 256,
  revision: str | None = None,
  dtype: str = "float32",
  devices: Sequence[jax.Device] | Literal["all"] | None = None,
  long_side: int = 0,
) -> TowerEncoder:
  """Returns the encoder of a Hugging Face hub name or a local folder; "toy_clip" is the small one of the demo.

  CLIP, MetaCLIP 2, SigLIP, SigLIP 2 and NaFlex, OpenCLIP's own files and PE-Core; DINOv2 and DINOv3, images alone
  (docs/encoders.md).

  Args:
    name: such as "google/siglip2-base-patch16-512", or a folder with a checkpoint's files.
    batch_size: how many items the devices take at once, all of them together; only one shape is ever compiled.
    revision: of a hub name: a branch, tag or commit.
    dtype: of weights and layers, "float32" or "bfloat16"; features are float32 either way.
    devices: what to share batches out among; None: the first device, "all": all of this process.
    long_side: above 0 pictures keep their aspect ratio, and their longer side gets so many pixels, with zeros around
      them up to whole patches, as ILIAS and others publish their features; else as the checkpoint's files say.

  Raises:
    FileNotFoundError: no such folder, a file that is not in it, or a hub name that is neither cached nor to be had.
    ValueError: a checkpoint of another kind, or one whose files are damaged or do not fit each other.
  """
  from qat_jax.encoders import encoder

  return encoder.load(name, batch_size, revision, dtype, devices, long_side)
