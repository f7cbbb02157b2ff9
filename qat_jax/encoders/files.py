"""The small files of a checkpoint: JSON objects, and what stands in the place of a large file that was not fetched."""

from __future__ import annotations

import contextlib
import json
import pathlib
from collections.abc import Iterator
from typing import Any

from qat_jax.stages import check_fetched


def refuse_pointer(path: pathlib.Path) -> None:
  """Raises ValueError where a file is a Git LFS pointer instead of its contents."""
  with open(path, "rb") as file:
    check_fetched(file.read(64), path)


def read_object(path: pathlib.Path) -> dict[str, Any]:
  """Returns the object in a JSON file; raises ValueError that names the file for anything else."""
  refuse_pointer(path)
  try:
    content = json.loads(path.read_text(encoding="utf-8-sig"))
  except ValueError as error:
    raise ValueError(f"{path} is no JSON object ({error}); fetch it again") from error
  if not isinstance(content, dict):
    raise ValueError(f"{path} is no JSON object (it holds a {type(content).__name__}); fetch it again")
  return content


@contextlib.contextmanager
def understood(path: pathlib.Path) -> Iterator[None]:
  """Raises ValueError that names the file whose settings the block cannot take; one that names it already stays."""
  try:
    yield
  except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
    if str(path) in str(error):
      raise
    raise ValueError(f"{path} has settings that are not understood ({error}); mend it, or fetch it again") from error
