"""What a result was made with: config, versions, commit, seed, hardware."""

from __future__ import annotations

import importlib.metadata
import os
import pathlib
import platform
import subprocess

import jax
from ml_collections import ConfigDict

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "numpy", "scann")


def of(config: ConfigDict) -> dict:
  """Returns provenance as JSON can hold it; what cannot be found out is left out."""
  return {
    "config": config.to_dict(),
    "seed": config.seed,
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


def _version(package: str) -> str | None:
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return None
