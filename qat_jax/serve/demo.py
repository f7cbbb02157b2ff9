"""The pictures of the demo's gallery as files: python -m qat_jax.serve.demo runs/demo, as make serve calls it."""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path

from qat_jax.features.store import FeatureStore


def write_pictures(workdir: str | os.PathLike) -> Path:
  """Draws the test gallery's pictures, `<id>.jpg`, in `workdir`/pictures, whole or not at all.

  Raises FileNotFoundError where the demo has not been trained there.
  """
  from qat_jax.datasets.toybox.render import drawn, encode

  folder = Path(workdir) / "pictures"
  if folder.is_dir():
    return folder
  store = FeatureStore.open(Path(workdir) / "features/test/gallery")
  temporary = folder.with_name("pictures.incomplete")
  shutil.rmtree(temporary, ignore_errors=True)
  temporary.mkdir(parents=True)
  for name in store.ids:
    (temporary / f"{name}.jpg").write_bytes(encode(drawn(name)))
  os.replace(temporary, folder)
  return folder


if __name__ == "__main__":
  parser = argparse.ArgumentParser(description="Writes the pictures of the demo's gallery.")
  parser.add_argument("workdir", help="where the demo was trained")
  print(f"pictures are in {write_pictures(parser.parse_args().workdir)}")
