"""What a method found, kept in a file of its own, so that an evaluation that was killed goes on where it stopped.

A file counts only under the key it was written with: a digest of all that decides it.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import pathlib
import zipfile
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import numpy as np

from eval.report.results import MethodResult
from qat_jax.adapter import Adapter
from qat_jax.stages import write_whole

FORMAT = 1  # of the files
ROOT = pathlib.Path(__file__).parents[1]
CODE = ("eval/baselines", "eval/benchmarks", "qat_jax")  # with the files below: what decides results, of the code
CODE_FILES = ("galleries", "methods", "problem", "ranking")
SHOWN = 100  # of each query's ranking: enough for a contact sheet


class Found(NamedTuple):
  """One method's results, one for each task of its problem, and the first items of its ranking."""

  results: list[MethodResult]
  ids: np.ndarray  # Q × at most SHOWN


def key_of(*parts: Any) -> str:
  """Returns a digest of values that JSON can hold."""
  return hashlib.blake2b(json.dumps([FORMAT, *parts], sort_keys=True).encode(), digest_size=16).hexdigest()


@functools.cache
def of_code() -> str:
  """Returns a digest of the code that decides results; that of tables and plots is not in it."""
  paths = [path for folder in CODE for path in sorted((ROOT / folder).rglob("*.py"))]
  paths += [ROOT / "eval" / f"{name}.py" for name in CODE_FILES]
  digest = hashlib.blake2b(digest_size=16)
  for path in paths:
    digest.update(path.read_bytes())
  return digest.hexdigest()


def of_adapter(adapter: Adapter) -> str:
  """Returns a digest of what an adapter computes: forms, settings and parameters of its heads."""
  digest = hashlib.blake2b(digest_size=16)
  for name, head in sorted(adapter.heads.items()):
    digest.update(json.dumps([name, head.form, head.settings], sort_keys=True).encode())
    for leaf in jax.tree.leaves(head.variables):
      digest.update(np.ascontiguousarray(leaf).tobytes())
  return digest.hexdigest()


def of_files(paths: Iterable[pathlib.Path]) -> list[list]:
  """Returns name, size and time of change of each file."""
  return [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in paths]


def read(path: pathlib.Path, key: str) -> Found | None:
  """Returns what is kept under the key; None where there is nothing, or something of another key."""
  try:
    with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
      about = json.loads(str(file["about"]))
      if about["key"] != key:
        return None
      results = [
        MethodResult(ap_Q=file[f"ap_{i}"], recall1_Q=file[f"recall1_{i}"], **scalars)
        for i, scalars in enumerate(about["results"])
      ]
      return Found(results, file["ids"])
  except (FileNotFoundError, zipfile.BadZipFile, KeyError, ValueError, TypeError):
    return None


def write(path: pathlib.Path, key: str, found: Found) -> None:
  """Keeps what a method found, whole or not at all."""
  scalars = [{k: v for k, v in vars(r).items() if k not in ("ap_Q", "recall1_Q")} for r in found.results]
  arrays = {"ids": found.ids, "about": np.array(json.dumps({"key": key, "results": scalars}))}
  for i, result in enumerate(found.results):
    arrays |= {f"ap_{i}": result.ap_Q, f"recall1_{i}": result.recall1_Q}
  buffer = io.BytesIO()
  np.savez(buffer, **arrays)
  path.parent.mkdir(parents=True, exist_ok=True)
  write_whole(path, buffer.getvalue())
