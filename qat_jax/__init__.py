"""Query-adaptive transforms for retrieval with vision-language embeddings.

adapter = qat_jax.load("runs/demo")
adaptation = adapter(query_QD)
ranking = qat_jax.rank(adaptation, gallery, k=100)
"""

from qat_jax.adaptation import fold, plain
from qat_jax.adapter import Adapter, load
from qat_jax.features.store import FeatureStore
from qat_jax.search.index import ExactIndex, ScannIndex
from qat_jax.search.rank import rank, rerank, score
from qat_jax.types import Adaptation, Ranking, SemiPositives

__version__ = "0.1.0"

__all__ = [
  "Adaptation",
  "Adapter",
  "ExactIndex",
  "FeatureStore",
  "Ranking",
  "ScannIndex",
  "SemiPositives",
  "__version__",
  "fold",
  "load",
  "plain",
  "rank",
  "rerank",
  "score",
]
