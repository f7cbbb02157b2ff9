"""What words do for the demo's queries, without training: alike in an aspect, never mind the scene, this but changed.

    python -m eval.told --workdir runs/demo [--split val] [--json OUT]

Attributes of the toybox say what is right. *Alike*: items with the query's value of an aspect. *Ignore*: items of the
query's instance. *Change*: the toy of the same family that the text tells, and the same toy on a ground that it tells.
Phrases are in plain words that the captions have. Figures are mAP × 100 over the whole gallery; brackets are 95 %
bootstrap intervals of differences, paired by query. `q′ alone` is the told query without the length of T z.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

import qat_jax
from eval import commands
from eval.benchmarks.icir import Score, basic, product, summed, through_head
from eval.benchmarks.task import relevance_of
from qat_jax import words
from qat_jax.adaptation import plain, unit
from qat_jax.adapter import Adapter
from qat_jax.datasets.toybox import captions
from qat_jax.datasets.toybox.objects import ATTRIBUTES, families
from qat_jax.datasets.toybox.render import scene
from qat_jax.features.retrieval_set import RetrievalSet, Split
from qat_jax.metrics import average_precision_of_scores, paired_interval
from qat_jax.types import Adaptation

SCENES = (*captions.LIGHTS, *captions.TINTS[0], *captions.TINTS[1])
GROUND = "a shape, on {} ground"
PHRASE = {  # of an attribute's value, in the first two of its words
  "colour": "a {} shape",
  "kind": "a {}",
  "texture": "a {} shape",
  "side_colour": "a shape with a {} shape",
  "side_kind": "a shape with a {}",
  "side_place": "a shape with a shape {}",
  "mark_kind": "a shape with a {}",
  "mark_colour": "a shape with a {} dot",
}
ASPECTS = ("colour", "kind", "texture", "side_colour", "side_kind", "mark_colour", "light", "tint")
FOLDS = 4  # of two colours each, that the aspect does not name
SUMS = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0)  # weights of the text beside the picture


class Comparison(NamedTuple):
  """A line of the table: average precisions of the queries, by method."""

  name: str
  precision: dict[str, np.ndarray]


def main(arguments: Sequence[str] | None = None) -> None:
  """Parses the flags, prints the table, and writes it where --json says."""
  parser = commands.parser("eval.told", __doc__, "--workdir", "--split", "--json")
  with commands.started(parser, arguments) as flags:
    split = RetrievalSet.open(flags.workdir / "features").split(flags.split)
    adapter = qat_jax.load(flags.workdir) if (flags.workdir / "adapter").is_dir() else None
    lines = comparisons(split, qat_jax.load_encoder("toy_clip"), adapter)
    print("\n".join(map(text_of, lines)))
    figures = {line.name: {name: float(100 * x_Q.mean()) for name, x_Q in line.precision.items()} for line in lines}
    commands.write_figures(flags.json, figures)


def comparisons(split: Split, encoder: Any, adapter: Adapter | None = None) -> list[Comparison]:
  """Returns the lines of the table for one split of the toybox; with an adapter also what its image head does."""
  book = {name: words.encode(phrases, encoder, name) for name, phrases in toy_aspects().items()}
  gallery_ND = np.asarray(split.gallery[:], np.float32)
  image_QD = np.asarray(split.queries["image"][:], np.float32)
  told = lambda query_QD, **request: qat_jax.by_words(query_QD, aspects=book, gallery=gallery_ND, **request)
  corpora = PHRASE, ("scene", "light", "tint")  # of BASIC
  subjects, styles = (np.concatenate([book[name] for name in names]) for names in corpora)
  items, queries = seen(split.gallery.ids), seen(split.queries["image"].ids)
  lines = []
  for name in ASPECTS:
    right_QN = column(queries, name)[:, None] == column(items, name)[None]
    lines.append(
      comparison(f"alike in {name}", plain(jnp.asarray(image_QD)), told(image_QD, alike=name), gallery_ND, right_QN)
    )
  mean = {method: np.mean([line.precision[method].mean() for line in lines]) for method in lines[0].precision}
  lines.append(Comparison("mean of the aspects", {method: np.array([value]) for method, value in mean.items()}))
  lines.append(unnamed_colours(image_QD, gallery_ND, queries, items, book["colour"]))
  for query_type, store in split.queries.items():
    query_QD, own = np.asarray(store[:], np.float32), seen(store.ids)
    right_QN = column(own, "name")[:, None] == column(items, "name")[None]
    name = f"ignore the scene, {query_type} queries"
    lines.append(comparison(name, plain(jnp.asarray(query_QD)), told(query_QD, ignore="scene"), gallery_ND, right_QN))
  for name, ignore, rows_text_changed_right in (
    ("change one attribute", "scene", other_toys(queries, items)),
    ("change the ground", (), other_grounds(queries, items)),
  ):
    row_Q, texts, changed, right_QN = rows_text_changed_right
    query_QD, text_QD = image_QD[row_Q], encoder.texts(texts)
    adaptation = told(query_QD, ignore=ignore, change=text_QD, changed=changed)
    line = comparison(name, plain(jnp.asarray(query_QD)), adaptation, gallery_ND, right_QN)
    x_QD, t_QD = unit(query_QD, np.float32), unit(text_QD, np.float32)
    others: dict[str, Score] = {f"sum {weight}": functools.partial(summed, weight) for weight in SUMS}
    others |= {"product": product, "BASIC": basic(subjects, styles, split.gallery)}
    if adapter is not None and "image" in adapter.heads:
      others["image head + text"] = functools.partial(through_head, adapter)
      if "text" in adapter.heads:
        others["both heads"] = functools.partial(through_head, adapter, text_head=True)
    for method, score in others.items():
      line.precision[method] = precision_of(score(x_QD, t_QD, gallery_ND), right_QN)
    lines.append(line)
  return lines


def comparison(
  name: str, before: Adaptation, told: Adaptation, gallery_ND: np.ndarray, right_QN: np.ndarray
) -> Comparison:
  """Returns a line: the plain feature, the told query, and its q′ without T."""
  methods = {"plain": before, "told": told, "q′ alone": plain(told.query)}
  return Comparison(name, {method: precision_by(one, gallery_ND, right_QN) for method, one in methods.items()})


def precision_by(adaptation: Adaptation, gallery_ND: np.ndarray, right_QN: np.ndarray) -> np.ndarray:
  """Returns each query's average precision (Q)."""
  return precision_of(np.asarray(qat_jax.score(adaptation, gallery_ND)), right_QN)


def precision_of(score_QN: np.ndarray, right_QN: np.ndarray) -> np.ndarray:
  """Returns the average precision of each query (Q) by scores."""
  return average_precision_of_scores(score_QN, relevance_of([np.flatnonzero(row_N) for row_N in right_QN]))


def unnamed_colours(
  image_QD: np.ndarray, gallery_ND: np.ndarray, queries: list[dict], items: list[dict], colour_WD: np.ndarray
) -> Comparison:
  """Returns the line of queries whose colour the aspect does not name: two of eight in turn."""
  parts: dict[str, list[np.ndarray]] = {}
  value_W = np.repeat(ATTRIBUTES["colour"], 2)
  for fold in range(FOLDS):
    hidden = np.array(ATTRIBUTES["colour"])[fold::FOLDS]
    rows = np.flatnonzero(np.isin(column(queries, "colour"), hidden))
    right_QN = column(queries, "colour")[rows][:, None] == column(items, "colour")[None]
    named_WD = colour_WD[~np.isin(value_W, hidden)]
    told = qat_jax.by_words(image_QD[rows], alike=named_WD, aspects={}, gallery=gallery_ND)
    for method, one in comparison("", plain(jnp.asarray(image_QD[rows])), told, gallery_ND, right_QN).precision.items():
      parts.setdefault(method, []).append(one)
  precision = {name: np.concatenate(some) for name, some in parts.items()}
  return Comparison("alike in colour, colours without a word", precision)


def other_toys(queries: list[dict], items: list[dict]) -> tuple[list[int], list[str], list[str], np.ndarray]:
  """Returns queries that change one attribute: rows, texts, aspects, and what is right (QN)."""
  toys = {item["name"]: item for item in items}
  rows, texts, changed, right = [], [], [], []
  for row, query in enumerate(queries):
    for name, other in toys.items():
      if other["family"] == query["family"] and name != query["name"]:
        (attribute,) = [key for key in ATTRIBUTES if other[key] != query[key]]
        rows.append(row)
        texts.append(PHRASE[attribute].format(captions.WORDS[other[attribute]][0]))
        changed.append(attribute)
        right.append(column(items, "name") == name)
  return rows, texts, changed, np.array(right)


def other_grounds(queries: list[dict], items: list[dict]) -> tuple[list[int], list[str], list[str], np.ndarray]:
  """Returns queries that change the ground: the same toy's views on a ground of another light or tint are right."""
  name_N, ground_N = column(items, "name"), np.char.add(column(items, "light"), np.char.add(" ", column(items, "tint")))
  rows, texts, right = [], [], []
  for row, query in enumerate(queries):
    mine_N = name_N == query["name"]
    for ground in sorted(set(ground_N[mine_N]) - {f"{query['light']} {query['tint']}"}):
      rows.append(row)
      texts.append(GROUND.format(ground))
      right.append(mine_N & (ground_N == ground))
  return rows, texts, ["scene"] * len(rows), np.array(right)


def toy_aspects() -> dict[str, list[str]]:
  """Returns the aspects of the toybox and their phrases."""
  book = {
    name: [phrase.format(word) for value in ATTRIBUTES[name] for word in captions.WORDS[value][:2]]
    for name, phrase in PHRASE.items()
  }
  grounds = {"light": captions.LIGHTS, "tint": SCENES[len(captions.LIGHTS) :], "scene": SCENES}
  return book | {name: [GROUND.format(word) for word in told] for name, told in grounds.items()}


def seen(ids: np.ndarray) -> list[dict]:
  """Returns what is to be seen in the pictures of some ids: the toy's attributes, its light and its tint."""
  toys = {toy.name: toy for family in families() for toy in family}
  found = []
  for one in map(str, ids):
    name, view = one.rsplit("_", 1)
    light, tint = captions.light_and_tint(scene(toys[name], int(view))[0])
    found.append(toys[name].attributes() | {"name": name, "family": toys[name].family, "light": light, "tint": tint})
  return found


def column(rows: list[dict], name: str) -> np.ndarray:
  """Returns one attribute of all rows."""
  return np.array([row[name] for row in rows])


def text_of(line: Comparison) -> str:
  """Returns a line of the table as text: means, and the differences of the told query from plain and from q′ alone."""
  means = ", ".join(f"{name} {100 * x_Q.mean():.1f}" for name, x_Q in line.precision.items())
  if len(line.precision["told"]) == 1:
    return f"{line.name}: {means}"
  better = []
  for other in ("plain", "q′ alone"):
    mean, low, high = (100 * x for x in paired_interval(line.precision["told"], line.precision[other]))
    better.append(f"told − {other} {mean:+.1f} [{low:.1f}, {high:.1f}]")
  return f"{line.name} ({len(line.precision['told']):,} queries): {means}; {'; '.join(better)}"


if __name__ == "__main__":
  main()
