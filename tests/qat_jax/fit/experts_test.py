"""The fit of experts against float64 programs that are written out the slow way."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qat_jax.adaptation import unit
from qat_jax.fit import clusters, discriminant, experts
from qat_jax.fit.clusters import InstanceRows
from qat_jax.fit.experts import Setting
from qat_jax.fit.training import PLAIN, Training, covariance_of, mean_of_rows
from qat_jax.types import Relevance
from qat_jax.validation import Validator

WIDTH, DOMAINS = 8, 2


def images(seed, instances=60, views=3, identity=0):
  """Two domains far apart: in one the first half of the dimensions tells instances apart, in the other the second."""
  rng, place = np.random.default_rng(seed), np.random.default_rng(100 + identity)
  domain_I = np.arange(instances) % DOMAINS
  wide_ID = np.where((np.arange(WIDTH) // 4)[None] == domain_I[:, None], 1.0, 0.05)
  centre_DD = 6 * np.random.default_rng(7).normal(size=(DOMAINS, WIDTH))
  instance_ID = centre_DD[domain_I] + place.normal(size=(instances, WIDTH)) * wide_ID
  instance_N = np.tile(np.arange(instances), views)
  x_ND = (
    instance_ID[instance_N] + rng.normal(size=(len(instance_N), WIDTH)) * np.where(wide_ID == 1, 0.1, 0.8)[instance_N]
  )
  return x_ND.astype(np.float32), instance_N


@pytest.fixture
def training():
  image_ND, instance_N = images(0)
  return Training("image", image_ND, image_ND, instance_N)


@pytest.fixture
def validator():
  gallery_ND, instance_N = images(1, instances=40, identity=1)
  query_QD, _ = images(2, instances=40, views=1, identity=1)
  return Validator(
    query_QD, gallery_ND, Relevance([np.flatnonzero(instance_N == i) for i in range(40)], [[]] * 40), 0, 0
  )


@pytest.fixture(autouse=True)
def few(monkeypatch):
  monkeypatch.setattr(experts, "FREEDOM", 20)


def made(sums, setting):
  return experts.head_of(sums, experts.maps_of(sums, setting.floor, setting.pooled), PLAIN, setting)


def test_experts_of_mixed_domains_beat_one_plda(training, validator):
  head = experts.fit_experts(training, validator)
  assert validator(head) > validator(discriminant.probabilistic(training, validator)) + 0.05
  assert head.form == "experts" and " experts, clustered in the " in head.note


@pytest.mark.parametrize("chunk", [5, 64, 10_000])
def test_sums_are_those_of_the_definition(training, chunk, monkeypatch):
  monkeypatch.setattr(clusters, "CHUNK", chunk)
  sums = InstanceRows(training.images, training.instance, PLAIN).sums(2, np.eye(WIDTH))
  x_ND = unit(training.images).astype(np.float64)
  mean_ID = np.array([x_ND[training.instance == i].mean(axis=0) for i in range(60)])
  cluster_I = sums.clusters.of(mean_ID)
  assert len(set(cluster_I[::2])) == len(set(cluster_I[1::2])) == 1 and cluster_I[0] != cluster_I[1]
  for k in range(2):
    within_DD, total_DD, own = np.zeros((WIDTH, WIDTH)), np.zeros((WIDTH, WIDTH)), np.flatnonzero(cluster_I == k)
    rows = x_ND[np.isin(training.instance, own)]
    for i in own:
      for x_D in x_ND[training.instance == i]:
        within_DD += np.outer(x_D - mean_ID[i], x_D - mean_ID[i])
    for x_D in rows:
      total_DD += np.outer(x_D - rows.mean(axis=0), x_D - rows.mean(axis=0))
    np.testing.assert_allclose(sums.within_KDD[k], within_DD, atol=1e-9)
    np.testing.assert_allclose(sums.total_KDD[k], total_DD, atol=1e-9)
    np.testing.assert_allclose(sums.mean_KD[k], rows.mean(axis=0), atol=1e-12)
    assert (sums.freedom_K[k], sums.count_K[k]) == (len(rows) - len(own), len(rows))


def test_the_constants_are_those_of_the_formulas(training):
  sums = InstanceRows(training.images, training.instance, PLAIN).sums(2, np.eye(WIDTH))
  setting = Setting(floor=0.1, pooled=30.0, outside=(0.1, 0.0), number=2)
  found = made(sums, setting).variables["constants"]
  pooled_DD = sum(sums.within_KDD) / sum(sums.freedom_K)
  spread_DD = sum(sums.total_KDD) / sum(sums.count_K)
  density = []
  for k in range(2):
    within_DD = (sums.within_KDD[k] + 30 * pooled_DD) / (sums.freedom_K[k] + 30)
    total_DD = (sums.total_KDD[k] + 30 * spread_DD) / (sums.count_K[k] + 30)
    within_DD = within_DD + 0.1 * np.trace(within_DD) / WIDTH * np.eye(WIDTH)
    map_DD = np.asarray(found["map"][k], np.float64)
    np.testing.assert_allclose(map_DD.T @ within_DD @ map_DD, np.eye(WIDTH), atol=2e-4)
    values_DD = map_DD.T @ (total_DD - within_DD) @ map_DD
    scale = np.abs(values_DD).max()
    np.testing.assert_allclose(np.maximum(np.diag(values_DD), 0), found["ratio"][k], atol=1e-4 * scale)
    np.testing.assert_allclose(values_DD - np.diag(np.diag(values_DD)), 0, atol=1e-4 * scale)
    np.testing.assert_allclose(map_DD.T @ total_DD @ map_DD, np.diag(found["total"][k]), atol=1e-4 * scale)
    density.append(-np.linalg.slogdet(total_DD)[1] / 2)
  np.testing.assert_allclose(found["offset"], density - max(density), atol=1e-3)
  length = []
  for q_D, k in zip(sums.query_MD, sums.query_cluster_M, strict=True):
    weight_D = np.asarray(found["ratio"][k] / (1 + 2 * found["ratio"][k]), np.float64)
    map_DD = np.asarray(found["map"][k], np.float64)
    length.append(np.linalg.norm(map_DD @ (weight_D * (map_DD.T @ (q_D - sums.mean_KD[k])))))
  np.testing.assert_allclose(found["typical"], np.sqrt(np.mean(np.square(length))), rtol=1e-4)


def test_one_expert_without_strangers_ranks_as_plda(training, validator):
  sums = InstanceRows(training.images, training.instance, PLAIN).sums(1, np.eye(WIDTH))
  one = made(sums, Setting(floor=0.0, pooled=0.0, outside=(0.0, 0.0), number=1))
  mean_D, within_DD = mean_of_rows(training.images), discriminant.within_covariance(training.images, training.instance)
  between_DD = covariance_of(training.images, mean_D) - within_DD
  variables = discriminant.plda_variables(within_DD, between_DD, mean_D, 0.0, unit(training.images))
  plda = experts.Head("plda", {}, variables)
  np.testing.assert_allclose(validator.precisions(one), validator.precisions(plda), atol=1e-6)
  scores = [np.asarray(h.prepare(training.images) @ h.module(WIDTH).apply(h.variables, training.images[:5]).query.T)
            for h in (one, plda)]  # fmt: skip
  for one_N, plda_N in zip(*(score.T for score in scores), strict=True):
    assert np.corrcoef(one_N, plda_N)[0, 1] > 0.9999


def test_no_training_image_is_longer_than_an_item_may_be_but_for_outliers(training):
  sums = InstanceRows(training.images, training.instance, PLAIN).sums(2, np.eye(WIDTH))
  head = made(sums, Setting(number=2))
  constants = {name: np.asarray(x) for name, x in head.variables["constants"].items()}
  off_NK = np.asarray(head.module(WIDTH).apply(head.variables, jnp.asarray(unit(training.images)), method="taken_off"))
  clipped_NK = np.minimum(off_NK, constants["high"]) - constants["middle"]
  length_N = np.sqrt(1 + np.square(clipped_NK / constants["typical"]).sum(axis=1))
  assert np.mean(length_N <= constants["longest"] * 1.0001) > 0.99
  for k in range(2):  # of its own images the clip touches none
    assert (off_NK[sums.clusters.of(unit(training.images)) == k, k] <= float(constants["high"][k])).all()


def test_a_fit_is_the_same_bit_for_bit(training, validator):
  first, again = (experts.fit_experts(training, validator) for _ in range(2))
  assert first.note == again.note and first.fingerprint == again.fingerprint


def test_clusters_of_equal_points_are_no_error():
  cells = clusters.cluster(np.ones((10, 3)), 4, np.eye(3))
  assert cells.direction_KD.shape == (4, 3) and (cells.of(np.ones((10, 3))) == 0).all()


@pytest.mark.parametrize("change", ["text", "few"])
def test_where_second_views_do_not_suffice_there_are_no_experts(training, validator, change, monkeypatch):
  monkeypatch.setattr(experts, "FREEDOM", 61 if change == "few" else 20)
  other = training._replace(query_type="text") if change == "text" else training
  assert not experts.suffices(other) and experts.fit_experts(other, validator) is None


def test_the_number_of_experts_is_bounded_by_degrees_of_freedom(training, validator, monkeypatch):
  monkeypatch.setattr(experts, "FREEDOM", 40)  # 120 of them, so 3 experts: 2 are tried, and no more
  assert experts.fit_experts(training, validator).settings["experts"] == 2


@pytest.mark.parametrize("sign", [2.0, 0.5])
def test_intents_over_one_gallery_beat_every_static_head(sign):
  """Pictures with a sign in the last dimension: it says whether the first or the second half is meant."""
  rng = np.random.default_rng(0)
  kinds, width = 12, 9
  place = 1.5 * rng.normal(size=(2, kinds, 4))

  def gallery(rows):
    code = rng.integers(kinds, size=(rows, 2))
    return code, np.concatenate([place[0][code[:, 0]], place[1][code[:, 1]], np.zeros((rows, 1))], axis=1)

  def noisy(x):
    return (x + 0.3 * rng.normal(size=x.shape) * ([1] * 8 + [0.1])).astype(np.float32)

  def asked(queries, item_code):
    code, x = gallery(queries)
    intent = np.arange(queries) % 2
    x[:, 8] = np.where(intent == 0, sign, -sign)
    return noisy(x), [np.flatnonzero(item_code[:, i] == c[i]) for c, i in zip(code, intent, strict=True)]

  code, x = gallery(400)
  image_ND = noisy(x)
  query_QD, relevant = asked(200, code)
  val_code, x = gallery(300)
  val_ND, (val_query, val_relevant) = noisy(x), asked(80, val_code)
  validator = Validator(val_query, val_ND, Relevance(val_relevant, [np.array([], int)] * 80), 0, 0)
  head = experts.intents(query_QD, relevant, image_ND, validator)
  static = Training("image", query_QD, image_ND, code[:, 0] * kinds + code[:, 1])
  others = [PLAIN, discriminant.both_sides(static, validator), discriminant.probabilistic(static, validator)]
  assert validator(head) > max(map(validator, others)) + 0.2
  expert_Q, _ = head.module(width).apply(head.variables, jnp.asarray(val_query), method="expert")
  means = [np.mean(val_query[np.asarray(expert_Q) == k, 8] > 0) for k in np.unique(expert_Q)]
  assert all(share in (0, 1) for share in means)
  listed = Training("image", query_QD, image_ND, np.arange(400), Relevance(relevant, [np.array([], int)] * 200))
  assert experts.fit_experts(listed, validator).fingerprint == head.fingerprint
  assert experts.intents(query_QD, [rows[:1] for rows in relevant], image_ND, validator) is None


def test_relevant_sums_are_those_of_the_definition(monkeypatch):
  monkeypatch.setattr(clusters, "CHUNK", 7)
  rng = np.random.default_rng(0)
  image_ND, relevant = rng.normal(size=(20, 3)), [rng.choice(20, n, replace=False) for n in (1, 4, 6, 3, 2, 9)]
  relevant, cluster_Q = [*relevant, relevant[1], relevant[2]], np.array([0, 1, 0, 0, 1, 0, 1, 1])
  within_KDD, freedom_K = clusters.RelevantLists(image_ND, relevant).sums(cluster_Q, 2)
  for k in range(2):
    groups = [unit(image_ND)[relevant[q]] for q in np.flatnonzero(cluster_Q == k)]
    deviation = np.concatenate([x - x.mean(axis=0) for x in groups])
    np.testing.assert_allclose(within_KDD[k], deviation.T @ deviation, atol=1e-12)
    assert freedom_K[k] == sum(len(x) - 1 for x in groups)


def test_devices_do_not_change_a_fit(training, validator):
  assert jax.device_count() == 4
  head = experts.fit_experts(training, validator)
  with jax.default_device(jax.devices()[3]):
    other = experts.fit_experts(training, validator)
  assert head.fingerprint == other.fingerprint
