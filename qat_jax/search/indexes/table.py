"""The table of indexes: what each is called, what it needs and what it can do. Tests read their lists from it."""

from __future__ import annotations

import dataclasses
from typing import Any

from qat_jax.search.index import ExactIndex
from qat_jax.search.indexes.faiss import FaissIndex
from qat_jax.search.indexes.lancedb import LanceIndex
from qat_jax.search.indexes.pgvector import PgvectorIndex
from qat_jax.search.indexes.qdrant import QdrantIndex
from qat_jax.search.indexes.scann import ScannIndex


@dataclasses.dataclass(frozen=True)
class Kind:
  """One kind of index.

  Args:
    type: its class.
    packages: what its module imports on use; the extra of pyproject.toml that installs them has the kind's name.
    saved: whether it lives in memory and is saved to a folder of ours. Others live where they were built.
    own_ids: whether its ids may be numbers, texts or UUIDs of the user's. Else they are positions.
    fetches: whether it gives vectors back.
  """

  type: Any
  packages: tuple[str, ...] = ()
  saved: bool = False
  own_ids: bool = True
  fetches: bool = True


INDEXES = {
  "exact": Kind(ExactIndex, saved=True, own_ids=False),
  "scann": Kind(ScannIndex, ("scann",), saved=True, own_ids=False, fetches=False),
  "faiss": Kind(FaissIndex, ("faiss",), saved=True),
  "qdrant": Kind(QdrantIndex, ("qdrant_client",)),
  "pgvector": Kind(PgvectorIndex, ("psycopg", "pgvector")),
  "lancedb": Kind(LanceIndex, ("lancedb",)),
}
