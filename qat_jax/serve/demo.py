"""Draws toys with captions as a folder of pictures: python -m qat_jax.serve.demo PICTURES, as make serve calls it."""

import argparse
import csv
import os
import shutil
from pathlib import Path

from qat_jax.datasets.toybox import captions, objects, render

VIEWS = 3  # pictures of each toy


def draw(folder: str | os.PathLike, toys: int = 200) -> Path:
  """Draws so many toys, a few pictures each, with captions.csv; the folder is whole or not there.

  Raises FileExistsError where it is there already.
  """
  folder = Path(folder)
  if folder.exists():
    raise FileExistsError(f"{folder} is there already; delete it, or serve it: qat-jax serve {folder}")
  temporary = folder.with_name(f"{folder.name}.incomplete")
  shutil.rmtree(temporary, ignore_errors=True)
  temporary.mkdir(parents=True)
  with open(temporary / "captions.csv", "w", newline="") as file:
    table = csv.writer(file)
    table.writerow(["file", "caption", "instance"])
    for family in objects.families()[: toys // 2]:
      for toy in family[:2]:
        for view in range(VIEWS):
          render.render(toy, view).save(temporary / f"{toy.name}_{view}.png")
          table.writerow([f"{toy.name}_{view}.png", captions.detailed(toy, view), toy.name])
  os.replace(temporary, folder)
  return folder


if __name__ == "__main__":
  parser = argparse.ArgumentParser(description="Draws toys as a folder of pictures.")
  parser.add_argument("folder", help="where to draw them")
  parser.add_argument("--toys", type=int, default=200, help="how many; each has three pictures")
  flags = parser.parse_args()
  print(f"pictures are in {draw(flags.folder, flags.toys)}")
