"""The demo's toy that is told in words what counts, on the toybox's tiny config."""

import numpy as np
import pytest

from eval.methods import TrainedRun
from eval.report import aspects
from eval.told import column, seen
from qat_jax.adapter import Adapter
from qat_jax.datasets.splits import sources
from qat_jax.encoders import load_encoder
from qat_jax.features.extraction import extract
from qat_jax.features.retrieval_set import RetrievalSet
from qat_jax.fit.training import PLAIN


@pytest.mark.compile
def test_each_aspect_has_rankings_of_its_own_and_frames_what_shares_it(tmp_path):
  for place, (source, _) in sources("toybox", "tiny", "").items():
    if "text" not in place:
      extract(source, load_encoder("toy_clip"), tmp_path / "features" / place, ("img",), progress=False)
  data = RetrievalSet.open(tmp_path / "features")
  adapter = Adapter(data.width, {"image": PLAIN}, {})
  results, sheets = aspects.alike(TrainedRun(adapter, tmp_path, data, 10, 0, 0, tmp_path / "scratch", {}))
  names = [(name, way) for name in aspects.ASPECTS for way in ("plain", aspects.TOLD)]
  assert [(one.task, one.method) for one in results] == [(aspects.ASPECTS[name], way) for name, way in names]
  split = data.split("test")
  queries, items = (seen(store.ids) for store in (split.queries["image"], split.gallery))
  for result, (name, _) in zip(results, names, strict=True):
    right_QN = column(queries, name)[:, None] == column(items, name)[None]
    for query, ids_K in enumerate(result.ids_QK):
      hit_K = right_QN[query][ids_K]
      if len(ids_K) == len(items):
        assert result.ap_Q[query] == pytest.approx((np.cumsum(hit_K) / np.arange(1, len(hit_K) + 1))[hit_K].mean())
    assert np.mean(result.ap_Q) > 0
  colour, plain = np.mean(results[1].ap_Q), np.mean(results[0].ap_Q)
  assert colour > plain
  shown = [[right for _, right in sheet.after] for sheet in sheets]
  assert [sheet.task for sheet in sheets] == list(aspects.ASPECTS.values())
  assert all(len(row) == aspects.SHOWN for row in shown) and sum(shown[0]) >= 6
