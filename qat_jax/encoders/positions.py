"""A square position table at another size, for pictures of another size than those of training."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


def resample(table_GD: jax.Array, grid: int, wanted: tuple[int, int], antialias: bool) -> jax.Array:
  """Returns a square position table (grid², D) at another size (rows · columns, D), bicubic, as PyTorch does it.

  Half-pixel centres. Without antialiasing the cubic's factor is −0.75 and the edge is repeated; with it, −0.5 and the
  weights beyond the edge are shared out among the others.
  """
  if wanted == (grid, grid):
    return table_GD
  down, across = (_cubic(grid, size, antialias) for size in wanted)
  table = table_GD.astype(jnp.float32).reshape(grid, grid, -1)
  table = jnp.einsum("rg,gcD,kc->rkD", down, table, across, precision="highest")
  return table.reshape(wanted[0] * wanted[1], -1)


def _cubic(size: int, wanted: int, antialias: bool) -> np.ndarray:
  """Returns the matrix (wanted, size) that resamples one side."""
  a = -0.5 if antialias else -0.75
  ratio = size / wanted
  stretch = max(ratio, 1.0) if antialias else 1.0
  centre = (np.arange(wanted) + 0.5) * ratio - 0.5
  reach = int(np.ceil(2 * stretch)) + 1
  places = np.floor(centre)[:, None].astype(int) + np.arange(-reach, reach + 1)
  t = np.abs(places - centre[:, None]) / stretch
  near = ((a + 2) * t - (a + 3)) * t * t + 1
  far = a * (((t - 5) * t + 8) * t - 4)
  weight = np.where(t < 1, near, np.where(t < 2, far, 0.0))
  inside = (places >= 0) & (places < size)
  if antialias:
    weight = weight * inside
    weight /= weight.sum(axis=1, keepdims=True)
  matrix = np.zeros((wanted, size))
  np.add.at(matrix, (np.arange(wanted)[:, None], np.clip(places, 0, size - 1)), weight)
  return matrix.astype(np.float32)
