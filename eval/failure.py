"""Errors that a user can act on, without the traceback that hides them."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def explained() -> Iterator[None]:
  """Ends the program with `error: …` and status 1 where bad input, a file or a loss that is not finite is the cause."""
  try:
    yield
  except (ValueError, OSError, FloatingPointError) as error:
    print(f"error: {error}", file=sys.stderr)
    raise SystemExit(1) from error
