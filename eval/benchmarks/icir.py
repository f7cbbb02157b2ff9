"""i-CIR: this thing, but as a text says. Composed queries of 202 instances, each over a database of its own.

    python -m eval.benchmarks.icir ROOT FEATURES [--adapter RUN] [--aspects FILE] [--json OUT]

ROOT has the official query_files.csv and database_files.csv, also below annotations/: lines of image, text, instance,
no heading. FEATURES has queries/ (img_emb and text_emb, a row for each line, in the file's order) and gallery/
(img_emb, in the order of database_files.csv), and for BASIC also subjects/ and styles/ (text_emb of its two corpora).

A query is answered by its instance's database alone; right is what has its text. The average precision is that of the
official program: trapezoids, over the number of right items + 10⁻⁵. `map` is the mean over queries, `mmap` over
instances of their means, both × 100.
"""

import csv
import io
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

import qat_jax
from eval import commands
from eval.benchmarks.task import check_unit_lengths, need, relevance_of
from qat_jax import words
from qat_jax.adaptation import unit
from qat_jax.adapter import Adapter
from qat_jax.datasets.tables import decoded
from qat_jax.features.store import FeatureStore
from qat_jax.metrics import bootstrap_interval, trapezoid_average_precision

SOURCE = "it is one of the two CSV files of the i-CIR download"
SUMS = (0.25, 0.5, 1.0, 2.0, 4.0)  # weights of the text beside the picture
CONTRAST, COMPONENTS, CORNER = 0.2, 250, 0.1  # BASIC's numbers, as its program has them
SPARE = 1e-5  # that the official program adds to the number of right items
SAMPLE = 2000  # items whose similarities say what the least one is

Score = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]  # picture_QD, text_QD, item_ND (unit) → QN


class IcirLine(NamedTuple):
  """A line of an official file."""

  image: str
  text: str
  instance: str


class Icir(NamedTuple):
  """The queries and the database, in the order of their files."""

  queries: list[IcirLine]
  database: list[IcirLine]

  @classmethod
  def open(cls, root: Path | str) -> Self:
    """Returns the benchmark; raises FileNotFoundError or ValueError for files that are not there or not such."""
    folder = Path(root) / "annotations"
    folder = folder if folder.is_dir() else Path(root)
    queries, database = (_lines(folder / f"{name}_files.csv") for name in ("query", "database"))
    there = {(line.instance, line.text) for line in database}
    for number, line in enumerate(queries, start=1):
      if (line.instance, line.text) not in there:
        raise ValueError(
          f"query {number} ({line.image}, {line.text!r}) has nothing right in database_files.csv; are both files of "
          "the same version?"
        )
    return cls(queries, database)

  def precisions(self, score: Score, picture_QD: np.ndarray, text_QD: np.ndarray, gallery: Any) -> np.ndarray:
    """Returns the average precision of each query (Q) by what a method scores in the database of its instance."""
    precision_Q = np.empty(len(self.queries))
    instance_Q, instance_N = (np.array([line.instance for line in lines]) for lines in self)
    text_N = np.array([line.text for line in self.database])
    for instance in dict.fromkeys(instance_Q.tolist()):
      some, items = np.flatnonzero(instance_Q == instance), np.flatnonzero(instance_N == instance)
      item_ND = unit(np.asarray(gallery[items]), np.float32)
      ids_QN = np.argsort(-score(picture_QD[some], text_QD[some], item_ND), axis=1, kind="stable")
      right = [np.flatnonzero(text_N[items] == self.queries[query].text) for query in some]
      number_Q = np.array([len(own) for own in right])
      precision_Q[some] = trapezoid_average_precision(ids_QN, relevance_of(right)) * number_Q / (number_Q + SPARE)
    return precision_Q

  def figures(self, precision_Q: np.ndarray) -> dict[str, float]:
    """Returns `map` and `mmap`, and the 95 % bootstrap interval of `map`."""
    instances = np.unique([line.instance for line in self.queries], return_inverse=True)[1]
    each = np.bincount(instances, precision_Q) / np.bincount(instances)
    low, high = bootstrap_interval(precision_Q)
    named = {"map": precision_Q.mean(), "mmap": each.mean(), "low": low, "high": high}
    return {name: 100 * float(value) for name, value in named.items()}


def main(arguments: Sequence[str] | None = None) -> None:
  """Parses the flags, prints a line for each method, and writes the figures where --json says."""
  parser = commands.parser("eval.benchmarks.icir", __doc__, "--json")
  parser.add_argument("root", type=Path, help="the official files")
  parser.add_argument("features", type=Path, help="features of queries and gallery")
  parser.add_argument("--adapter", type=Path, help="a run's folder: its image head serves the picture")
  parser.add_argument("--aspects", help="a JSON file of aspects; by default the package's own")
  with commands.started(parser, arguments) as flags:
    found = icir_figures(flags.root, flags.features, flags.adapter, flags.aspects)
    for name, figures in found.items():
      print("{}: mAP {map:.2f} [{low:.2f}, {high:.2f}], mmAP {mmap:.2f}".format(name, **figures))
    commands.write_figures(flags.json, found)


def icir_figures(root: Path, features: Path, adapter: Path | None, aspects: str | None) -> dict[str, dict[str, float]]:
  """Returns the figures of each method that there is what it takes for, by its name."""
  benchmark = Icir.open(root)
  gallery = FeatureStore.open(features / "gallery", "img")
  pictures, texts = (FeatureStore.open(features / "queries", kind) for kind in ("img", "text"))
  for what, store, lines in (("queries", pictures, benchmark.queries), ("gallery", gallery, benchmark.database)):
    if len(store) != len(lines):
      raise ValueError(f"{store.folder} has {len(store):,} rows for {len(lines):,} {what}; give one for each line")
    check_unit_lengths(store, [line.image for line in lines], what)
  picture_QD, text_QD = (unit(np.asarray(store[:]), np.float32) for store in (pictures, texts))
  methods: dict[str, Score] = {
    "text": lambda picture_QD, text_QD, item_ND: text_QD @ item_ND.T,
    "image": lambda picture_QD, text_QD, item_ND: picture_QD @ item_ND.T,
    **{f"sum, text × {weight}": partial(summed, weight) for weight in SUMS},
    "product": product,
  }
  if (features / "subjects").is_dir():
    subjects, styles = (np.asarray(FeatureStore.open(features / name, "text")[:]) for name in ("subjects", "styles"))
    methods["BASIC"] = basic(subjects, styles, gallery)
  if gallery.encoder:
    methods["ours, told in words"] = told_in_words(gallery, aspects)
  if adapter is not None:
    methods["ours, image head + text"] = partial(through_head, qat_jax.load(adapter))
  return {
    name: benchmark.figures(benchmark.precisions(score, picture_QD, text_QD, gallery))
    for name, score in methods.items()
  }


def summed(weight: float, picture_QD: np.ndarray, text_QD: np.ndarray, item_ND: np.ndarray) -> np.ndarray:
  """Returns the picture's cosines plus so many times the text's."""
  return (picture_QD + weight * text_QD) @ item_ND.T


def product(picture_QD: np.ndarray, text_QD: np.ndarray, item_ND: np.ndarray) -> np.ndarray:
  """Returns the product of both cosines, those below 0 as 0."""
  return np.maximum(picture_QD @ item_ND.T, 0) * np.maximum(text_QD @ item_ND.T, 0)


def basic(subject_SD: np.ndarray, style_SD: np.ndarray, gallery: FeatureStore) -> Score:
  """Returns BASIC (arXiv 2510.25387), without its query expansion, which it does better without on i-CIR.

  Two things are other than in its program, whose files for them are not at hand: pictures are centred by the gallery's
  mean in place of LAION's, and the least similarities are those of a sample of the gallery, in place of drawn pictures.
  """
  sample_ND = unit(np.asarray(gallery[np.linspace(0, len(gallery) - 1, min(len(gallery), SAMPLE)).astype(int)]))
  picture_D, subject_SD = sample_ND.mean(axis=0), unit(subject_SD)
  text_D = subject_SD.mean(axis=0)
  scatter = lambda x_SD: (x_SD - text_D).T @ (x_SD - text_D) / (len(x_SD) - 1)
  value_D, along_DD = np.linalg.eigh((1 - CONTRAST) * scatter(subject_SD) - CONTRAST * scatter(unit(style_SD)))
  kept_DC = along_DD[:, value_D > 0][:, -COMPONENTS:]
  least = ((sample_ND - picture_D) @ (sample_ND - picture_D).T).min()

  def score(picture_QD: np.ndarray, text_QD: np.ndarray, item_ND: np.ndarray) -> np.ndarray:
    item_ND, own_QD = item_ND - picture_D, text_QD - text_D
    shown_QN = (picture_QD - picture_D) @ kept_DC @ (item_ND @ kept_DC).T
    told_QN = own_QD @ item_ND.T
    least_told = (own_QD @ (sample_ND - picture_D).T).min()
    shown_QN, told_QN = (np.maximum(x / abs(least), 0) for x in (shown_QN - least, told_QN - least_told))
    return shown_QN * told_QN - CORNER * np.square(shown_QN + told_QN)

  return score


def told_in_words(gallery: FeatureStore, aspects: str | None) -> Score:
  """Returns `by_words`, the text changing the aspect that it names: T and q′ of pictures told in words."""
  assert gallery.encoder is not None
  encoder = qat_jax.load_encoder(gallery.encoder[0])
  book = {name: words.encode(phrases, encoder, name) for name, phrases in words.read_aspects(aspects).items()}

  def score(picture_QD: np.ndarray, text_QD: np.ndarray, item_ND: np.ndarray) -> np.ndarray:
    adaptation = qat_jax.by_words(picture_QD, change=text_QD, aspects=book, gallery=gallery)
    return np.asarray(qat_jax.score(adaptation, item_ND))

  return score


def through_head(
  adapter: Adapter, picture_QD: np.ndarray, text_QD: np.ndarray, item_ND: np.ndarray, text_head: bool = False
) -> np.ndarray:
  """Returns scores (QN): that of the picture through its head plus that of the text, plain or through its own head.

  Each adapted score is scaled to spread over the items as the plain one does, as the service does it.
  """

  def adapted(query_QD: np.ndarray, name: str) -> np.ndarray:
    score_QN = np.asarray(qat_jax.score(adapter(query_QD, name), adapter.prepare(item_ND, name)), np.float64)
    spread_Q = np.std(score_QN, axis=1, keepdims=True)
    return score_QN * np.std(query_QD @ item_ND.T, axis=1, keepdims=True) / np.where(spread_Q > 0, spread_Q, 1)

  return adapted(picture_QD, "image") + (adapted(text_QD, "text") if text_head else text_QD @ item_ND.T)


def _lines(path: Path) -> list[IcirLine]:
  text = decoded(need(path, SOURCE).read_bytes(), path)
  rows = [row for row in csv.reader(io.StringIO(text, newline="")) if row]
  for number, row in enumerate(rows, start=1):
    if len(row) != 3 or not all(cell.strip() for cell in row):
      raise ValueError(f"{path}, line {number} is {','.join(row)!r}; wanted image, text and instance; {SOURCE}")
  if not rows:
    raise ValueError(f"{path} is empty; {SOURCE}")
  return [IcirLine(*(cell.strip() for cell in row)) for row in rows]


if __name__ == "__main__":
  main()
