"""Oxford and Paris: the revisited sets (Easy, Medium, Hard; +1M) and the original ones (5k, 6k; 105k, 106k); INSTRE.

INSTRE has 1,250 queries, each a box in a picture, and 27,293 pictures. All measure the trapezoid average precision and
mP@1, 5, 10 with junk removed. A gallery is the set's own images, in the order of its ground truth, followed by any
distractors.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from eval.benchmarks import safe_pickle
from eval.benchmarks.task import Ids, Task, need
from qat_jax.datasets.tables import decoded
from qat_jax.metrics import bootstrap_interval, precision_at_shrinking, trapezoid_average_precision
from qat_jax.sealed import UNREADABLE
from qat_jax.types import Relevance

REVISITED, ORIGINAL = ("roxford5k", "rparis6k"), ("oxford5k", "paris6k")
NAMES = (*REVISITED, *ORIGINAL, "instre")
PROTOCOLS = {  # the fields that are positive, and those that are junk
  "easy": (("easy",), ("junk", "hard")),
  "medium": (("easy", "hard"), ("junk",)),
  "hard": (("hard",), ("junk", "easy")),
}
KS = (1, 5, 10)
SOURCE = "it is the ground truth gnd_<set>.pkl (or .mat) of the benchmark's download; JSON of easy, hard, junk will do"


def open_task(gnd: Path | str, name: str = "roxford5k", distractor_ids: Ids = ()) -> list[Task]:
  """Returns the tasks of a ground truth: easy, medium and hard for a revisited set, else one.

  `distractor_ids` are those of the images that follow the set's own in the gallery (+1M, or the 100k of Oxford105k).
  The relevance and the score take rankings of that gallery, as positions. INSTRE's ground truth must name its pictures.
  """
  truth = read_gnd(gnd)
  missing = [key for key in ("imlist", "qimlist") if key not in truth] if name == "instre" else []
  if missing:
    raise ValueError(f"{gnd} has no {' and no '.join(missing)}; give the gnd_instre.mat of the dataset's test script")
  query_ids = truth.get("qimlist", [f"query {i}" for i in range(len(truth["gnd"]))])
  gallery_ids = [*truth.get("imlist", []), *distractor_ids]

  def task(protocol: str) -> Task:
    relevance = relevance_of(truth, protocol)
    score = lambda ranking: score_ranking(ranking.ids, relevance)
    precision = lambda ranking: trapezoid_average_precision(ranking.ids, relevance)
    return Task(f"{name} {protocol}".strip(), query_ids, gallery_ids, relevance, score, precision)

  return [task(protocol) for protocol in protocols(truth, name)]


def query_boxes(gnd: Path | str) -> np.ndarray:
  """Returns the box of each query in its picture (Q4: x, y, width, height, pixels), to crop before encoding."""
  return np.stack([query["bbx"] for query in read_gnd(gnd)["gnd"]])


def score_ranks(gnd: Path | str, ranks: np.ndarray, name: str = "roxford5k", distractors: int = 0) -> dict:
  """Returns the figures (fractions) of `ranks`, database × query as the official programs have them.

  A revisited set gives {"easy": {"map": …, "mp@1": …, …}, "medium": …, "hard": …}, an original one {"map": …, …}.

  Args:
    gnd: the ground truth's file.
    ranks: positions from 0, best first, a column a query; −1 fills up a short result.
    name: of the set.
    distractors: how many images follow those of the ground truth's list in the gallery.
  """
  truth = read_gnd(gnd)
  ranks = np.asarray(ranks)
  queries = len(truth["gnd"])
  if ranks.ndim != 2 or ranks.shape[1] != queries:
    turned = "; it looks transposed" if ranks.ndim == 2 and ranks.shape[0] == queries else ""
    raise ValueError(
      f"ranks of shape {ranks.shape} for {queries} queries; give database × query, a column a query{turned}"
    )
  if not np.issubdtype(ranks.dtype, np.integer):
    raise ValueError(f"ranks of type {ranks.dtype}; give database positions, integers from 0")
  _check_ranks(ranks, len(truth["imlist"]) if "imlist" in truth else None, distractors)
  for place, column in enumerate(ranks.T):
    if len(np.unique(column[column >= 0])) < np.sum(column >= 0):
      raise ValueError(f"the ranks of query {place} hold an image twice; give each once, −1 fills up a short result")
  figures = {p: score_ranking(ranks.T, relevance_of(truth, p)) for p in protocols(truth, name)}
  return figures.get("", figures)


def _check_ranks(ranks: np.ndarray, listed: int | None, distractors: int) -> None:
  """Raises ValueError for positions that the gallery does not have, which those that count from 1 give away.

  The gallery has the images of the ground truth's list and the distractors, or as many as there are rows: a ranking of
  the whole gallery has a row an image. Without a list only a whole ranking that counts from 1 can be told.
  """
  if not ranks.size:
    return
  rows, first, last = len(ranks), int(ranks.min()), int(ranks.max())
  whole_from_1 = first == 1 and last == rows
  images = max(rows, last + 1) if listed is None else max(listed + distractors, rows)
  if first < -1 or last >= images or (listed is None and whole_from_1):
    wrong = f"{first} (−1 alone fills up)" if first < -1 else f"{last}, and the gallery has {images} images"
    raise ValueError(
      f"ranks hold the position {wrong}; positions count from 0: subtract 1 from MATLAB's, and say with --distractors "
      "how many images follow those of the list"
    )


def score_ranking(ids_QK: np.ndarray, relevance: Relevance) -> dict:
  """Returns {"map", "interval", "mp@1", "mp@5", "mp@10", "queries"} (fractions) over queries that have positives."""
  ap_Q = trapezoid_average_precision(ids_QK, relevance)
  if np.isnan(ap_Q).all():
    raise ValueError("no query has a positive; check the ground truth")
  mp = np.nanmean(precision_at_shrinking(ids_QK, relevance, KS), axis=0)
  return {
    "map": float(np.nanmean(ap_Q)),
    "interval": list(bootstrap_interval(ap_Q)),
    **{f"mp@{k}": float(value) for k, value in zip(KS, mp, strict=True)},
    "queries": int(np.sum(~np.isnan(ap_Q))),
  }


def protocols(truth: dict, name: str) -> list[str]:
  """Returns easy, medium, hard for a revisited ground truth, [""] for an original one; they must fit the name."""
  revisited = "easy" in truth["gnd"][0]
  expected = name in REVISITED if name in REVISITED + ORIGINAL else revisited
  if expected != revisited:
    fields = sorted(truth["gnd"][0])
    raise ValueError(f"the ground truth has {fields}, which is not that of {name}; give the file of the same set")
  return list(PROTOCOLS) if revisited else [""]


def relevance_of(truth: dict, protocol: str) -> Relevance:
  """Returns positives and junk by query for easy, medium, hard, or "" (ok and junk of an original set)."""
  positive, junk = PROTOCOLS[protocol] if protocol else (("ok",), ("junk",))
  return Relevance(
    [np.concatenate([query[field] for field in positive]) for query in truth["gnd"]],
    [np.concatenate([query[field] for field in junk]) for query in truth["gnd"]],
  )


def read_gnd(path: Path | str) -> dict[str, Any]:
  """Returns {"gnd": a dict of position arrays a query, "imlist", "qimlist" where given} from pickle, .mat or JSON.

  Positions count from 0 (those of .mat files from 1, which is mended). Raises ValueError for anything else, and for
  positions that the image list does not have.
  """
  path = need(Path(path), SOURCE)
  if path.suffix == ".json":
    try:
      raw = json.loads(decoded(path.read_bytes(), path))
    except ValueError as error:
      raise ValueError(f"{path} is no whole JSON ({error}); {SOURCE}") from error
  elif path.suffix == ".mat":
    raw = _read_mat(path)
  else:
    raw = safe_pickle.read_pickle(path)
  raw = {"gnd": raw} if isinstance(raw, list) else raw
  if not isinstance(raw, dict) or not isinstance(raw.get("gnd"), (list, tuple, np.ndarray)) or not len(raw["gnd"]):
    raise ValueError(f"{path} holds no list `gnd` with an entry a query; {SOURCE}")
  truth: dict[str, Any] = {key: [str(x) for x in raw[key]] for key in ("imlist", "qimlist") if key in raw}
  truth["gnd"] = [_query(entry, place, path) for place, entry in enumerate(raw["gnd"])]
  if "imlist" in truth:
    _check_positions(truth, path)
  if len(truth.get("qimlist", truth["gnd"])) != len(truth["gnd"]):
    raise ValueError(f"{path} names {len(truth['qimlist'])} queries and has {len(truth['gnd'])} entries in gnd")
  return truth


def read_features(path: Path | str) -> tuple[np.ndarray, np.ndarray]:
  """Returns queries (QD) and gallery (ND) of a published features .mat, which holds them as Q (D × Q) and X (D × N)."""
  from scipy.io import loadmat

  raw = loadmat(need(Path(path), "it is the features .mat of the benchmark's download"))
  if not {"Q", "X"} <= set(raw) or raw["Q"].shape[0] != raw["X"].shape[0]:
    shapes = {name: value.shape for name, value in raw.items() if isinstance(value, np.ndarray)}
    raise ValueError(f"{path} holds {shapes}; it should hold Q and X, of the same width in the first axis")
  return np.ascontiguousarray(raw["Q"].T), np.ascontiguousarray(raw["X"].T)


def read_ranks(path: Path | str) -> np.ndarray:
  """Returns the array of a .npy file; one that holds Python objects is refused."""
  path = need(Path(path), "save the database positions with numpy.save, database × query")
  try:
    return np.load(path, allow_pickle=False)
  except UNREADABLE as error:
    raise ValueError(f"{path} is not a whole .npy of numbers ({error}); write it with numpy.save") from error


def _query(entry: Any, place: int, path: Path) -> dict[str, np.ndarray]:
  if not isinstance(entry, dict):
    raise ValueError(f"{path}: query {place} is a {type(entry).__name__}, wanted a dict of positions; {SOURCE}")
  if "ok" in entry and "junk" not in entry:  # INSTRE has none
    entry = {**entry, "junk": []}
  fields = ("easy", "hard", "junk") if "easy" in entry else ("ok", "junk")
  missing = [f for f in fields if f not in entry]
  if missing:
    raise ValueError(f"{path}: query {place} has {sorted(entry)}, but no {', '.join(missing)}")
  query = {}
  for field in fields:
    query[field] = _numbers(entry[field], np.int64, f"{path}: query {place}, {field}")
    if len(query[field]) and query[field].min() < 0:
      raise ValueError(f"{path}: query {place} has {field} image {query[field].min()}; positions count from 0")
  for first, second in (("easy", "hard"), ("easy", "junk"), ("hard", "junk"), ("ok", "junk")):
    both = np.intersect1d(query.get(first, ()), query.get(second, ()))
    if len(both):
      raise ValueError(f"{path}: query {place} has image {int(both[0])} both as {first} and as {second}")
  if "bbx" in entry:
    query["bbx"] = _numbers(entry["bbx"], float, f"{path}: query {place}, bbx")
  return query


def _numbers(values: Any, dtype: type, where: str) -> np.ndarray:
  try:
    given = np.asarray(values).reshape(-1)
    if given.dtype.kind == "b" or (dtype is np.int64 and (given.astype(float) % 1 != 0).any()):  # NaN too
      raise ValueError(f"{given[:3].tolist()} …, wanted whole numbers")
    return given.astype(dtype)
  except (ValueError, TypeError, OverflowError) as error:
    raise ValueError(f"{where} holds no numbers ({error}); {SOURCE}") from error


def _check_positions(truth: dict, path: Path) -> None:
  size = len(truth["imlist"])
  for place, query in enumerate(truth["gnd"]):
    for field, positions in query.items():
      if field != "bbx" and len(positions) and positions.max() >= size:
        raise ValueError(f"{path}: query {place} has {field} image {positions.max()}, the list has {size} images")


def _read_mat(path: Path) -> dict:
  from scipy.io import loadmat

  raw = loadmat(path, squeeze_me=True, struct_as_record=True)
  gnd = []
  for entry in np.atleast_1d(raw["gnd"]):
    fields = entry.dtype.names
    one = {f: np.atleast_1d(entry[f]).astype(np.int64) - 1 for f in ("ok", "easy", "hard", "junk") if f in fields}
    gnd.append({**one, "bbx": entry["bbx"]} if "bbx" in fields else one)
  names = {key: [str(x) for x in np.atleast_1d(raw[key])] for key in ("imlist", "qimlist") if key in raw}
  if "qidx" in raw and "imlist" in names:
    names["qimlist"] = [names["imlist"][i - 1] for i in np.atleast_1d(raw["qidx"])]
  return {"gnd": gnd, **names}
