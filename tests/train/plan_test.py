from qat_jax.adapter import Adapter
from qat_jax.fit.training import PLAIN
from train.plan import choose


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
