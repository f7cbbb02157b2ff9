"""Rankings of queries that are told in words or refined by marks, as a batch job: files → a Parquet file.

All queries are ranked and then written at once. Words and marks are seldom told for more queries than fit in memory.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from qat_jax.marks import refine
from qat_jax.search.grouping import groups_of
from qat_jax.search.rank import rank
from qat_jax.search.sums import rank_sum
from qat_jax.serve.job_files import as_parquet, group_columns, ids_of, inputs_of, read_right, table_of
from qat_jax.stages import write_whole
from qat_jax.words import by_words

BESIDE = "aspects.json"  # of an adapter: its own aspects


def rank_refined(
  queries: str | os.PathLike,
  gallery: str | os.PathLike,
  out: str | os.PathLike,
  adapter: str | os.PathLike | None = None,
  right: str | os.PathLike | None = None,
  alike: Sequence[str] = (),
  ignore: Sequence[str] = (),
  change: str | None = None,
  aspects: str | os.PathLike | None = None,
  encoder: str | None = None,
  query_type: str | None = None,
  k: int = 100,
  group: str | None = None,
  diversity: float = 0.0,
) -> Path:
  """Writes the ranking of every query to `out`, as `rerank_files` does, and returns its path.

  Args:
    queries: frozen features, a .npy file or a feature folder.
    gallery: a feature folder, frozen.
    out: the Parquet file to write.
    adapter: a folder; None: the plain features. Queries told in words are ranked without it.
    right: a table or .npy file of marked items, as `read_right` takes it. They are not found again.
    alike: aspects that alone count.
    ignore: aspects that do not count.
    change: words to put in place of the query's own, such as "blue".
    aspects: a JSON file of aspects. None: aspects.json beside the adapter, else the package's own.
    encoder: of the words; None: the gallery's own.
    query_type: "text" or "image", where it is not clear.
    k: how many items of each query to keep.
    group: a metadata column, or "duplicates": the best groups of items are written, as `rerank_files` does.
    diversity: how much items shall differ, as `rerank_files` takes it.

  Raises as `rerank_files` and `by_words` do.
  """
  model, query, query_type, store, column, variety = inputs_of(adapter, queries, gallery, query_type, group, diversity)
  depth = variety.depth(k)
  query_ids, item_ids = ids_of(query), store.arrow_ids()
  right_QS, marked_QS = np.full((len(query), 1), -1), None
  if right is not None:
    right_QS, marked_QS = read_right(Path(right), query_ids, item_ids)
  each = [np.array(list(dict.fromkeys(row[row >= 0].tolist())), int) for row in right_QS]
  rows = [np.asarray(store[one], np.float32).reshape(-1, store.width) for one in each]
  if alike or ignore or change is not None:
    from qat_jax.encoders import load_encoder

    name = encoder or (store.encoder and store.encoder[0])
    if not name:
      raise ValueError(f"{gallery} does not say its encoder; name the one that reads the words: encoder")
    own = Path(adapter or "") / BESIDE
    book = aspects or (own if adapter and own.is_file() else None)
    told = by_words(
      query, alike, ignore, change, aspects=book, encoder=load_encoder(name), gallery=store if len(store) > 99 else None
    )
    ranking = rank(refine(told, rows), store, depth, exclude=marked_QS, group=column)
  else:
    adaptation = model(np.asarray(query[:], np.float32), query_type)
    folder = Path(out).with_name(Path(out).name + ".gallery")
    galleries = {
      one: model.prepare(store, one, folder.with_name(f"{folder.name}-{one}"))
      for one in {query_type or "image", "image"}
    }
    terms = model.refine_terms(adaptation, rows, {**galleries, "frozen": store}, query_type or "image")
    ranking, _ = rank_sum(terms, depth, exclude=marked_QS, group=None if column is None else groups_of(column, store))
  ranking, alike_QK = variety.of(ranking, store, k)
  write_whole(Path(out), as_parquet([table_of(ranking, query_ids, item_ids, group_columns(column, store), alike_QK)]))
  return Path(out)
