"""Closed forms: linear maps that a scatter matrix gives, without gradient steps. Strong where labels are few.

Both rest on S_w, the scatter of images around their instance's mean, scaled to trace D (shrinkage linear discriminant
analysis). Float64 inside; one D×D solve, offline.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np


def within_scatter(image_ND: np.ndarray, instance_N: np.ndarray, chunk: int = 65536) -> np.ndarray:
  """Returns S_w (D×D float64, trace D) of unit images, from instances with two images or more.

  Raises ValueError if there are none: then nothing is known of how one instance varies.
  """
  _, code_N, count = np.unique(instance_N, return_inverse=True, return_counts=True)
  used = np.flatnonzero(count[code_N] >= 2)
  if len(used) == 0:
    raise ValueError(
      f"none of the {len(count)} training instances has two images, so there is no within-instance scatter; "
      "use a form that does not need it"
    )
  width = image_ND.shape[1]
  total = np.zeros((width, width))
  mean_ID = np.zeros((len(count), width))
  for rows in np.array_split(used, -(-len(used) // chunk)):
    np.add.at(mean_ID, code_N[rows], unit(image_ND[rows]))
  mean_ID /= count[:, None]
  for rows in np.array_split(used, -(-len(used) // chunk)):
    deviation_ND = unit(image_ND[rows]) - mean_ID[code_N[rows]]
    total += deviation_ND.T @ deviation_ND
  return total * (width / np.trace(total))


def query_map(scatter_DD: np.ndarray, mean_D: np.ndarray, shrinkage: float, residual: float) -> dict:
  """Returns the constants of `hypernetwork.ClosedForm`: q ↦ normalise((q − mean)(S_w + shrinkage·I)⁻¹) + residual·q."""
  inverse_DD = np.linalg.inv(scatter_DD + shrinkage * np.eye(len(scatter_DD)))
  return {
    "mean": jnp.asarray(mean_D, jnp.float32),
    "map": jnp.asarray(inverse_DD, jnp.float32),
    "residual": jnp.asarray(residual, jnp.float32),
  }


def whitening(scatter_DD: np.ndarray, mean_D: np.ndarray, shrinkage: float) -> dict:
  """Returns the params of `hypernetwork.static(maps_gallery=True)` that whiten the scatter on both sides.

  Queries and gallery become normalise((x − mean)(S_w + shrinkage·I)^(−½)).
  """
  value_D, vector_DD = np.linalg.eigh(scatter_DD)
  root_DD = (vector_DD / np.sqrt(np.maximum(value_D, 0) + shrinkage)) @ vector_DD.T
  residual = {
    "kernel": jnp.asarray(root_DD - np.eye(len(root_DD)), jnp.float32),
    "bias": jnp.asarray(-mean_D @ root_DD, jnp.float32),
  }
  return {"query_map": {"residual": residual}, "gallery_map": {"residual": residual}}


def unit(x_ND: np.ndarray) -> np.ndarray:
  """Returns rows scaled to unit length, float64."""
  x_ND = np.asarray(x_ND, np.float64)
  return x_ND / np.maximum(np.linalg.norm(x_ND, axis=1, keepdims=True), 1e-12)
