"""Random vectors of unit length, which most tests search."""

import numpy as np


def unit(x: np.ndarray) -> np.ndarray:
  """Returns x (…D) over its length, as float32."""
  return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def features(rows: int, width: int = 16, seed: int | np.random.Generator = 0) -> np.ndarray:
  """Returns unit rows (ND, float32) drawn with a seed, or by a generator that goes on."""
  x = np.random.default_rng(seed).standard_normal((rows, width)).astype(np.float32)
  return x / np.linalg.norm(x, axis=1, keepdims=True)
