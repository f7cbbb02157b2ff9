"""One toy, two rankings: two intents over the demo's gallery, for the table, the report and the README's picture.

On light ground a toy asks for its shape in any colours, on dark ground for its colours in any shape. Experts are fitted
to a few such queries; what is static is the best such head of the run. Validation chooses both.
"""

import dataclasses
from pathlib import Path

import numpy as np
from PIL import Image

from eval import measure, methods
from eval.problem import of_split
from eval.report.results import Result
from eval.report.sheets import Sheet
from qat_jax.datasets.pictures import decode
from qat_jax.datasets.toybox import intents
from qat_jax.datasets.toybox.render import drawn
from qat_jax.encoders import load_encoder
from qat_jax.features.extraction import extract
from qat_jax.features.retrieval_set import Split
from qat_jax.fit import experts
from qat_jax.fit.training import PLAIN
from qat_jax.validation import Validator

TASK = "two intents"
TOYS, SHOWN = 100, 8  # that ask, of each part; items of a ranking
ASKS = ("on light ground: its shape", "on dark ground: its colours")
GRID = experts.INTENTS | {"space": ("lda",), "number": (2,), "floor": (0.001, 0.01)}  # a part of it, for a few seconds


def asked_twice(run: methods.TrainedRun, folder: Path, config: str) -> tuple[list[Result], list[Sheet]]:
  """Returns the results of plain, static and expert search, and a sheet for each intent of one toy.

  The toy is the one in the middle by what experts gain on the test split. There is nothing where the training images
  are too few for experts. The pictures are encoded into `folder` once; `config` is that of the run's toybox.
  """
  assert run.data is not None, "the demo has a retrieval set"
  galleries = {part: run.data.split(part).gallery for part in ("val", "test")} | {"train": run.data.train_images}
  encoder, splits = load_encoder("toy_clip"), {}
  for place, (source, _) in intents.places(config, TOYS).items():
    part, _, kind = place.partition("/")
    if kind == "image_queries":
      store = extract(source, encoder, folder / place, ("img",), progress=False)["img"]
      splits[part], pictures = Split(folder / part, galleries[part], {"image": store}), source  # the last are test's
  validator, train = Validator.of(splits["val"], "image", 0, run.seed), splits["train"]
  relevant = train.relevance("image").positives
  head = experts.intents(train.queries["image"], relevant, train.gallery, validator, GRID)
  static = [one.head("image") for name in methods.STATIC if (one := run.candidate("image", name)) is not None]
  if head is None or not static:
    return [], []
  (problem,) = of_split(splits["test"], 0, run.seed)
  results = []
  for name, way in (("plain", PLAIN), ("static", max(static, key=validator)), ("experts", head)):
    results += measure.results_of(name, methods.of_head(way, run, problem), problem)
  results = [dataclasses.replace(result, task=TASK) for result in results]
  before, after = results[0], results[-1]
  gain_T = (after.ap_Q - before.ap_Q).reshape(-1, len(ASKS)).mean(axis=1)
  toy = int(np.argsort(gain_T, kind="stable")[len(gain_T) // 2])
  positives = problem.tasks[""].relevance.positives

  def row(result: Result, query: int) -> list[tuple[Image.Image, bool]]:
    assert result.ids_QK is not None, "measured keeps them"
    return [(drawn(problem.gallery.ids[n]), n in positives[query]) for n in result.ids_QK[query, :SHOWN].tolist()]

  sheets = []
  for number, asks in enumerate(ASKS):
    query = toy * len(ASKS) + number
    reached = " → ".join(f"{100 * result.ap_Q[query]:.0f}" for result in (before, after))
    sheet = Sheet(
      decode(pictures[query]), row(before, query), row(after, query), f"{asks}; average precision {reached}"
    )
    sheets.append(dataclasses.replace(sheet, query_type="image", after_name="experts", task=TASK, typical=True))
  return results, sheets
