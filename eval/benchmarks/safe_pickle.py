"""Pickles from the internet, read without running what they ask for.

A pickle is a program. Ground truths hold lists, dicts, texts and NumPy arrays, and only what builds those is allowed.
"""

import collections
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from qat_jax.sealed import UNREADABLE


def _latin1(text: str, encoding: str) -> bytes:
  """Returns the bytes that an old pickle spells as text."""
  if encoding != "latin1":
    raise _ForbiddenError(f"the codec {encoding}")
  return text.encode("latin1")


class _ForbiddenError(Exception):
  pass


_RECONSTRUCT = np.empty(0).__reduce__()[0]
_SCALAR = np.float64(0).__reduce__()[0]
_FROM_BUFFER = np.empty(1).__reduce_ex__(5)[0]
_ALLOWED: dict[tuple[str, str], Any] = {
  ("collections", "OrderedDict"): collections.OrderedDict,
  ("_codecs", "encode"): _latin1,
  ("numpy", "ndarray"): np.ndarray,
  ("numpy", "dtype"): np.dtype,
  # NumPy 2 moved its private module; files hold either name
  ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
  ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
  ("numpy.core.multiarray", "scalar"): _SCALAR,
  ("numpy._core.multiarray", "scalar"): _SCALAR,
  ("numpy.core.numeric", "_frombuffer"): _FROM_BUFFER,
  ("numpy._core.numeric", "_frombuffer"): _FROM_BUFFER,
}


def read_pickle(path: Path | str) -> Any:
  """Returns what a pickle of plain values and NumPy arrays holds; texts of Python 2 are read as Latin-1.

  Raises ValueError that names the file and what it wanted to call where that is anything else, or where the file is
  broken.
  """
  try:
    return _Reader(io.BytesIO(Path(path).read_bytes()), encoding="latin1").load()
  except _ForbiddenError as error:
    raise ValueError(f"{path} is a pickle that wants to call {error}; it was not read, do not trust it") from None
  except (pickle.UnpicklingError, *UNREADABLE) as error:
    raise ValueError(f"{path} is not a whole pickle of plain values ({error}); fetch it again") from error


class _Reader(pickle.Unpickler):
  def find_class(self, module: str, name: str) -> Any:
    if (module, name) not in _ALLOWED:
      raise _ForbiddenError(f"{module}.{name}")
    return _ALLOWED[module, name]

  def persistent_load(self, pid: Any) -> Any:
    raise _ForbiddenError(f"an object kept elsewhere ({pid!r})")
