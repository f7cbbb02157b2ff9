"""Where a patch stands: a learned table at any size, and rotary positions, for grids of one size or each of its own.

Letters: G places of the table, K of one of its sides, F angles of a head. A grid is its rows and columns, numbers for
all pictures of a batch or an array (B2).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qat_jax.encoders.settings import Rope

Grid = Any  # (rows, columns) of all pictures, or B2

# How a table is resampled, with half-pixel centres, as PyTorch does it: "cubic" has the factor −0.75 and repeats the
# edge; the smooth ones are antialiased, share the weights beyond the edge out among the others, and cubic's factor is
# −0.5.
KERNELS = ("cubic", "cubic smooth", "linear smooth")


def added(table_GD: jax.Array, side: int, grid: Grid, length: int, kernel: str) -> jax.Array:
  """Returns what a square table adds to each of `length` patches, row by row (1LD or BLD)."""
  if isinstance(grid, tuple):
    return resample(table_GD, side, grid, kernel)[None]
  row_BL, column_BL = _places(grid, length)
  down_BLK = _smooth(row_BL, side, grid[:, :1, None], kernel)
  across_BLK = _smooth(column_BL, side, grid[:, 1:, None], kernel)
  weight_BLG = (down_BLK[..., None] * across_BLK[..., None, :]).reshape(*row_BL.shape, -1)
  return jnp.einsum("BLG,GD->BLD", weight_BLG, table_GD.astype(jnp.float32), precision="highest")


def resample(table_GD: jax.Array, side: int, wanted: tuple[int, int], kernel: str) -> jax.Array:
  """Returns a square table (side², D) at another size (rows · columns, D)."""
  if wanted == (side, side):
    return table_GD
  down, across = (_matrix(side, size, kernel) for size in wanted)
  table = table_GD.astype(jnp.float32).reshape(side, side, -1)
  table = jnp.einsum("rg,gcD,kc->rkD", down, table, across, precision="highest")
  return table.reshape(wanted[0] * wanted[1], -1)


def turned(rope: Rope, head: int, grid: Grid, length: int, before: int) -> tuple[jax.Array, jax.Array]:
  """Returns cosine and sine (1LF or BLF) of the angles of patches, after `before` tokens that are not turned."""
  grid_B2 = jnp.array([grid]) if isinstance(grid, tuple) else grid
  bands_F = rope.theta ** -(jnp.arange(head // 4, dtype=jnp.float32) / (head // 4))
  angles = [
    (rope.start + rope.span * (place_BL + rope.offset) / grid_B2[:, axis, None])[..., None] * bands_F[None, None]
    for axis, place_BL in enumerate(_places(grid_B2, length))
  ]
  angle_BLF = jnp.concatenate(angles[::-1] if rope.columns_first else angles, axis=-1)
  angle_BLF = jnp.pad(angle_BLF, ((0, 0), (before, 0), (0, 0)))
  return jnp.cos(angle_BLF), jnp.sin(angle_BLF)


def turn(rope: Rope, x_BLHC: jax.Array, by: tuple[jax.Array, jax.Array]) -> jax.Array:
  """Returns queries or keys, turned."""
  cosine, sine = (x[:, :, None] for x in by)
  pairs = x_BLHC.reshape(*x_BLHC.shape[:-1], *((-1, 2) if rope.neighbours else (2, -1)))
  one, other = (jnp.take(pairs, i, axis=-1 if rope.neighbours else -2) for i in range(2))
  both = (one * cosine - other * sine, other * cosine + one * sine)
  return jnp.stack(both, axis=-1 if rope.neighbours else -2).reshape(x_BLHC.shape)


def _places(grid_B2: jax.Array, length: int) -> tuple[jax.Array, jax.Array]:
  """Returns the rows and columns (BL) of patches that lie row by row; those beyond the grid are in its last row."""
  place_1L = jnp.arange(length)[None]
  return jnp.minimum(place_1L // grid_B2[:, 1:], grid_B2[:, :1] - 1), place_1L % grid_B2[:, 1:]


def _smooth(place_BL: jax.Array, side: int, size_B11: jax.Array, kernel: str) -> jax.Array:
  """Returns the weights (BLK) of a table's side at places of sides of other sizes, antialiased."""
  ratio = side / size_B11
  centre = (place_BL[..., None] + 0.5) * ratio - 0.5
  weight = _kernel(jnp.abs(jnp.arange(side)[None, None] - centre) / jnp.maximum(ratio, 1.0), kernel, jnp)
  return weight / weight.sum(axis=-1, keepdims=True)


def _kernel(t: Any, kernel: str, library: Any) -> Any:
  """Returns the weight at a distance of t."""
  if kernel == "linear smooth":
    return library.maximum(0.0, 1 - t)
  a = -0.75 if kernel == "cubic" else -0.5
  near = ((a + 2) * t - (a + 3)) * t * t + 1
  far = a * (((t - 5) * t + 8) * t - 4)
  return library.where(t < 1, near, library.where(t < 2, far, 0.0))


def _matrix(size: int, wanted: int, kernel: str) -> np.ndarray:
  """Returns the matrix (wanted, size) that resamples one side."""
  smooth = kernel != "cubic"
  ratio = size / wanted
  stretch = max(ratio, 1.0) if smooth else 1.0
  centre = (np.arange(wanted) + 0.5) * ratio - 0.5
  reach = int(np.ceil(2 * stretch)) + 1
  places = np.floor(centre)[:, None].astype(int) + np.arange(-reach, reach + 1)
  weight = _kernel(np.abs(places - centre[:, None]) / stretch, kernel, np)
  if smooth:
    weight = weight * ((places >= 0) & (places < size))
    weight /= weight.sum(axis=1, keepdims=True)
  matrix = np.zeros((wanted, size))
  np.add.at(matrix, (np.arange(wanted)[:, None], np.clip(places, 0, size - 1)), weight)
  return matrix.astype(np.float32)
