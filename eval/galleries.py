"""A gallery as an adapter wants it: on the device where it is small, else streamed; a map is written to disk once."""

import pathlib
from typing import Any

import jax.numpy as jnp

from qat_jax.adapter import Adapter

RESIDENT = 1 << 30  # bytes of float32: a smaller gallery lies on the device


def float32_bytes(gallery: Any) -> int:
  """Returns how many bytes a gallery takes as float32."""
  return 4 * len(gallery) * width_of(gallery)


def width_of(gallery: Any) -> int:
  """Returns the width of a FeatureStore, a Joined or an array."""
  return int(gallery.width if hasattr(gallery, "width") else gallery.shape[1])


def prepared(adapter: Adapter, query_type: str, gallery: Any, folder: pathlib.Path) -> Any:
  """Returns the gallery (unit rows, the adapter's map applied) as `qat_jax.rank` takes it.

  One that is too large for the device is itself where nothing is to be done; else its map is written to a feature
  folder in `folder`, chunk by chunk in the stored type.
  """
  if float32_bytes(gallery) <= RESIDENT:
    return adapter.prepare(jnp.asarray(gallery[:]), query_type)
  return adapter.prepare(gallery, query_type, folder / "gallery")
