"""A candidate on disk: an adapter with one head, and the average precision of each validation query with it."""

import io
import pathlib

import numpy as np

from qat_jax.adapter import Adapter, load
from qat_jax.sealed import UNREADABLE
from qat_jax.stages import checksum, write_whole

PRECISIONS = "validation.npy"


def write_candidate(folder: pathlib.Path, adapter: Adapter, precision_Q: np.ndarray) -> None:
  """Writes a candidate to its folder; adapter.json comes last and has the checksum of the precisions."""
  stream = io.BytesIO()
  np.save(stream, precision_Q)
  written = write_whole(folder / PRECISIONS, stream.getvalue())
  Adapter(adapter.width, adapter.heads, adapter.info | {"precisions": written}).save(folder)


def read_candidate(folder: pathlib.Path) -> tuple[Adapter, np.ndarray]:
  """Returns a candidate's adapter and precisions (Q); raises what `load` raises, for either."""
  adapter, path = load(folder), folder / PRECISIONS
  try:
    if adapter.info.get("precisions", checksum(path)) != checksum(path):
      raise ValueError("its checksum is not the one in adapter.json")
    return adapter, np.load(path, allow_pickle=False)
  except UNREADABLE as error:
    raise ValueError(f"{path} is damaged ({error}); delete {folder}, it is made anew") from error
