"""A gallery as an adapter wants it: on the device where it is small, else streamed; a map is written to disk once."""

from __future__ import annotations

import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from qat_jax.adapter import Adapter

RESIDENT = 1 << 30  # bytes of float32: a smaller gallery lies on the device
HELD = 0.25  # of the device's memory: what a method that cannot stream may hold as its gallery


def held_limit() -> float:
  """Returns the bytes of float32 that a method which cannot stream may hold: HELD of the device's memory."""
  device = jax.local_devices()[0].memory_stats() or {}
  return HELD * device.get("bytes_limit", os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def size_of(gallery: Any) -> int:
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
  if size_of(gallery) <= RESIDENT:
    return adapter.prepare(jnp.asarray(gallery[:]), query_type)
  return adapter.prepare(gallery, query_type, folder / "gallery")
