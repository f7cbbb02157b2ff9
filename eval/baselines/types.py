"""The nouns of baselines: what each is fitted on, and what fitting gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from qat_jax.types import Ranking

Gallery = Any  # has a length and slices that give float rows: a FeatureStore, an array
Search = Callable[[np.ndarray, int], Ranking]  # (query_QD float32 as stored, k) → the best k positions of the gallery


class Train(NamedTuple):
  """Training features; row i of `texts` is the caption of image i."""

  query_type: str  # "text" or "image"
  texts: Any | None  # ND, a FeatureStore or array
  images: Any  # ND
  instance: np.ndarray  # N


class Baseline(NamedTuple):
  """A baseline fitted on training features and tuned on validation, ready for any gallery of its width."""

  index: Callable[[Gallery], Search]  # the offline work on a gallery
  parameters: int  # learned or fitted numbers; a bank of training pairs counts as 0 and is named in the note
  extra_bytes_per_item: float  # kept for each gallery item beside one copy of its features
  note: str  # what tuning chose
