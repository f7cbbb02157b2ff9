"""Parts of a gallery on disk whose 8-bit copy lies there too: it is streamed, and features of few items are read."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from qat_jax.search.coarse import AFTER, Coarse, StoredCopy, stored_copy, wanted
from qat_jax.search.gallery import Part, ahead, check_lengths, know_copy, release, rows_of_chunk
from qat_jax.search.top import ItemPairs
from qat_jax.types import ArrayGallery, Gallery

GATHERED = (256, 1024, 4096)  # rows that a part is gathered in: few numbers, so that few shapes are compiled for
GATHER_ROWS = 16  # a touched row of a memory map brings its neighbours into memory, up to two megabytes
LONGER = 4  # chunks of a copy have so many times as many rows as those of features


def gathered(gallery: Gallery, position_P: np.ndarray) -> Part:
  """Returns rows of a gallery by position (GATHERED[-1] of them at most) as a part, checked as those of `parts`."""
  rows = GATHER_ROWS if release(gallery[:1]) else max(1, len(position_P))
  pieces = [np.zeros((0, gallery.width), np.float32)]
  for start in range(0, len(position_P), rows):
    pieces.append(np.asarray(gallery[position_P[start : start + rows]], np.float32))
    release(gallery[:1])
  item_PD = np.concatenate(pieces)
  lengths = check_lengths(np.einsum("PD,PD->P", item_PD, item_PD), position_P, gallery.width)
  window = next(rows for rows in GATHERED if rows >= len(position_P))
  features_ND = jax.device_put(np.pad(item_PD, ((0, window - len(position_P)), (0, 0))))
  return Part(0, len(position_P), features_ND, 0, window, lengths)


class Unread:
  """Features that were not read: what stands for a part's rows. No program takes it for an array."""

  def __init__(self, gallery: Gallery, first: int, rows: int, device: jax.Device, lengths: np.ndarray) -> None:
    """Keeps where the rows begin, how many there are, where they would lie, and between which two their |z|² lie."""
    self.gallery, self.first, self.rows, self.device, self.lengths = gallery, first, rows, device, lengths
    self.dtype, self._last = gallery.dtype, (np.zeros(0, np.int64), cast(Part, None))

  def __len__(self) -> int:
    return self.rows

  def devices(self) -> set[jax.Device]:
    """Returns where the rows would lie."""
    return {self.device}

  def near(self, item_U: np.ndarray) -> tuple[Part, np.ndarray]:
    """Returns a part that has some items (U, rising, GATHERED[-1] at most), and their places in it (U).

    The last ones are kept: what was bounded once more is scored next.
    """
    kept, part = self._last
    if not np.isin(item_U, kept).all():
      rows_ND = np.zeros((next(rows for rows in GATHERED if rows >= len(item_U)), self.gallery.width), self.dtype)
      rows_ND[: len(item_U)] = self.gallery[self.first + item_U]
      part = Part(0, len(item_U), jax.device_put(rows_ND, self.device), 0, len(rows_ND), self.lengths)
      kept, part = self._last = item_U, part
    return part, np.searchsorted(kept, item_U)


def copied_parts(
  gallery: Gallery, copy: StoredCopy, devices: Sequence[jax.Device], chunk_rows: int | None, most: int
) -> Iterator[Part]:
  """Yields parts of a stored copy, without their features, chunk by chunk, for `devices` in turn.

  Args:
    gallery: what the copy is of.
    copy: what is streamed.
    devices: where it goes.
    chunk_rows: how many rows are streamed at once; None leaves it to the width.
    most: rows, however many are asked for.
  """
  rows = chunk_rows or LONGER * rows_of_chunk(gallery.width, devices[0])
  rows = min(rows, most, max(256, 1 << (len(gallery) - 1).bit_length()))
  starts = range(0, len(gallery), rows)

  def read(i: int) -> Part:
    device, coarse = devices[i % len(devices)], copy[starts[i] : starts[i] + rows]
    items = len(coarse.values)
    if items < rows:
      each = (np.pad(x, ((0, rows - items), (0, 0))[: x.ndim]) for x in coarse[:4])
      coarse = Coarse(*each, *coarse[4:])  # type: ignore[call-arg, arg-type]
    unread = cast(jax.Array, Unread(gallery, starts[i], rows, device, copy.lengths))
    return Part(starts[i], items, unread, 0, rows, copy.lengths, coarse=jax.device_put(coarse, device))

  return ahead(read, len(starts))


def read(part: Part) -> Part:
  """Returns a part with its features and without a copy."""
  unread = part.features
  if isinstance(unread, Unread):
    item_ND = np.asarray(unread.gallery[part.first : part.first + part.items])
    item_ND = np.concatenate([item_ND, np.broadcast_to(item_ND[-1:], (len(unread) - len(item_ND), item_ND.shape[1]))])
    part = dataclasses.replace(part, features=jax.device_put(item_ND, unread.device))
  return dataclasses.replace(part, coarse=None)


def of_pairs(function: Callable[[Part, ItemPairs], np.ndarray], part: Part, pairs: ItemPairs) -> np.ndarray:
  """Returns a function's numbers (P) for items of a part, of which features are read where they were not."""
  unread = part.features
  if not isinstance(unread, Unread):
    return function(part, pairs)
  item_U, place_P = np.unique(pairs.item, return_inverse=True)
  found_P = np.empty(len(place_P), np.float32)
  for start in range(0, len(item_U), GATHERED[-1]):
    near, own_U = unread.near(item_U[start : start + GATHERED[-1]])
    here_P = np.flatnonzero((place_P >= start) & (place_P < start + len(own_U)))
    found_P[here_P] = function(near, ItemPairs(pairs.query[here_P], own_U[place_P[here_P] - start]))
  return found_P


def in_memory(gallery: Gallery, dtype: Any = None) -> ArrayGallery:
  """Returns a gallery as an array of the default device, with the 8-bit copy that lies beside it on the disk, if any.

  `dtype` is the rows' type, or None for the stored one. It holds every number of the stored one, as float32 does.
  """
  array_ND = jnp.asarray(np.asarray(gallery[:]), dtype or gallery.dtype)
  copy = stored_copy(gallery, next(iter(array_ND.devices())).platform)
  if copy is not None and wanted(array_ND, AFTER):
    know_copy(array_ND, jax.device_put(copy[:]))
  return ArrayGallery(array_ND, gallery.space)
