"""How a method ranks: what it does with a gallery."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from qat_jax.types import Ranking

Search = Callable[[np.ndarray, int], Ranking]  # (query_QD float32 as stored, k) → the best k positions of the gallery


class Method(NamedTuple):
  """What answers queries: a head or a way to search, fitted; ready for any gallery of its width."""

  prepare: Callable[[Any], Search]  # the offline work on a gallery: a FeatureStore, an array
  note: str = ""  # what fitting chose
  parameters: int = 0  # learned or fitted numbers
  bytes_per_item: float = 0.0  # of the gallery, beside one copy of its features
  seconds: float | None = None  # of training; None: it was fitted just now
