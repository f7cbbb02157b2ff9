"""The command duplicates: items of a feature folder that are the same picture."""

import argparse

from qat_jax.cli.flags import add_command, place
from qat_jax.duplicates import THRESHOLD


def add_duplicates(commands: argparse._SubParsersAction) -> None:
  """Adds the command duplicates."""
  parser = add_command(
    commands,
    "duplicates",
    "Write groups of near-duplicates within a folder of features.",
    (
      "qat-jax duplicates features --out duplicates.parquet",
      "qat-jax duplicates set/test/gallery --against set/train --out shared.parquet",
      "qat-jax duplicates features --out duplicates.parquet --images PICTURES --report duplicates.html",
    ),
    _duplicates,
  )
  parser.add_argument("folder", metavar="FOLDER", help="a feature folder")
  text = "the least cosine of features of two near-duplicates; it depends on the encoder (docs/duplicates.md)"
  parser.add_argument("--threshold", metavar="COSINE", type=float, default=THRESHOLD, help=text)
  text = "the Parquet file to write: an item a row, with its group"
  parser.add_argument("--out", metavar="FILE", type=place, required=True, help=text)
  text = "another feature folder: write the items that are nearly the same as one of it, such as training's"
  parser.add_argument("--against", metavar="FOLDER", help=text)
  parser.add_argument("--images", metavar="FOLDER", help="the pictures of the items, for the report")
  parser.add_argument("--report", metavar="FILE", type=place, help="a page (HTML) with the pictures side by side")


def _duplicates(
  folder: str, threshold: float, out: str, against: str | None, images: str | None, report: str | None
) -> str:
  if (images is None) != (report is None):
    raise ValueError("--images and --report go together; give both, or none")
  from qat_jax.serve.alike import find, find_shared

  if against is not None:
    if images is not None:
      raise ValueError("--against writes no report; leave --images and --report out")
    shared, items = find_shared(folder, against, threshold, out)
    return f"{shared:,} of {items:,} items of {folder} are nearly the same as one of {against}: {out}"
  members, items, groups = find(folder, threshold, out, images, report)
  return f"{groups:,} groups of {members:,} near-duplicates among {items:,} items are in {out}"
