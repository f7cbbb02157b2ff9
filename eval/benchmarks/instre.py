"""INSTRE: 1,250 queries, each a box in a picture, and 27,293 pictures; gnd_instre.mat, trapezoid average precision."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from eval.benchmarks.revisited import read_gnd, relevance_of, score_ranking
from eval.benchmarks.task import Task
from qat_jax.metrics import trapezoid_average_precision
from qat_jax.types import Ranking


def open_task(gnd: Path | str) -> Task:
  """Returns the task of a gnd_instre.mat; its picture names are the ids of queries and gallery."""
  truth = read_gnd(gnd)
  missing = [key for key in ("imlist", "qimlist") if key not in truth]
  if missing:
    raise ValueError(f"{gnd} has no {' and no '.join(missing)}; give the gnd_instre.mat of the dataset's test script")
  relevance = relevance_of(truth, "")

  def score(ranking: Ranking) -> dict:
    return score_ranking(ranking.ids, relevance)

  def precision(ranking: Ranking) -> np.ndarray:
    return trapezoid_average_precision(ranking.ids, relevance)

  return Task("instre", truth["qimlist"], truth["imlist"], relevance, score, precision)


def query_boxes(gnd: Path | str) -> np.ndarray:
  """Returns the box of each query in its picture (Q4: x, y, width, height, pixels), to crop before encoding."""
  return np.stack([query["bbx"] for query in read_gnd(gnd)["gnd"]])
