"""Errors that a user can act on, without the traceback that hides them."""

from __future__ import annotations

import contextlib
import pathlib
import sys
from collections.abc import Iterator

from absl import app, flags
from ml_collections import config_flags


@contextlib.contextmanager
def explained() -> Iterator[None]:
  """Ends the program with `error: …` and status 1 where bad input, a file or a loss that is not finite is the cause."""
  try:
    yield
  except (ValueError, OSError, FloatingPointError) as error:
    print(f"error: {error}", file=sys.stderr)
    raise SystemExit(1) from error


def parsed(argv: list[str]) -> list[str]:
  """Parses flags for app.run as absl does; a config that is no file, or lacks a key, ends the program the same way."""
  with explained():
    try:
      rest = app.parse_flags_with_usage(argv)
    except (AttributeError, KeyError) as error:
      raise ValueError(f"the config has no such key: {_said(error)}; configs/features.py has all") from error
    recipe = config_flags.get_config_filename(flags.FLAGS["config"])
    if not pathlib.Path(recipe).is_file():
      raise FileNotFoundError(f"--config is {recipe!r}, and there is no such file; the recipes are in configs/")
  return rest


def _said(error: BaseException) -> str:
  """Returns the message of an error that may wrap another, on one line."""
  while error.args and isinstance(error.args[0], BaseException):
    error = error.args[0]
  return " ".join(str(error.args[0]).split())
