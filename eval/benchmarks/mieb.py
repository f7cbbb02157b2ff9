"""An adapter as a model of mteb, whose image tasks are MIEB: `mteb.evaluate(Searcher(encoder, adapter), tasks)`.

mteb takes encoders and searchers. An encoder gives one vector for a picture, whatever asks for it, so it cannot carry a
query's own map, nor items that an adapter prepared for one type of query. A searcher indexes the corpus and answers
the queries itself, so it is what we are: every answer is our exact ranking, and mteb's own program counts it.
The protocol is mteb's `SearchProtocol`, of mteb 2.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

import qat_jax
from qat_jax.adapter import Adapter
from qat_jax.datasets import decode
from qat_jax.encoders import Encoder
from qat_jax.search.sums import Term, rank_sum

BATCH = 256  # pictures or texts held beside their features
BLOCK = 64  # queries ranked at once
TYPES = ("image", "text")  # of queries, and mteb's names for their columns


class Searcher:
  """Answers mteb's retrieval tasks with an adapter, or plainly without one; the corpus must be pictures.

  A query is a picture, a text, or both: then each goes through its own head, and the scores add. A query type that the
  adapter has no head for is answered plainly, and `notes` says so.
  """

  def __init__(self, encoder: Encoder, adapter: Adapter | None = None, name: str = "qat-jax/adapter") -> None:
    if adapter is not None and adapter.width != encoder.width:
      raise ValueError(f"the encoder is {encoder.width} wide, the adapter {adapter.width}; give the adapter's encoder")
    named = (encoder.name, encoder.revision)
    if adapter is not None and adapter.encoder not in (None, named):
      raise ValueError(f"the adapter is for the encoder {adapter.encoder}, not {named}; give the adapter's encoder")
    self.encoder, self.adapter, self.name = encoder, adapter, name
    self.ids: list[str] = []
    self.galleries: dict[str, Any] = {}  # the prepared items by query type, and "frozen"
    self.notes: set[str] = set()

  @property
  def mteb_model_meta(self) -> Any:
    """What mteb writes beside its results."""
    from mteb.models.model_meta import ModelMeta

    about = {"name": self.name, "revision": self.encoder.revision, "embed_dim": self.encoder.width}
    return ModelMeta.create_empty(overwrites=about)

  def index(self, corpus: Any, **_: Any) -> None:
    """Encodes the corpus: rows with `id` and `image`. Raises ValueError where it holds no pictures, or an id twice."""
    columns = set(corpus.column_names)
    if not {"id", "image"} <= columns:
      raise ValueError(f"the corpus has the columns {sorted(columns)}; wanted id and image: adapters rank pictures")
    ids = [str(name) for name in corpus["id"]]
    if len(set(ids)) < len(ids):
      raise ValueError(f"the corpus has {len(ids):,} rows and {len(set(ids)):,} ids; every row needs its own id")
    frozen_ND = self._encoded(corpus, "image")
    galleries: dict[str, Any] = {"frozen": frozen_ND}
    if self.adapter is not None:
      galleries |= {head: self.adapter.prepare(frozen_ND, head) for head in self.adapter.heads}
    self.ids, self.galleries = ids, galleries

  def search(
    self, queries: Any, *, top_k: int, top_ranked: Mapping[str, Sequence[str]] | None = None, **options: Any
  ) -> dict[str, dict[str, float]]:
    """Returns {query id: {item id: score}} of the exact best items, by the corpus indexed last.

    Args:
      queries: rows with `id`, and `image`, `text` or both.
      top_k: how many items a query gets.
      top_ranked: in reranking tasks, the items that may be found, by query id.

    Raises ValueError before `index`, for queries that have neither column, and for an item that the corpus lacks.
    """
    if not self.galleries:
      raise ValueError("nothing is indexed; call index(corpus) first")
    types = [name for name in TYPES if name in queries.column_names]
    if not types:
      raise ValueError(f"the queries have the columns {queries.column_names}; wanted image, text or both")
    features = {name: self._encoded(queries, name) for name in types}
    names = [str(name) for name in queries["id"]]
    places = {name: place for place, name in enumerate(self.ids)}
    answers: dict[str, dict[str, float]] = {}
    for start in range(0, len(names), BLOCK):
      some = slice(start, start + BLOCK)
      terms = [self._term(query_type, features[query_type][some]) for query_type in types]
      allowed_QA = None if top_ranked is None else _allowed(top_ranked, names[some], places)
      ranking, _ = rank_sum(terms, min(top_k, len(self.ids)), allowed=allowed_QA)
      for name, id_K, score_K in zip(names[some], ranking.ids, ranking.scores, strict=True):
        answers[name] = {self.ids[i]: float(x) for i, x in zip(id_K, score_K, strict=True) if i >= 0}
    return answers

  def _term(self, query_type: str, feature_QD: np.ndarray) -> Term:
    """Returns the summand of one type of query: through its head, or plain where there is none."""
    if self.adapter is None or query_type not in self.adapter.heads:
      if self.adapter is not None:
        self.notes.add(f"{query_type} queries are answered plainly: the adapter has no head for them")
      return Term(qat_jax.plain(jnp.asarray(feature_QD)), self.galleries["frozen"])
    head = self.adapter.heads[query_type]
    return Term(self.adapter(feature_QD, query_type), self.galleries[query_type], head.scale)

  def _encoded(self, rows: Any, field: str) -> np.ndarray:
    """Returns the features (ND, float32) of a column, `image` or `text`, read in batches."""
    parts = [np.zeros((0, self.encoder.width), np.float32)]
    for start in range(0, len(rows), BATCH):
      some: list = rows[start : start + BATCH][field]
      if missing := [start + i for i, one in enumerate(some) if one is None]:
        raise ValueError(f"row {missing[0]} has no {field}, and {len(missing)} of its batch; every row needs one")
      pictures = [decode({"id": start + i, "image": one}) for i, one in enumerate(some) if field == "image"]
      parts.append(self.encoder.images(pictures) if field == "image" else self.encoder.texts(some))
    return np.concatenate(parts)


def _allowed(top_ranked: Mapping[str, Sequence[str]], names: Sequence[str], places: Mapping[str, int]) -> np.ndarray:
  """Returns the positions of the items that each query may find (QA, −1 as padding).

  Raises ValueError for an item that is not in the corpus.
  """
  listed = [[str(item) for item in top_ranked.get(name, ())] for name in names]
  for name, items in zip(names, listed, strict=True):
    if unknown := [item for item in items if item not in places]:
      raise ValueError(f"query {name!r} is to rerank {unknown[0]!r}, which the corpus lacks")
  allowed_QA = np.full((len(names), max(map(len, listed))), -1)
  for row_A, items in zip(allowed_QA, listed, strict=True):
    row_A[: len(items)] = [places[item] for item in items]
  return allowed_QA
