"""Records → the features of one kind, in full batches; those of pictures that were encoded before are copied."""

import time
from typing import Any

import numpy as np

from qat_jax.encoders import Encoder
from qat_jax.features import records
from qat_jax.features.reuse import Encoded
from qat_jax.features.shards import check_rows


class Encoding:
  """The features of one shard's records, taken one by one and encoded `size` at a time. Holds `size` pictures."""

  def __init__(self, kind: str, encoder: Encoder, dtype: str, size: int, encoded: Encoded | None) -> None:
    """Begins a shard.

    Args:
      kind: "img" or "text".
      encoder: encodes the records.
      dtype: of the stored features.
      size: how many records are encoded at once.
      encoded: features of images that may be reused.
    """
    self.kind, self.encoder, self.dtype, self.size, self.encoded = kind, encoder, dtype, size, encoded
    self.seconds = 0.0  # that the encoder computed
    self._count = 0
    self._waiting: list[tuple[int, dict[str, Any]]] = []
    self._known: list[tuple[int, int]] = []  # the place here, and the row there
    self._places: list[int] = []
    self._parts: list[np.ndarray] = []

  def add(self, record: dict[str, Any]) -> None:
    """Takes the next record; raises ValueError that names features which are unsound."""
    reused = record.get(records.REUSED) if self.kind == "img" else None
    if reused is None:
      self._waiting.append((self._count, record))
    else:
      self._known.append((self._count, reused))
    self._count += 1
    if len(self._waiting) == self.size:
      self._encode()

  def features(self) -> np.ndarray:
    """Returns the features of all records, in their order (ND, the stored dtype); raises ValueError as `add`."""
    if self._waiting:
      self._encode()
    found_ND = np.empty((self._count, self.encoder.width), self.dtype)
    if self._parts:
      found_ND[self._places] = np.concatenate(self._parts)
    if self._known:
      assert self.encoded is not None
      places, rows = zip(*self._known, strict=True)
      found_ND[list(places)] = self.encoded.features(list(rows))
    return found_ND

  def _encode(self) -> None:
    places, batch = zip(*self._waiting, strict=True)
    began = time.perf_counter()
    if self.kind == "img":
      features_BD = self.encoder.images([record["image"] for record in batch])
    else:
      features_BD = self.encoder.texts([record["caption"] for record in batch])
    features_BD = np.asarray(features_BD)  # waits for the device
    self.seconds += time.perf_counter() - began
    if features_BD.shape != (len(batch), self.encoder.width):
      shape = (len(batch), self.encoder.width)
      raise ValueError(f"{self.encoder.name} gave features of shape {features_BD.shape}, wanted {shape}")
    features_BD = features_BD.astype(self.dtype)
    check_rows(features_BD, f"{self.encoder.name} ({self.kind})", lambda row: batch[row]["id"])
    self._places += places
    self._parts.append(features_BD)
    self._waiting = []
