"""The pictures of the demo's gallery as files: python -m qat_jax.serve.demo runs/demo, as make serve calls it."""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path

from qat_jax.features.store import FeatureStore


def write_pictures(workdir: str | os.PathLike) -> Path:
  """Writes the test gallery's pictures, `<id>.jpg`, from the drawn data to `workdir`/pictures, whole or not at all.

  Raises FileNotFoundError where the demo has not been trained there, ValueError where its pictures are others.
  """
  from qat_jax.datasets.toybox.source import source

  folder, data = Path(workdir) / "pictures", Path(workdir) / "data"
  if folder.is_dir():
    return folder
  store = FeatureStore.open(Path(workdir) / "features/test/gallery")
  name = next((path.name for path in sorted((data / "toybox").glob("[!.]*")) if path.is_dir()), "default")
  pictures = source("test_gallery", data, name)
  temporary = folder.with_name("pictures.incomplete")
  shutil.rmtree(temporary, ignore_errors=True)
  temporary.mkdir(parents=True)
  wanted = set(store.ids.tolist())
  for position in range(len(pictures)):
    record = pictures[position]
    if record["id"] in wanted:
      wanted.remove(record["id"])
      (temporary / f"{record['id']}.jpg").write_bytes(record["image"])
  if wanted:
    raise ValueError(f"{data} lacks {len(wanted)} pictures of the gallery; delete {workdir} and train the demo again")
  os.replace(temporary, folder)
  return folder


if __name__ == "__main__":
  parser = argparse.ArgumentParser(description="Writes the pictures of the demo's gallery.")
  parser.add_argument("workdir", help="where the demo was trained")
  print(f"pictures are in {write_pictures(parser.parse_args().workdir)}")
