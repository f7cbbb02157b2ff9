"""The demo's showpiece, on the toybox's tiny config: its results, and what is framed in its pictures."""

import numpy as np
import pytest

from eval.methods import TrainedRun
from eval.report import intents
from qat_jax.adapter import Adapter
from qat_jax.datasets.splits import sources
from qat_jax.datasets.toybox.intents import shared
from qat_jax.datasets.toybox.objects import families
from qat_jax.encoders import load_encoder
from qat_jax.features.extraction import extract
from qat_jax.features.retrieval_set import RetrievalSet
from qat_jax.fit import experts
from qat_jax.fit.training import PLAIN


def toy(item):
  family, member = map(int, item.removeprefix("family").split("_")[:2])
  return families()[family][member]


@pytest.mark.long
@pytest.mark.compile
def test_a_toy_is_asked_twice_and_what_shares_its_shape_or_its_colours_is_right(tmp_path, monkeypatch):
  for place, (source, _) in sources("toybox", "tiny", "").items():
    if "text" not in place:
      extract(source, load_encoder("toy_clip"), tmp_path / "features" / place, ("img",), progress=False)
  data = RetrievalSet.open(tmp_path / "features")
  info = {"name": "closed_form_both", "val_map": 0.1, "offline_seconds": 2.0}
  Adapter(data.width, {"image": PLAIN}, info).save(tmp_path / "candidates/image/closed_form_both")
  adapter = Adapter(data.width, {"image": PLAIN}, {})
  run = TrainedRun(adapter, tmp_path / "candidates", data, 10, 0, 0, tmp_path / "scratch", {})
  assert intents.asked_twice(run, tmp_path / "asked", "tiny") == ([], [])  # too few relevant images for experts
  monkeypatch.setattr(experts, "FREEDOM", 10)
  results, sheets = intents.asked_twice(run, tmp_path / "asked", "tiny")
  assert [(one.method, one.task) for one in results] == [
    (name, "two intents") for name in ("plain", "static", "experts")
  ]
  items, queries = (store.ids for store in (data.split("test").gallery, data.split("test").queries["image"]))
  for result in results:
    for query, name in enumerate(np.repeat(queries, 2)):
      intent = ("shape", "colours")[query % 2]
      asked = shared(toy(name), intent)
      hit_K = np.array([shared(toy(items[n]), intent) == asked for n in result.ids_QK[query]])
      precision_K = np.cumsum(hit_K) / np.arange(1, len(hit_K) + 1)
      assert result.ap_Q[query] == pytest.approx(precision_K[hit_K].mean())
  light, dark = (np.asarray(sheet.query, float).mean() for sheet in sheets)
  assert light > dark
  assert all(sheet.task == "two intents" and len(sheet.after) == intents.SHOWN for sheet in sheets)
