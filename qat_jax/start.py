"""What a program of ours does first of all: while the rest is imported, Ctrl-C ends it in one line.

`qat_jax`, `train` and `eval` import this before anything that takes long. Where they are imported by another program,
nothing is changed.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import NoReturn

PACKAGES = ("qat_jax", "train", "eval")
BEFORE = "stopped by Ctrl-C before anything was begun"


def program() -> bool:
  """Says whether this process is a program of ours: `qat-jax`, or `python -m` with a module of ours."""
  if os.path.basename(sys.argv[0]) == "qat-jax":
    return True
  if sys.argv[0] == "-m":  # its package is being imported
    words = sys.orig_argv
    name = words[words.index("-m") + 1] if "-m" in words[:-1] else ""
  else:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    name = spec.name if spec else ""
  return name.split(".")[0] in PACKAGES


def _end(*_: object) -> NoReturn:
  os.write(2, f"\n{BEFORE}\n".encode())
  os._exit(128 + signal.SIGINT)


if program() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
  signal.signal(signal.SIGINT, _end)
