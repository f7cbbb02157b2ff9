"""Query-adaptive transforms for retrieval with vision-language embeddings.

    adapter = qat_jax.load("runs/demo")
    adaptation = adapter(query_QD, "text")
    ranking = qat_jax.rank(adaptation, gallery, k=100)

The verbs on a gallery of four items, with the adaptation that changes nothing:

>>> import numpy as np
>>> import qat_jax
>>> gallery_ND = np.eye(4, dtype=np.float32)
>>> adaptation = qat_jax.plain(np.array([[3, 4, 0, 0]], np.float32))
>>> print(qat_jax.score(adaptation, gallery_ND))
[[0.6 0.8 0.  0. ]]
>>> qat_jax.rank(adaptation, gallery_ND, k=2).ids.tolist()  # positions in the gallery, best first
[[1, 0]]
>>> qat_jax.rerank(adaptation, gallery_ND, np.array([[2, 0]])).ids.tolist()  # of a shortlist
[[0, 2]]
>>> print(qat_jax.fold(adaptation))  # what an inner-product index is asked with
[[0.6 0.8 0.  0. ]]
"""

from typing import TYPE_CHECKING, Any

from qat_jax.adaptation import fold, plain
from qat_jax.adapter import Adapter, load
from qat_jax.evidence import Evidence, calibrate
from qat_jax.features.store import FeatureStore, write_features
from qat_jax.marks import refine
from qat_jax.models.head import Head
from qat_jax.search.index import ExactIndex
from qat_jax.search.indexes.faiss import FaissIndex
from qat_jax.search.indexes.lancedb import LanceIndex
from qat_jax.search.indexes.pgvector import PgvectorIndex
from qat_jax.search.indexes.qdrant import QdrantIndex
from qat_jax.search.indexes.scann import ScannIndex
from qat_jax.search.rank import rank, rerank, score
from qat_jax.search.sums import Term, rank_sum
from qat_jax.sharing.share import export, push
from qat_jax.types import Adaptation, Gallery, Ranking, SemiPositives, as_gallery
from qat_jax.words import by_words

if TYPE_CHECKING:
  from qat_jax.encoders import load_encoder

__version__ = "0.1.0"

__all__ = [
  "Adaptation",
  "Adapter",
  "Evidence",
  "ExactIndex",
  "FaissIndex",
  "FeatureStore",
  "Gallery",
  "Head",
  "LanceIndex",
  "PgvectorIndex",
  "QdrantIndex",
  "Ranking",
  "ScannIndex",
  "SemiPositives",
  "Term",
  "__version__",
  "as_gallery",
  "by_words",
  "calibrate",
  "export",
  "fold",
  "load",
  "load_encoder",
  "plain",
  "push",
  "rank",
  "rank_sum",
  "refine",
  "rerank",
  "score",
  "write_features",
]


def __getattr__(name: str) -> Any:
  """Imports on use what needs an extra: `load_encoder` opens pictures."""
  if name == "load_encoder":
    from qat_jax.encoders import load_encoder

    return load_encoder
  raise AttributeError(f"module 'qat_jax' has no attribute {name!r}")
