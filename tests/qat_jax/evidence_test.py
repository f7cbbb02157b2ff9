"""What scores are worth in a gallery: likelihood ratios against Gaussians in float64, thresholds on fresh queries."""

import dataclasses
import functools
import tempfile

import jax.numpy as jnp
import numpy as np
import pytest

import qat_jax
from qat_jax import evidence as module
from qat_jax.adapter import Adapter
from qat_jax.features.retrieval_set import Split
from qat_jax.features.store import write_features
from qat_jax.fit import discriminant, experts
from qat_jax.fit.training import Training
from qat_jax.models.head import Head
from qat_jax.planted import Planted
from tests.vectors import unit

WIDTH, VIEWS = 8, 3


def things(count, seed, noise=0.25):
  """Returns unit views of things (count × VIEWS × WIDTH)."""
  rng = np.random.default_rng(seed)
  return unit(rng.standard_normal((count, 1, WIDTH)) + noise * rng.standard_normal((count, VIEWS, WIDTH)))


@pytest.fixture(scope="module")
def training():
  rows = things(400, 0).reshape(-1, WIDTH)
  return Training("image", rows, rows, np.repeat(np.arange(400), VIEWS))


def normal(x_D, mean_D, covariance_DD):
  """Returns the logarithm of a normal density, without 2π."""
  off_D = x_D - mean_D
  return -(np.linalg.slogdet(covariance_DD)[1] + off_D @ np.linalg.solve(covariance_DD, off_D)) / 2


def ratio(query_D, item_D, mean_D, within_DD, between_DD):
  """Returns the log likelihood ratio of one thing against two, from the joint density of both images."""
  total = within_DD + between_DD
  joint = np.block([[total, between_DD], [between_DD, total]])
  both, means = np.concatenate([query_D, item_D]), np.concatenate([mean_D, mean_D])
  return normal(both, means, joint) - normal(query_D, mean_D, total) - normal(item_D, mean_D, total)


def test_scores_of_plda_become_the_whole_log_likelihood_ratio(training):
  within_DD = discriminant.within_covariance(training.images, training.instance)
  mean_D = training.means()[1]
  between_DD = discriminant.covariance_of(training.images, mean_D) - within_DD
  variables = discriminant.plda_variables(within_DD, between_DD, mean_D, 0.1, training.images[:300])
  head = Head("plda", {}, variables)
  within_DD = within_DD + 0.1 * np.trace(within_DD) / WIDTH * np.eye(WIDTH)
  value_D, vector_DD = np.linalg.eigh(np.linalg.solve(np.linalg.cholesky(within_DD), between_DD))
  root = np.linalg.cholesky(within_DD)
  inner = np.linalg.solve(root, np.linalg.solve(root, between_DD).T)
  value_D, vector_DD = np.linalg.eigh((inner + inner.T) / 2)
  between_DD = root @ (vector_DD * np.maximum(value_D, 0)) @ vector_DD.T @ root.T  # as the fit clips it
  query_QD, item_ND = things(3, 7)[:, 0], things(5, 8)[:, 0]
  evidence = module.Evidence(head, np.zeros(0), np.zeros(0), np.zeros(0, bool))
  adapter = Adapter(WIDTH, {"image": head})
  score_QN = qat_jax.score(adapter(query_QD), adapter.prepare(item_ND))
  got_QN = evidence.comparable(score_QN, query_QD)
  query_QD, item_ND = query_QD.astype(np.float64), item_ND.astype(np.float64)
  expected = [[ratio(query_D, item_D, mean_D, within_DD, between_DD) for item_D in item_ND] for query_D in query_QD]
  np.testing.assert_allclose(got_QN, expected, rtol=2e-4, atol=2e-3)


def test_scores_of_experts_become_the_ratio_of_the_query_s_own_expert(training):
  class First:  # a validator that takes the first of a grid
    subset = lambda self, few: self
    __call__ = lambda self, head: 0.5
    precisions = lambda self, head: np.full(4, 0.5)
    gain = lambda self, one, other: (0.0, 1.0)

  head = experts.fit_experts(training, First())
  assert head is not None and head.form == "experts"
  constants = {name: np.asarray(x, np.float64) for name, x in head.variables["constants"].items() if name != "head"}
  query_QD, item_ND = things(6, 7)[:, 0], things(5, 8)[:, 0]
  adapter = Adapter(WIDTH, {"image": head})
  score_QN = qat_jax.score(adapter(query_QD), adapter.prepare(item_ND))
  got_QN = module.Evidence(head, np.zeros(0), np.zeros(0), np.zeros(0, bool)).comparable(score_QN, query_QD)
  taken_NK = head.module(WIDTH).apply(head.variables, jnp.asarray(item_ND), method="taken_off")
  for query_D, got_N in zip(query_QD, got_QN, strict=True):
    k = int(np.argmax(query_D @ constants["direction"].T + constants["bias"]))
    ratio_D, map_DD, mean_D = constants["ratio"][k], constants["map"][k], constants["mean"][k]
    own = lambda x, map_DD=map_DD, mean_D=mean_D: (x - mean_D) @ map_DD
    of_query = functools.partial(ratio, own(query_D), mean_D=np.zeros(WIDTH), within_DD=np.eye(WIDTH))
    whole_N = [of_query(own(item_D), between_DD=np.diag(ratio_D)) for item_D in item_ND]
    weight_D = ratio_D**2 / ((1 + 2 * ratio_D) * (1 + ratio_D))
    square_N = np.array([np.sum(weight_D * own(item_D) ** 2) / 2 for item_D in item_ND])
    outside_N = np.asarray(taken_NK)[:, k] - square_N  # what the expert takes off strangers, and the clip
    expected_N = whole_N + square_N - np.minimum(square_N + outside_N, constants["high"][k])
    np.testing.assert_allclose(got_N, expected_N, rtol=1e-3, atol=0.02)


@pytest.fixture
def adapter():
  views = things(300, 1)
  query_QD, own_MD = (x.astype(np.float16) for x in (views[:, 0], views[:, 1:].reshape(-1, WIDTH)))
  planted = Planted(query_QD, own_MD, np.repeat(np.arange(300, dtype=np.int32), 2), query_QD[::-1])
  return Adapter(WIDTH, {"image": Head("plain", {}, {})}, planted={"image": planted})


@pytest.mark.parametrize("items", [300, 6000])
def test_thresholds_hold_in_galleries_of_any_size_without_their_labels(adapter, items):
  gallery_ND = things(items // VIEWS, 2).reshape(-1, WIDTH)
  evidence = qat_jax.calibrate(adapter, gallery_ND)
  assert evidence.status == "calibrated"
  absent = things(2000, 3)[:, 0]
  ranking = evidence.of(qat_jax.rank(adapter(absent), gallery_ND, 5), absent)
  assert ranking.evidence.shape == (2000, 5) and (np.diff(ranking.evidence, axis=1) <= 0).all()
  assert np.mean(ranking.evidence[:, 0] >= evidence.least(alarms=0.1)) == pytest.approx(0.1, abs=0.04)
  views = things(2000, 4)
  present = [np.concatenate([gallery_ND, own[1:]]) for own in views[:200]]
  rankings = [qat_jax.rank(adapter(own[:1]), rows, 1) for own, rows in zip(views, present, strict=False)]
  top = np.array([evidence.of(one, own[:1]).evidence[0, 0] for one, own in zip(rankings, views, strict=False)])
  assert np.mean(top >= evidence.least(kept=0.9)) == pytest.approx(0.9, abs=0.06)
  right = np.array([one.ids[0, 0] >= items for one in rankings])
  both, is_right = np.concatenate([top, ranking.evidence[:200, 0]]), np.concatenate([right, np.zeros(200)])
  for low in (0.0, 0.5):  # in each half of the scale the mean says how many are right
    some = (both >= low) & (both < low + 0.5)
    assert both[some].mean() == pytest.approx(is_right[some].mean(), abs=0.1)


def alike(count, seed):
  """Returns three views each of two members of families, which look alike (count × 2 × VIEWS × WIDTH)."""
  rng = np.random.default_rng(seed)
  members = rng.standard_normal((count, 1, 1, WIDTH)) + 0.15 * rng.standard_normal((count, 2, 1, WIDTH))
  return unit(members + 0.25 * rng.standard_normal((count, 2, VIEWS, WIDTH)))


def test_look_alikes_of_validation_make_probabilities_right_where_there_are_look_alikes():
  val, new = alike(300, 5), alike(300, 6)
  val[0, 0, 0] = val[0, 0, 2]  # the first query is an item itself
  gallery_ND = val[:, :, 1:].reshape(-1, WIDTH)
  columns = {"id": [f"i{i}" for i in range(1200)], "instance": [str(i // 2) for i in range(1200)]}
  with tempfile.TemporaryDirectory() as place:
    gallery = write_features(f"{place}/gallery", {"img": gallery_ND}, columns)
    asked = {"id": ["i1", *map(str, range(1, 300))], "instance": [str(2 * i) for i in range(300)]}
    queries = write_features(f"{place}/queries", {"img": val[:, 0, 0]}, asked)
    planted = Planted.of(Split(place, gallery, {"image": queries}), "image")
  cosine_QN = val[:, 0, 0] @ gallery_ND.T
  for query, itself in enumerate([[1], *[[]] * 299]):
    cosine_QN[query, [4 * query, 4 * query + 1, *itself]] = -1
  np.testing.assert_allclose(planted.rival, gallery_ND[cosine_QN.argmax(axis=1)], atol=1e-3)
  errors = []
  for one in (planted, dataclasses.replace(planted, rival=None)):
    adapter = Adapter(WIDTH, {"image": Head("plain", {}, {})}, planted={"image": one})
    items_ND, strangers_QD = new[:, :, 1:].reshape(-1, WIDTH), alike(300, 7)[:, 0, 0]
    evidence, query_QD = qat_jax.calibrate(adapter, items_ND), np.concatenate([new[:, 0, 0], strangers_QD])
    ranking = qat_jax.rank(adapter(query_QD), items_ND, 1)
    right = np.asarray(ranking.ids[:, 0]) // 2 == 2 * np.arange(600)  # a stranger's thing is not there
    errors.append(evidence.of(ranking, query_QD).evidence.mean() - right.mean())
    assert 0.3 < right.mean() < 0.4
  assert abs(errors[0]) < 0.07 and errors[1] > 0.1, errors


def test_planted_queries_travel_with_the_adapter_and_their_scores_are_kept(adapter, tmp_path, monkeypatch):
  adapter.save(tmp_path / "adapter")
  loaded = qat_jax.load(tmp_path / "adapter")
  assert loaded.planted["image"].digest == adapter.planted["image"].digest
  assert loaded.fingerprint == adapter.fingerprint
  gallery_ND = things(100, 2).reshape(-1, WIDTH)
  store = write_features(tmp_path / "gallery", {"img": gallery_ND}, {"id": [str(i) for i in range(300)]})
  whole, calls, real = qat_jax.calibrate(adapter, gallery_ND), [], module.rank

  def dies_at_the_second(*arguments):
    calls.append(len(arguments[0]))
    if len(calls) == 2:
      raise KeyboardInterrupt
    return real(*arguments)

  monkeypatch.setattr(module, "rank", dies_at_the_second)
  with pytest.raises(KeyboardInterrupt):
    qat_jax.calibrate(loaded, store, folder=tmp_path / "kept")
  for blocks in (3, 3):  # the second block alone is missing; then none is
    evidence = qat_jax.calibrate(loaded, store, folder=tmp_path / "kept")
    np.testing.assert_array_equal(evidence.absent, whole.absent)
    assert len(calls) == blocks
  other = write_features(tmp_path / "other", {"img": gallery_ND[:200]}, {"id": [str(i) for i in range(200)]})
  assert len(qat_jax.calibrate(loaded, other, folder=tmp_path / "kept").absent) and len(calls) == 5  # made anew


def test_what_cannot_be_known_is_not_said(adapter):
  gallery_ND = things(100, 2).reshape(-1, WIDTH)
  bare = Adapter(WIDTH, adapter.heads)
  known = adapter.planted["image"]
  strangers = Planted(known.query, known.own[::-1], known.owner)
  for one, status in ((bare, "not calibrated"), (Adapter(WIDTH, adapter.heads, {}, {"image": strangers}), "not known")):
    evidence = qat_jax.calibrate(one, gallery_ND)
    assert evidence.status == status and np.isnan(evidence.least(alarms=0.1))
    assert np.isnan(evidence.of(qat_jax.rank(one(gallery_ND[:2]), gallery_ND, 3), gallery_ND[:2]).evidence).all()
  for wrong in ({}, {"alarms": 0.0}, {"kept": 1.0}, {"alarms": 0.1, "kept": 0.9}):
    with pytest.raises(ValueError, match="give one of them, between 0 and 1"):
      evidence.least(**wrong)


def test_a_planted_query_whose_own_image_is_in_the_gallery_is_left_out(adapter):
  own = np.asarray(adapter.planted["image"].own, np.float32)
  gallery_ND = unit(np.concatenate([things(100, 2).reshape(-1, WIDTH), own[:20]]))
  assert len(qat_jax.calibrate(adapter, gallery_ND).absent) == 291  # a stranger is above the own image of one
