import numpy as np

from qat_jax.search.index import ExactIndex
from qat_jax.search.indexes.scann import ScannIndex
from tests.vectors import features


def test_a_large_gallery_is_partitioned_and_still_finds_most():
  gallery_ND, query_QD = features(25_000, width=16), features(20, width=16, seed=1)
  exact, scann = ExactIndex.build(gallery_ND), ScannIndex.build(gallery_ND, leaves_searched=0.3)
  pairs = zip(exact.search(query_QD, 10).ids, scann.search(query_QD, 10).ids, strict=True)
  found = np.mean([len(set(a) & set(b)) / 10 for a, b in pairs])
  assert found > 0.7
