"""The service of a gallery whose shards lie on a cluster answers as that of one folder does."""

import dataclasses
import os

import numpy as np
import pytest

from qat_jax.adapter import Adapter
from qat_jax.features.store import write_features
from qat_jax.serve.limits import Limits, Refused
from qat_jax.serve.opening import Settings, open_service
from qat_jax.serve.searches import Part, Search
from qat_jax.serve.web.state import State
from tests.vectors import features

ROWS, WIDTH, LIMITS = (300, 1, 200), 8, Limits(seconds=5)


@pytest.fixture(scope="module")
def places(head, tmp_path_factory):
  """Returns the settings of one folder, and those of the same items in three."""
  root, rng = tmp_path_factory.mktemp("served"), np.random.default_rng(0)
  item_ND = features(sum(ROWS), WIDTH, rng)
  item_ND[[20, 300, 400]] = item_ND[20]
  columns = {"id": [f"i{i}" for i in range(len(item_ND))], "price": list(range(len(item_ND)))}
  columns["kind"] = [f"k{i % 7}" for i in range(len(item_ND))]
  folders = [("all", 0, len(item_ND)), *((str(i), sum(ROWS[:i]), rows) for i, rows in enumerate(ROWS))]
  for name, first, rows in folders:
    some = {key: values[first : first + rows] for key, values in columns.items()}
    if name == "1":
      del some["kind"]  # a column that a shard lacks
    write_features(root / name, {"img": item_ND[first : first + rows]}, some, {"encoder": "e"})
  Adapter(WIDTH, {name: head("adaptive", hidden=8, rank=2, token_hidden=8) for name in ("text", "image")}).save(
    root / "a"
  )
  one = Settings(str(root / "a"), str(root / "all"), encoder="none")
  return one, dataclasses.replace(
    one, gallery=tuple(str(root / str(i)) for i in range(len(ROWS))), cluster="auto", replicas=2
  )


@pytest.fixture(scope="module")
def both(cluster, places):
  services = [open_service(settings, LIMITS) for settings in places]
  yield services
  services[1].close()


def searches(items):
  vectors = np.random.default_rng(1).standard_normal((4, WIDTH)).astype(np.float32)
  kinds = items.groups("price")
  text = [Part(vector=vector, query_type="text") for vector in vectors]
  yield Search((text[0],), 20, "both")
  yield Search((Part(position=20),), 20, "both")
  yield Search((text[1],), 50, "both", exclude=np.array([20, 300]))
  yield Search((text[1],), 5, "both", allowed=items.mask({"price": {"least": 290, "most": 320}}))
  yield Search((text[2],), 30, "both", group=kinds // 10)
  yield Search((text[3], Part(position=310, weight=0.5)), 20, "both").with_right([20, 450])
  yield Search((text[0],), 400, "adapted")


def same(one, other):
  for side in ("plain", "adapted"):
    ranking, theirs = getattr(one, side), getattr(other, side)
    assert (ranking is None) == (theirs is None)
    if ranking is not None:
      np.testing.assert_array_equal(ranking.ids, theirs.ids)
      np.testing.assert_allclose(ranking.scores, theirs.scores, rtol=0, atol=2e-7)
  return True


def test_every_search_answers_as_in_one_process(both):
  one, other = both
  assert len(other.items) == sum(ROWS) and other.about["gallery"]["where"] == "3 shards on a cluster, 2 of each"
  assert other.items.records([299, 300, 301]) == [
    {"id": "i299", "metadata": {"price": 299, "kind": "k5"}},
    {"id": "i300", "metadata": {"price": 300}},
    {"id": "i301", "metadata": {"price": 301, "kind": "k0"}},
  ]
  jobs = list(searches(one.items))
  for found, theirs in zip(one.search(jobs), other.search(jobs), strict=True):
    assert same(found, theirs)
  for here, there in zip(one.why(jobs[0], np.array([3, 300])), other.why(jobs[0], np.array([3, 300])), strict=True):
    if isinstance(here, list):
      for a, b in zip(here, there, strict=True):
        assert a["adapted"]["rank"] == b["adapted"]["rank"] and abs(a["plain"]["score"] - b["plain"]["score"]) < 1e-6


def test_a_lost_actor_is_no_lost_answer_and_a_lost_shard_is_told(both, ray, caplog):
  one, other = both
  state, jobs = State(LIMITS), list(searches(one.items))
  crew = other.frozen._crew
  ray.kill(crew._members[0][0].actor, no_restart=False)
  for found, theirs in zip(one.search(jobs), state._work([(other, job) for job in jobs]), strict=True):
    assert same(found, theirs)


def test_a_shard_without_actors_is_answered_503(cluster, places, ray, tmp_path):
  service = open_service(dataclasses.replace(places[1], replicas=1), Limits(seconds=1))
  try:
    gallery = service.frozen
    for member in list(gallery._crew._members[1]):
      gallery._crew.retire(member)
    (answer,) = State(LIMITS)._work([(service, next(searches(service.items)))])
    assert isinstance(answer, Refused) and (answer.status, answer.code) == (503, "unreachable")
    assert os.sep not in answer.message
  finally:
    service.close()


def test_what_does_not_fit_a_cluster_is_refused(places):
  for change, said in (
    ({"cluster": "local"}, "add --cluster auto"),
    ({"index": "faiss"}, "searched exactly"),
    ({"gallery": places[0].gallery, "cluster": "local", "on_disk": True, "replicas": 1}, "--on-disk"),
  ):
    with pytest.raises(ValueError, match=said):
      open_service(dataclasses.replace(places[1], **change), LIMITS)
