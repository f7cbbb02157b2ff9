"""Training curves of a run's candidates, gathered into one file for the report."""

from __future__ import annotations

import pathlib

from qat_jax.stages import write_whole


def gather(workdir: pathlib.Path, path: pathlib.Path) -> None:
  """Writes the metrics of all candidates of a run, one after another, to `path`."""
  found = sorted((workdir / "candidates").glob("*/*/metrics.jsonl"))
  path.parent.mkdir(parents=True, exist_ok=True)
  write_whole(path, "".join(one.read_text() for one in found).encode())
