"""Are near-duplicates found? Planted among the demo's pictures: cut, scaled, compressed and marked copies.

    python -m eval.duplicates --workdir runs/demo [--json OUT]

Of each third picture of a split's gallery there are four copies: cut to 90 % of its sides, scaled to a half, a JPEG of
quality 30, and with a mark across it. Recall is the share of copies that are paired with their original; precision the
share of all pairs that are of one original. The threshold with the best harmonic mean of both on validation is then
used on the test split.
"""

import io
import json
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw

import qat_jax
from eval import commands
from qat_jax.datasets.toybox.render import drawn
from qat_jax.duplicates import Pairs, pairs
from qat_jax.encoders import Encoder
from qat_jax.features.retrieval_set import RetrievalSet, Split

THRESHOLDS = (0.9, 0.92, 0.94, 0.95, 0.96, 0.97, 0.98, 0.985, 0.99, 0.995)
EACH = 3  # one picture in so many is copied


def cropped(image: Image.Image) -> Image.Image:
  """Returns the middle of a picture, 90 % of each side."""
  x, y = round(0.05 * image.width), round(0.05 * image.height)
  return image.crop((x, y, image.width - x, image.height - y))


def halved(image: Image.Image) -> Image.Image:
  """Returns a picture of half the sides."""
  return image.resize((image.width // 2, image.height // 2), Image.Resampling.BICUBIC)


def compressed(image: Image.Image) -> Image.Image:
  """Returns a picture after a JPEG of quality 30."""
  buffer = io.BytesIO()
  image.save(buffer, "JPEG", quality=30)
  return Image.open(buffer).convert("RGB")


def banded(image: Image.Image) -> Image.Image:
  """Returns a picture with a half transparent white band with letters across it."""
  band = Image.new("RGBA", image.size, (0, 0, 0, 0))
  top = round(0.7 * image.height)
  draw = ImageDraw.Draw(band)
  draw.rectangle((0, top, image.width, top + 10), fill=(255, 255, 255, 110))
  draw.text((4, top - 1), "SAMPLE", fill=(20, 20, 20, 160))
  return Image.alpha_composite(image.convert("RGBA"), band).convert("RGB")


COPIES: dict[str, Callable[[Image.Image], Image.Image]] = {
  "cut": cropped,
  "scaled": halved,
  "compressed": compressed,
  "marked": banded,
}


def main(arguments: Sequence[str] | None = None) -> None:
  """Parses the flags, prints the table, and writes it where --json says."""
  parser = commands.parser("eval.duplicates", __doc__, "--workdir", "--json")
  with commands.started(parser, arguments) as flags:
    data, encoder = RetrievalSet.open(flags.workdir / "features"), qat_jax.load_encoder("toy_clip")
    made = {name: planted(data.split(name), encoder) for name in ("val", "test")}
    on_val = {threshold: counted(*made["val"], threshold) for threshold in THRESHOLDS}
    best = max(THRESHOLDS, key=lambda one: harmonic(on_val[one]))
    figures = {"validation": on_val, "threshold": best, "test": counted(*made["test"], best)}
    print(json.dumps(figures, indent=2))
    commands.write_figures(flags.json, figures)


def planted(split: Split, encoder: Encoder) -> tuple[np.ndarray, int]:
  """Returns the features of a gallery's pictures, then of all copies, kind after kind; and how many originals."""
  images = [drawn(name) for name in split.gallery.ids]
  copies = [copy(image) for copy in COPIES.values() for image in images[::EACH]]
  return encoder.images([*images, *copies]), len(images)


def counted(item_ND: np.ndarray, originals: int, threshold: float) -> dict[str, float]:
  """Returns recall of each kind of copy, of all, and precision, × 100."""
  found: Pairs = pairs(item_ND, threshold)
  number = -(-originals // EACH)
  source = lambda row_P: np.where(row_P < originals, row_P, EACH * ((row_P - originals) % number))
  alike_P = source(found.first) == source(found.second)
  with_original_P = alike_P & (found.first < originals) & (found.second >= originals)
  kind_P = (found.second[with_original_P] - originals) // number
  share = {name: 100 * float(np.mean(kind_P == i) * len(kind_P) / number) for i, name in enumerate(COPIES)}
  recall = float(np.mean(list(share.values())))
  precision = 100 * float(alike_P.mean()) if len(alike_P) else 100.0
  return {name: round(value, 1) for name, value in {**share, "recall": recall, "precision": precision}.items()}


def harmonic(figures: dict[str, float]) -> float:
  """Returns the harmonic mean of recall and precision."""
  recall, precision = figures["recall"], figures["precision"]
  return 2 * recall * precision / max(recall + precision, 1e-9)


if __name__ == "__main__":
  main()
