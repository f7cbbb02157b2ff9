import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import features
from qat_jax.adaptation import normalise, score
from qat_jax.adapter import Adapter, load
from qat_jax.fit.training import Training
from qat_jax.models import forms
from qat_jax.models.head import Head
from qat_jax.types import Relevance
from qat_jax.validation import Validator
from train import plan
from train.ensembles import averaged, by_members
from train.loop import LoopSettings
from train.material import Material

WIDTH = 8


def random_head(seed, form="adaptive", **settings):
  """A head with random variables, none of them zero."""
  settings = {"hidden": 16} | ({"rank": 2, "token_hidden": 4} if form == "adaptive" else {}) | settings
  head = Head(form, settings, {})
  shapes, rng = head.initialise(WIDTH), np.random.default_rng(seed)
  return dataclasses.replace(
    head, variables=jax.tree.map(lambda x: jnp.asarray(0.3 * rng.normal(size=x.shape), jnp.float32), shapes)
  )


def rows(n, seed=0):
  return normalise(jnp.asarray(np.random.default_rng(seed).normal(size=(n, WIDTH)), jnp.float32))


@pytest.mark.parametrize("form", ["adaptive", "query_only"])
def test_an_ensemble_is_the_mean_query_and_the_mean_map(form, tmp_path):
  heads = [random_head(seed, form) for seed in range(3)]
  Adapter(WIDTH, {"text": averaged(heads)}).save(tmp_path / "adapter")
  adaptation = load(tmp_path / "adapter")(rows(4), "text")
  apply = jax.jit(heads[0].module(WIDTH).apply)
  single = [apply(head.variables, rows(4)) for head in heads]
  maps_KQDD = [np.eye(WIDTH) + np.einsum("QDR,QER->QDE", one.left, one.right) for one in single]
  query_QD = normalise(sum(one.query for one in single))
  mapped_QND = np.einsum("QDE,NE->QND", np.mean(maps_KQDD, axis=0), rows(20, 1))
  expected_QN = np.einsum("QD,QND->QN", query_QD, mapped_QND) / np.linalg.norm(mapped_QND, axis=2)
  np.testing.assert_allclose(score(adaptation, rows(20, 1)), expected_QN, atol=1e-5)
  assert averaged(heads).space == "frozen"


def test_heads_that_map_the_gallery_have_no_average():
  heads = [random_head(seed, "query_only", maps_gallery=True) for seed in range(2)]
  with pytest.raises(ValueError, match="map the gallery"):
    averaged(heads).module(WIDTH)


def test_members_have_seeds_and_folders_of_their_own(tmp_path):
  asked = []

  def fit(schedule, folder):
    asked.append((schedule.seed, schedule.target, folder))
    folder.mkdir(parents=True, exist_ok=True)
    return random_head(schedule.seed, "query_only")

  head = by_members(fit, 3, LoopSettings(seed=5, steps=1, target=0.4), tmp_path / "head")
  assert head.settings["members"] == 3
  assert len({seed for seed, _, _ in asked}) == 3 and asked[0] == (5, 0.4, tmp_path / "head")
  assert [target for _, target, _ in asked[1:]] == [None, None]
  assert {folder.name for _, _, folder in asked[1:]} == {"head_1", "head_2"}


def test_a_head_with_no_prospect_stays_alone(tmp_path):
  stopped = dataclasses.replace(random_head(0, "query_only"), note="stopped at step 4 of 12")
  assert by_members(lambda schedule, folder: stopped, 3, LoopSettings(0, 12), tmp_path) is stopped


def test_the_form_says_how_wide_its_rank_gets():
  module = forms.ensemble(WIDTH, "adaptive", {"hidden": 16, "rank": 2, "token_hidden": 4}, 3)
  adaptation = jax.eval_shape(lambda key: module.init_with_output(key, rows(2))[0], jax.random.key(0))
  assert adaptation.left.shape == (2, WIDTH, 6)


def test_a_run_that_asks_for_an_ensemble_serves_one(tmp_path):
  rng = np.random.default_rng(0)
  rows_ND = rng.normal(size=(40, WIDTH)).astype(np.float32)
  training = Training("text", rows_ND[:30], rows_ND[:30][:, ::-1], np.arange(30))
  relevance = Relevance([np.array([i]) for i in range(10)], [np.array([], int)] * 10)
  validator = Validator(rows_ND[30:], rows_ND[30:][:, ::-1], relevance, limit=0, seed=0)
  config = features.get_config()
  short = {"ensemble": 2, "form": "query_only", "train.steps": 4, "static_train.steps": 2, "validation.every": 2}
  config.update_from_flattened_dict(short | {"train.warmup_steps": 1, "forms.query_only.hidden": 8, "epochs.text": 0})
  config.memory.text = config.captions.text = config.levelled.text = 0
  material = Material(training, None, None, validator, validator, {})
  fitted = plan.candidates(config, material, tmp_path)
  assert fitted["query_only"].head.form == "ensemble"
  assert fitted["static"].head.form == fitted["static_mapped"].head.form == "static"
  assert not list(tmp_path.rglob("checkpoints")) and not list(tmp_path.rglob("query_only_*"))
