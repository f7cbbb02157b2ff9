from types import SimpleNamespace

import numpy as np
import pytest

from configs import demo, features
from qat_jax.adapter import Adapter
from qat_jax.fit.training import PLAIN, Training
from train import plan
from train.loop import LoopSettings
from train.plan import choose
from train.step import LossSettings


def fitted(**gains):
  """Candidates with a validation mAP and (gain over plain, its standard error)."""
  return {
    name: Adapter(4, {"text": PLAIN}, {"name": name, "val_map": 0.3 + gain, "gain_over_plain": [gain, error]})
    for name, (gain, error) in gains.items()
  }


def test_the_best_on_validation_serves():
  _, chosen = choose(fitted(plain=(0, 0), static=(0.05, 0.01), adaptive=(0.08, 0.01)))
  assert chosen["name"] == "adaptive"
  assert set(chosen["val_map"]) == {"plain", "static", "adaptive"}


def test_the_frozen_feature_stays_where_a_gain_is_within_its_error():
  assert choose(fitted(plain=(0, 0), static=(0.01, 0.02)))[1]["name"] == "plain"
  assert choose(fitted(plain=(0, 0), static=(-0.1, 0.01)))[1]["name"] == "plain"


def test_few_rows_are_looked_at_so_often_and_no_more():
  config = features.get_config()
  short = plan.loop_settings(config, "adaptive", 2048)  # 8 steps an epoch
  assert (short.steps, short.validate_every, short.patience) == (800, 80, 400)
  assert plan.loop_settings(config, "adaptive", 100).steps == 400
  whole = plan.loop_settings(config, "adaptive", 24000)
  assert (whole.steps, whole.validate_every, whole.patience) == (2000, 200, 600)
  assert plan.loop_settings(config, "static", 2048).steps == 2000
  config.train.patience = 0  # never
  assert plan.loop_settings(config, "adaptive", 2048).patience == 0
  config.train.update({"epochs": 0, "patience": 600})
  assert plan.loop_settings(config, "adaptive", 2048) == whole


@pytest.mark.parametrize("name", ["features", "demo"])
def test_cheap_heads_are_trained_first_and_all_others_after_them(name):
  config = {"features": features, "demo": demo}[name].get_config()
  for query_type in ("text", "image"):
    training = Training(query_type, np.eye(4), np.eye(4), np.arange(4))
    order = [form for form, _ in plan.trained_forms(config, training).values()]
    assert order == sorted(order, key=lambda form: form != "static") and order.count("static") == 2
    assert order[-1] == "adaptive"


def test_what_is_to_be_beaten_where_a_memory_may_follow_is_a_head_for_an_untouched_gallery():
  known = fitted(plain=(0, 0), static=(0.1, 0), mapped=(0.2, 0))
  known["mapped"].heads["text"] = SimpleNamespace(space="mapped-1")
  assert plan.to_beat(known, all_count=True) == pytest.approx(0.5)
  assert plan.to_beat(known, all_count=False) == pytest.approx(0.4)


def test_a_head_that_can_no_longer_win_says_so(tmp_path, capsys):
  rows_ND = np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32)
  training = Training("text", rows_ND, rows_ND, np.arange(16))
  material = plan.Material(training, None, lambda head: 0.4, {})
  schedule = LoopSettings(seed=0, steps=12, validate_every=2, warmup_steps=2, target=0.5)
  settings = {"maps_gallery": False}
  head = plan.by_gradient(material, "static", settings, 8, LossSettings(), schedule, tmp_path / "slow")
  assert head.note == "stopped at step 4 of 12, since it could no longer win"
  assert f"text/slow: {head.note} (40.0, to beat 50.0)" in capsys.readouterr().out
  schedule = schedule._replace(target=0.3, steps=6)
  assert not plan.by_gradient(material, "static", settings, 8, LossSettings(), schedule, tmp_path / "better").note
