"""Refined queries against the sums of their own and their marks' scores."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import qat_jax
from qat_jax import marks
from qat_jax.adapter import Adapter
from qat_jax.models import forms
from qat_jax.models.head import Head
from qat_jax.types import Adaptation
from tests import vectors

WIDTH, ITEMS = 8, 300
FORMS = {
  "plain": ("plain", {}),
  "closed_form": ("closed_form", {}),
  "plda": ("plda", {}),
  "static": ("static", {"maps_gallery": True}),
  "adaptive": ("adaptive", {"hidden": 8, "rank": 2, "token_hidden": 8}),
  "gated": ("gated", {"hidden": 8}),
  "experts": ("experts", {"form": "static", "settings": {}, "experts": 3}),
  "levelled": ("levelled", {"form": "plain", "settings": {}, "queries": 4, "items": 8, "nearest": 2}),
  "captions": ("remembering", {"form": "plain", "settings": {}, "pairs": 20, "captions": "image"}),
  "query_only": ("query_only", {"hidden": 8}),
  "affine": ("affine", {"dimensions": 5, "bias": True}),
  "neighbours": ("neighbours", {"pairs": 9}),
  "projected": ("projected", {"form": "static", "settings": {}, "items": WIDTH, "narrow": 5}),
  "marked": ("marked", {"form": "static", "settings": {}, "pairs": 9, "items": WIDTH}),
  "ensemble": ("ensemble", {"form": "adaptive", "settings": {"hidden": 8, "rank": 2, "token_hidden": 8}, "members": 2}),
  "paper": ("paper", {"rank": 2, "token_hidden": 8, "layers": 1, "steps": 1, "heads": 2}),
  "released": (
    "released",
    {"hidden": 8, "rank": 2, "layers": 1, "steps": 1, "heads": 2, "anchor_scale": 0.8}
    | {"query_residual": 0.5, "frobenius_norm": True},
  ),
}
OWN_MAPS = ("adaptive", "gated", "ensemble", "paper", "released")


def test_every_form_is_among_them():
  assert {form for form, _ in FORMS.values()} == set(forms.FORMS)


@pytest.fixture
def gallery_ND():
  return vectors.features(ITEMS, WIDTH)


def made(name):
  form, own = FORMS[name]
  head, rng = Head(form, own, {}), np.random.default_rng(1)
  variables = forms.initialise(head.module(WIDTH), jax.random.key(0))
  filled = lambda x: x if x.ndim == 0 else jnp.asarray(x + 0.3 * rng.standard_normal(x.shape), x.dtype)
  return Head(form, own, jax.tree.map(filled, variables))


def test_marks_of_another_gallery_count_as_wide_as_their_plain_scores(gallery_ND, features):
  adapter = Adapter(WIDTH, {"text": made("levelled"), "image": made("experts")})
  galleries = {name: np.asarray(adapter.prepare(gallery_ND, name)) for name in adapter.heads} | {"frozen": gallery_ND}
  right = [gallery_ND[[1, 2]], *[gallery_ND[[3]]] * (len(features) - 1)]

  def as_plain(row_QD, name):
    score_QN = np.asarray(qat_jax.score(adapter(row_QD, name), galleries[name]), np.float64)
    plain_QN = np.asarray(qat_jax.score(qat_jax.plain(jnp.asarray(row_QD)), gallery_ND), np.float64)
    return score_QN * plain_QN.std(axis=1, keepdims=True) / score_QN.std(axis=1, keepdims=True)

  terms = adapter.refine_terms(adapter(features, "text"), right, galleries, "text")
  ranking, _ = qat_jax.rank_sum(terms, 20)
  score_QN = as_plain(features, "text") + 2 * np.stack([as_plain(row_RD, "image").mean(axis=0) for row_RD in right])
  taken = np.take_along_axis(score_QN, ranking.ids, axis=1)
  np.testing.assert_allclose(ranking.scores, taken, atol=2e-4)
  np.testing.assert_allclose(taken, -np.sort(-score_QN, axis=1)[:, :20], atol=2e-4)


@pytest.mark.parametrize("image", FORMS)
@pytest.mark.parametrize("query_type", ["text", "image"])
def test_refined_queries_rank_by_the_added_scores(gallery_ND, features, query_type, image):
  adapter = Adapter(WIDTH, {"text": made("levelled"), "image": made(image)})
  galleries = {name: np.asarray(adapter.prepare(gallery_ND, name)) for name in adapter.heads}
  right = [gallery_ND[[1, 2, 3]], gallery_ND[:0], gallery_ND[[4]], gallery_ND[[5, 6]], gallery_ND[:0]]
  query = adapter(features, query_type)
  ranking, proven_Q = qat_jax.rank_sum(adapter.refine_terms(query, right, galleries, query_type), 30)
  assert proven_Q.all()
  twice = {name: head.scale for name, head in adapter.heads.items()}
  score_QN = twice[query_type] * np.asarray(qat_jax.score(query, galleries[query_type]), np.float64)
  for number, row_RD in enumerate(right):
    if len(row_RD):
      own_RN = np.asarray(qat_jax.score(adapter(row_RD, "image"), galleries["image"]), np.float64)
      score_QN[number] += 2 * twice["image"] * own_RN.mean(axis=0)
  order_QK = np.argsort(-score_QN, axis=1, kind="stable")[:, :30]
  taken = lambda ids_QK: np.take_along_axis(score_QN, ids_QK, axis=1)
  np.testing.assert_allclose(taken(ranking.ids), taken(order_QK), atol=2e-5)
  np.testing.assert_allclose(ranking.scores, taken(order_QK), atol=2e-5)
  if query_type == "image" and image not in OWN_MAPS:  # one adaptation has the order of the sum
    refined = adapter.refine(query, right)
    assert refined.frozen is None  # what an adapter makes of the frozen features is another query
    ids_QK = qat_jax.rank(refined, galleries["image"], 30).ids
    np.testing.assert_allclose(taken(ids_QK), taken(order_QK), atol=2e-5)


def test_scores_of_other_galleries_count_as_cosines():
  experts, levelled = made("experts"), FORMS["levelled"][1] | {"form": "experts", "settings": FORMS["experts"][1]}
  longest = float(experts.variables["constants"]["longest"])
  assert [made(name).scale for name in ("plain", "plda", "levelled")] == [1, 1, 2]
  assert experts.scale == pytest.approx(2**0.5 * longest)
  assert Head("levelled", levelled, {"constants": {"head": experts.variables["constants"]}}).scale == pytest.approx(
    2 * 2**0.5 * longest
  )


def test_without_marks_nothing_changes(adapter, features):
  query = adapter(features, "image")
  assert adapter.refine(query, [np.zeros((0, WIDTH))] * 5) is query
  refined = adapter.refine(query, [features[:2], *[np.zeros((0, WIDTH))] * 4])
  np.testing.assert_array_equal(refined.query[1:], query.query[1:])
  assert not np.allclose(refined.query[0], query.query[0], atol=1e-3)


def test_several_pictures_are_the_sum_of_their_queries(adapter, features):
  each_MD = np.asarray(adapter(features, "image").query)
  mean_D = each_MD.mean(axis=0)
  np.testing.assert_allclose(adapter.together(features).query[0], mean_D / np.linalg.norm(mean_D), atol=1e-6)
  np.testing.assert_array_equal(adapter.together(features[:1]).query, adapter(features[:1], "image").query)


def test_without_an_adapter_marks_go_by_the_query_own_map(gallery_ND, features):
  rng = np.random.default_rng(5)
  left, right = 0.5 * rng.standard_normal((2, 1, WIDTH, 2)).astype(np.float32)
  query = Adaptation(qat_jax.plain(features[:1]).query, np.zeros((1, 1), np.float32), left, right)
  refined = qat_jax.refine(query, gallery_ND[:3], weight=1.0)
  map_DD = left[0] @ right[0].T
  mapped_RD = gallery_ND[:3] @ map_DD.T
  sum_D = np.asarray(query.query)[0] + (mapped_RD / np.linalg.norm(mapped_RD, axis=1, keepdims=True)).mean(axis=0)
  np.testing.assert_allclose(refined.query[0], sum_D / np.linalg.norm(sum_D), atol=1e-5)


@pytest.mark.parametrize(
  ("right", "weight", "message"),
  [
    (np.ones((2, WIDTH)), 2.0, "the marks are one array for 2 queries"),
    ([np.ones((1, WIDTH))], 2.0, "the marks are 1 arrays for 2 queries"),
    ([np.ones((1, WIDTH)), np.ones((1, 3))], 2.0, r"the marks of query 1 have shape \(1, 3\)"),
    ([np.ones((101, WIDTH)), np.ones((1, WIDTH))], 2.0, "query 0 has 101 marks; 100 are the most"),
    ([np.ones((1, WIDTH)), np.zeros((1, WIDTH))], 2.0, "a mark of query 1 is NaN, infinite or zero"),
    ([np.ones((1, WIDTH)), np.ones((1, WIDTH))], -1.0, "the weight of the marks is -1.0"),
  ],
)
def test_marks_that_do_not_fit_are_refused(features, right, weight, message):
  with pytest.raises(ValueError, match=message):
    qat_jax.refine(qat_jax.plain(features[:2]), right, weight)


def test_maps_of_their_own_have_no_single_adaptation(features):
  adapter = Adapter(WIDTH, {"image": made("adaptive")})
  with pytest.raises(ValueError, match=r"use adapter\.refine_terms"):
    adapter.refine(adapter(features[:1], "image"), features[1:3])
  assert marks.MOST == 100
