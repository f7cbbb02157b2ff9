"""What programs share around a run: errors in one line, what a result was made with, and the lines of metrics.jsonl."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import jax

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "numpy", "scann")


@contextlib.contextmanager
def explained() -> Iterator[None]:
  """Ends the program with `error: …` and status 1 where bad input, a file or a loss that is not finite is the cause."""
  try:
    yield
  except (ValueError, OSError, FloatingPointError) as error:
    print(f"error: {error}", file=sys.stderr)
    raise SystemExit(1) from error


def provenance(config: dict[str, Any], seed: int) -> dict[str, Any]:
  """Returns config, seed, versions, commit and hardware as JSON can hold them; what cannot be found out is left out."""
  return {
    "config": config,
    "seed": seed,
    "versions": {"python": platform.python_version()} | {name: v for name in PACKAGES if (v := _version(name))},
    "commit": commit(),
    "hardware": hardware(),
  }


def hardware() -> str:
  """Returns the devices and the processor in words, such as `4 × cpu (2 cores, x86_64)`."""
  devices = jax.local_devices()
  return f"{len(devices)} × {devices[0].device_kind} ({os.cpu_count()} cores, {platform.machine()})"


def commit() -> str:
  """Returns the commit of the checkout that this file lies in, `-dirty` appended where files differ; or `unknown`."""
  here = pathlib.Path(__file__).parent
  run = lambda *words: subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=False)
  try:
    head, changed = run("rev-parse", "HEAD"), run("status", "--porcelain", "--untracked-files=no")
  except OSError:
    return "unknown"
  if head.returncode:
    return "unknown"
  return head.stdout.strip() + ("-dirty" if changed.stdout.strip() else "")


def read_metrics(path: pathlib.Path | str) -> list[dict[str, Any]]:
  """Returns the rows of a metrics.jsonl; a line that a kill cut short is left out. Missing file: no rows."""
  path = pathlib.Path(path)
  rows = []
  for line in path.read_text().splitlines() if path.exists() else ():
    with contextlib.suppress(json.JSONDecodeError):
      rows.append(json.loads(line))
  return [row for row in rows if isinstance(row, dict) and "step" in row]


def _version(package: str) -> str | None:
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return None
