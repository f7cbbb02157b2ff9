import dataclasses

import jax
import numpy as np
import pytest

import qat_jax
from qat_jax.serve import encoding, ranking
from qat_jax.serve import service as service_module
from qat_jax.serve.aspects import Aspect, Words
from qat_jax.serve.limits import Refused
from qat_jax.serve.searches import Part, Search
from qat_jax.serve.variety import Variety
from qat_jax.types import ArrayGallery

MANY = Aspect.of("many", tuple(f"a {colour} {thing}" for colour in ("red", "blue", "green") for thing in "abcdefghi"))
TWO = Aspect.of("two", ("a red box", "a blue box"))
VAST = Aspect.of(
  "vast",
  tuple(f"a {thing} of {letter} and {other}" for thing in ("box", "cup") for letter in "abcdef" for other in "uvwxy"),
)
WORDS = (Words(alike=(TWO,)), Words(ignore=(TWO, MANY)), Words((MANY,), (TWO,)), Words((VAST,)), Words(ignore=(VAST,)))


def vector(service, seed):
  return np.random.default_rng(seed).standard_normal(service.adapter.width).astype(np.float32)


def ids(ranking):
  return ranking.ids.tolist()


def test_a_batch_of_any_searches_finds_what_rank_finds_of_each(served):
  mask_N = served.items.mask({"colour": "red"})
  searches = [
    Search((Part(text="a red box"),), k=5, mode="both"),
    Search((Part(vector=vector(served, 1), query_type="image"),), k=7, mode="plain"),
    Search((Part(position=4),), k=3, exclude=np.array([4, 1])),
    Search((Part(text="something blue"),), k=30, allowed=np.array([3, 7, 8])),
    Search((Part(text="a red box"),), k=4, allowed=mask_N),
    Search((Part(text="a green box"),), k=4, allowed=np.zeros(0, np.int64)),
  ]
  assert mask_N.sum() == 12
  for job, found in zip(searches, served.search(searches), strict=True):
    assert found.query_type == ("text" if job.parts[0].text else "image")
    for side in ("plain", "adapted"):
      ranking = getattr(found, side)
      assert (ranking is not None) == (job.mode in (side, "both"))
      if ranking is None:
        continue
      query_QD = found.feature[None]
      plain = side == "plain"
      adaptation = qat_jax.plain(jax.numpy.asarray(query_QD)) if plain else served.adapter(query_QD, found.query_type)
      gallery = served.frozen if plain else served.prepared[found.query_type]
      allowed = None if job.allowed is None else np.isin(np.arange(36), job.allowed)
      allowed = job.allowed if job.allowed is not None and job.allowed.dtype == bool else allowed
      exclude = None if job.exclude is None else job.exclude[None]
      wanted = qat_jax.rank(adaptation, gallery, job.k, exclude=exclude, allowed=allowed)
      there = wanted.ids[0] >= 0
      assert ids(ranking) == wanted.ids[0][there].tolist()
      np.testing.assert_allclose(ranking.scores, wanted.scores[0][there], atol=2e-6)


def test_parts_of_a_query_go_through_their_own_heads_and_their_scores_add_as_wide_as_plain_ones(served):
  words, picture = Part(text="in red", weight=0.5), Part(position=3)
  job = Search((picture, words), k=36, mode="both")
  (found,) = served.search([job])
  (text,), (image,) = (served.planner.features([Search((part,))]) for part in (words, picture))
  mixed_D = image.feature + 0.5 * text.feature
  np.testing.assert_allclose(found.feature, mixed_D / np.linalg.norm(mixed_D), atol=1e-6)
  assert (
    found.query_type == "image" and served.planned(dataclasses.replace(job, query_type="text")).query_type == "text"
  )
  score = lambda one, name: np.asarray(qat_jax.score(served.adapter(one.feature[None], name), served.prepared[name]))[0]
  plain = lambda one: np.asarray(qat_jax.score(qat_jax.plain(one.feature[None]), served.frozen))[0]
  scores = {one: (score(part, one), np.std(plain(part))) for one, part in (("image", image), ("text", text))}
  weight = {
    name: part * spread / np.std(scores_N)
    for (name, (scores_N, spread)), part in zip(scores.items(), (1, 0.5), strict=True)
  }
  score_N = sum(weight[name] * scores_N for name, (scores_N, _) in scores.items()) / sum(weight.values())
  assert ids(found.adapted) == np.argsort(-score_N, kind="stable").tolist()
  np.testing.assert_allclose(found.adapted.scores, score_N[found.adapted.ids], atol=2e-6)


def test_a_head_that_tells_items_apart_by_rounding_alone_is_not_scaled_up(open_shop, monkeypatch):
  service, words, picture = open_shop(), Part(text="in red", weight=0.5), Part(position=3)
  adapt, mean_D = service.planner.adapt, np.asarray(service.frozen[:]).mean(axis=0)

  def flat(query_type, feature_QD):
    """Adapts texts so that T maps every item to one direction: the scores of all items are one number."""
    adaptation = adapt(query_type, feature_QD)
    if query_type != "text":
      return adaptation
    one_QDR = np.zeros_like(adaptation.left)
    one_QDR[:, :, 0] = mean_D
    return adaptation.replace(gate=np.zeros_like(adaptation.gate), left=one_QDR, right=one_QDR)

  monkeypatch.setattr(service.planner, "adapt", flat)
  alone, mixed = service.search([Search((picture,), k=36), Search((picture, words), k=36)])
  (text,) = service.search([Search((words,), k=36)])
  assert np.ptp(text.adapted.scores) < 1e-6 and np.ptp(alone.adapted.scores) > 0.01
  assert ids(mixed.adapted) == ids(alone.adapted)  # scaled up, rounding would have the word
  by_head = {term.head: term.weight for term in service.planned(Search((picture, words))).terms["adapted"]}
  assert by_head["text"] == words.weight and by_head["image"] != picture.weight


def test_parts_through_one_head_without_a_map_are_one_inner_product(served):
  parts = (Part(position=3), Part(position=8, weight=0.5), Part(position=5, weight=-0.25))
  (term,) = served.planned(Search(parts)).terms["adapted"]
  rows_QD = np.asarray(served.frozen[np.array([3, 8, 5])], np.float32)
  score_QN = np.asarray(qat_jax.score(served.adapter(rows_QD, "image"), served.prepared["image"]))
  expected_N = np.array([1, 0.5, -0.25]) @ score_QN
  (score_N,) = served.ranker.scores([(term, np.arange(36))])
  np.testing.assert_allclose(term.weight * score_N, expected_N, atol=2e-6)


def test_a_text_that_is_longer_than_the_encoder_reads_is_said_to_be_cut(served):
  most = served.encoder.max_tokens
  short, long = (served.planner.features([Search((Part(text=" ".join(["red"] * count)),))])[0] for count in (3, most))
  assert short.notes == [] and f"reads {most} tokens" in long.notes[0]


def test_what_cannot_be_searched_is_refused_and_the_rest_of_the_batch_is_answered(served):
  searches = [
    Search((Part(text="a red box"),), k=2),
    Search((Part(vector=np.full(served.adapter.width, np.nan, np.float32), query_type="text"),)),
    Search((Part(vector=vector(served, 0)),)),
    Search((Part(position=1), Part(position=1, weight=-1.0))),
  ]
  fine, *refused = served.search(searches)
  assert len(fine.adapted.ids) == 2
  assert [type(one) for one in refused] == [Refused] * 3
  assert [word in str(one) for word, one in zip(("NaN", "query_type", "cancel"), refused, strict=True)] == [True] * 3


def test_a_gallery_that_breaks_while_it_is_served_is_said_and_plain_search_goes_on(open_shop):
  broken = open_shop()
  rows_ND = np.asarray(broken.prepared["text"][:]).copy()
  rows_ND[7] = np.nan
  broken.galleries["text"] = qat_jax.as_gallery(rows_ND)
  (error,), (fine,) = (broken.search([Search((Part(text="a red box"),), mode=mode)]) for mode in ("adapted", "plain"))
  assert error.status == 503 and "item 7 is NaN" in str(error)
  assert len(fine.plain.ids) == 20


def test_after_warming_no_search_compiles(open_shop, monkeypatch):
  monkeypatch.setattr(encoding, "SIZES", (1, 4))
  warmed = open_shop()
  warmed.warm()
  compiled = []
  listen = lambda name, seconds, **about: compiled.append(name) if "backend_compile" in name else None
  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    for size in (1, 2, 3, 4, 5):
      for mode, k in (("plain", 5), ("adapted", 30), ("both", 20)):
        texts = [Search((Part(text=f"a red box {i}"),), k=k, mode=mode) for i in range(size)]
        images = [Search((Part(position=i),), k=k, mode=mode, exclude=np.array([i])) for i in range(size)]
        few = [dataclasses.replace(job, allowed=np.arange(5)) for job in texts]
        both = [dataclasses.replace(job, parts=(*job.parts, Part(position=7))) for job in texts]
        marked = [job.with_right([8, 9, 10][: 1 + i % 3]) for i, job in enumerate(texts)]
        marked += [job.with_right(np.arange(1, 1 + 7 * i)) for i, job in enumerate(images)]
        words = [dataclasses.replace(job, words=WORDS[i % len(WORDS)]) for i, job in enumerate(images)]
        varied = [dataclasses.replace(job, variety=Variety(i % 2 == 0, 0.3)) for i, job in enumerate([*texts, *few])]
        kinds = {"text": texts, "image": images, "few": few, "both": both, "marked": marked, "words": words}
        kinds["varied"] = varied
        for kind, jobs in kinds.items():
          assert not [found for found in warmed.search(jobs) if isinstance(found, Exception)]
          assert compiled == [], (kind, size, mode)
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)


def test_why_gives_the_rank_before_and_after_and_a_score_that_is_numerator_over_length(served):
  job = Search((Part(text="a red box"),), k=36, mode="both")
  (found,) = served.search([job])
  positions = np.array([3, 17])
  _, how, items = served.why(job, positions)
  for side in ("plain", "adapted"):
    order = ids(getattr(found, side))
    assert [item[side]["rank"] for item in items] == [order.index(p) + 1 for p in positions]
    for item in items:
      assert item[side]["score"] == pytest.approx(item[side]["numerator"] / item[side]["length"], rel=1e-4)
  assert how["remembered"] == [] and -1 <= how["cosine"] < 1


@pytest.mark.parametrize("index", ["scann", "faiss"])
def test_an_index_s_shortlist_is_ranked_exactly(open_shop, served, index):
  pytest.importorskip(index)
  indexed, job = open_shop(index=index), Search((Part(text="a red box"),), k=9, exclude=np.array([0]))
  (exact,), (found,) = served.search([job]), indexed.search([job])
  assert ids(found.adapted) == ids(exact.adapted)
  grouped = dataclasses.replace(job, group=served.items.groups("colour"))
  (exact,), (found,) = served.search([grouped]), indexed.search([grouped])
  assert len(ids(found.adapted)) == 3 and ids(found.adapted) == ids(exact.adapted)


def test_a_service_without_encoder_takes_items_and_vectors_and_says_so_of_the_rest(open_shop):
  bare = open_shop(encoder="none")
  text, item = bare.search([Search((Part(text="a red box"),)), Search((Part(position=1),))])
  assert "encodes no text" in str(text) and len(item.adapted.ids) == 20
  with pytest.raises(Refused, match="no encoder"):
    bare.encoding.pixels(None)


def test_a_memory_is_asked_what_it_remembered(served):
  rng = np.random.default_rng(0)
  unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
  pairs = {
    name: unit(rng.standard_normal((8, served.adapter.width))).astype(np.float32) for name in ("queries", "images")
  }
  pairs["images"][2] = np.asarray(served.frozen[np.array([11])])[0]
  constants = pairs | {"temperature": np.float32(0.1), "scale": np.float32(1)}
  head = qat_jax.Head("neighbours", {"pairs": 8}, {"params": {}, "constants": constants})
  adapter = qat_jax.Adapter(served.adapter.width, {"text": head})
  other = service_module.Service(adapter, served.items, served.frozen, {"text": served.frozen})
  job = Search((Part(vector=pairs["queries"][2], query_type="text"),))
  _, how, _ = other.why(job, np.array([0]))
  first = how["remembered"][0]
  assert first["position"] == 11 and first["cosine"] == pytest.approx(1, abs=1e-5) and how["pairs"] == 8
  assert first["share"] == max(one["share"] for one in how["remembered"])


@pytest.mark.parametrize("levelled", [False, True])
def test_the_expert_of_a_query_is_named_with_how_alike_its_images_are(served, levelled):
  width, rng = served.adapter.width, np.random.default_rng(0)
  frozen_ND = np.asarray(served.frozen[:])
  mean_KD = frozen_ND[[4, 9, 17]]
  settings = {"form": "plain", "settings": {}, "experts": 3}
  head = qat_jax.Head("experts", settings, {"params": {}, "constants": {}})
  constants = head.initialise(width)["constants"] | {"query_mean": mean_KD, "direction": mean_KD}
  head = qat_jax.Head("experts", settings, {"params": {}, "constants": constants})
  if levelled:
    wide = {"form": "experts", "settings": settings, "queries": 2, "items": width + 4, "nearest": 1}
    constants = {"head": constants, "queries": rng.normal(size=(2, width + 4)).astype(np.float32)}
    made = qat_jax.Head("levelled", wide, {"params": {}, "constants": {}}).initialise(width)["constants"]
    head = qat_jax.Head("levelled", wide, {"params": {}, "constants": made | constants})
  adapter = qat_jax.Adapter(width, {"image": head})
  gallery = adapter.prepare(ArrayGallery(frozen_ND), "image")
  other = service_module.Service(adapter, served.items, served.frozen, {"image": gallery})
  _, how, _ = other.why(Search((Part(vector=frozen_ND[9], query_type="image"),)), np.array([0]))
  assert how["expert"] == {"number": 1, "of": 3, "cosine": pytest.approx(1, abs=1e-5), "position": 9}


def test_a_projected_query_is_not_compared_with_what_it_was(served):
  width = served.adapter.width
  along = {"directions": np.eye(width, dtype=np.float32)[::-1]}
  settings = {"form": "plain", "settings": {}, "items": width, "narrow": width}
  adapter = qat_jax.Adapter(width, {"text": qat_jax.Head("projected", settings, {"params": {}, "constants": along})})
  gallery = adapter.prepare(ArrayGallery(np.asarray(served.frozen[:])), "text")
  other = service_module.Service(adapter, served.items, served.frozen, {"text": gallery})
  vector = np.asarray(served.frozen[np.array([3])])[0]
  _, how, _ = other.why(Search((Part(vector=vector, query_type="text"),)), np.array([0]))
  assert how["cosine"] is None


def test_an_order_that_is_not_proven_says_so(served, monkeypatch):
  job = Search((Part(text="a red box"), Part(position=3)), k=5)
  (found,) = served.search([job])
  assert found.notes == []
  monkeypatch.setattr(ranking, "rank_sum", lambda terms, k, **_: (qat_jax.rank(terms[0][0], terms[0][1], k), [False]))
  (found,) = served.search([job])
  assert "not proven for all" in found.notes[0] and len(found.adapted.ids) == 5
