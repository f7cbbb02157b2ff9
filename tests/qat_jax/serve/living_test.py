"""A collection is searched exactly at every moment: as a gallery of the same items made anew, bit for bit."""

import numpy as np
import pyarrow as pa
import pytest

import qat_jax
from qat_jax.models.head import Head
from qat_jax.search.kernels import _upper_bounds
from qat_jax.serve import living as module
from qat_jax.serve import ranking as ranking_module
from qat_jax.serve.collected import Collected
from qat_jax.serve.collection import blocks
from qat_jax.serve.collection.collection import Collection, types_for
from qat_jax.serve.living import Living
from qat_jax.serve.searches import Part, Search
from qat_jax.serve.service import Service
from qat_jax.serve.web.views import found_json
from qat_jax.types import Pieces
from tests.heads import moved
from tests.qat_jax.serve.collection.conftest import WIDTH, item
from tests.qat_jax.serve.collection.conftest import opened as opened

CAPACITIES = (8, 64, 512)


@pytest.fixture
def small(monkeypatch):
  monkeypatch.setattr(blocks, "SIZES", CAPACITIES)
  monkeypatch.setattr(module, "CAPACITIES", CAPACITIES)
  monkeypatch.setattr(module, "PREPARED_ROWS", 8)


def template(adapter=None):
  adapter = adapter or qat_jax.Adapter(WIDTH, {name: Head("plain", {}, {}) for name in ("text", "image")})
  empty = lambda space: Pieces((np.ones((1, WIDTH)),), (0,), (np.zeros(0, bool),), space)
  prepared = {name: empty(head.space) for name, head in adapter.heads.items()}
  return Service(adapter, Collected([]), empty("frozen"), prepared)


def show(collection, adapter=None):
  """Returns the service of a collection as it is."""
  shown = []
  Living(collection, template(adapter), shown.append).publish()
  return shown[-1]


def answers(service, rng):
  """Returns what some searches find: ids and scores."""
  found, vectors = [], rng.standard_normal((3, WIDTH)).astype(np.float32)
  for k, more in ((5, {}), (100, {}), (5, {"filters": {"n": {"least": 3}}}), (5, {"exclude": ["i3", "i7"]})):
    allowed = service.items.mask(more["filters"]) if "filters" in more else None
    exclude = service.items.known(more.get("exclude", []))[0]
    jobs = [Search((Part(vector=v, query_type="image"),), k, "both", exclude=exclude, allowed=allowed) for v in vectors]
    jobs.append(jobs[0].with_right(service.items.known(["i1", "i2"])[0]))
    for one in service.search(jobs):
      assert not isinstance(one, Exception), one
      for ranking in (one.plain, one.adapted):
        found.append(([service.items.id(p) for p in ranking.ids.tolist()], ranking.scores.tobytes()))
  return found


@pytest.fixture(scope="module")
def mapping():
  """An adapter that maps the gallery for pictures."""
  image = moved("static", WIDTH, {"maps_gallery": True})
  return qat_jax.Adapter(WIDTH, {"text": Head("plain", {}, {}), "image": image})


@pytest.mark.parametrize("maps", [False, True])
def test_answers_are_those_of_a_collection_made_anew_bit_for_bit(opened, small, tmp_path, mapping, maps):
  collection, rng = opened(), np.random.default_rng(1)
  adapter = mapping if maps else None
  for step in range(30):
    items = [item(f"i{rng.integers(150)}", rng, {"n": int(rng.integers(9))}) for _ in range(7)]
    collection.change(
      {one.id: one for one in items}.values(), [f"i{i}" for i in rng.integers(0, 150, 3)], {"n": pa.int64()}
    )
    if step % 10 == 9:
      collection.compact()
  service = show(collection, adapter)
  living = [one for block in collection.snapshot()[1] for one in block.living()[1].column("id").to_pylist()]
  fresh = Collection(tmp_path / "fresh", ("maker", "1"), WIDTH)
  fresh.change([collection.get(name) for name in living], types={"n": pa.int64()})
  wanted = answers(show(fresh, adapter), np.random.default_rng(5))
  fresh.close()
  assert answers(service, np.random.default_rng(5)) == wanted
  assert answers(show(opened(), adapter), np.random.default_rng(5)) == wanted
  assert service.items.count == len(living) and service.items.known(living)[1] == []


@pytest.mark.parametrize("maps", [False, True])
def test_large_blocks_have_an_index_and_the_others_are_searched_exactly(opened, small, monkeypatch, mapping, maps):
  pytest.importorskip("faiss")
  monkeypatch.setattr(module, "INDEXED", 64)
  monkeypatch.setattr(ranking_module, "SHORTLIST", 60)
  collection, rng, shown, asked = opened(), np.random.default_rng(1), [], []
  living = Living(collection, template(mapping if maps else None), shown.append, index="faiss")
  living._stop.wait = lambda seconds: bool(asked.append(seconds)) or len(asked) % 8 == 0  # so many turns of a thread
  for step in range(24):
    items = [item(f"i{rng.integers(900)}", rng, {"n": int(rng.integers(9))}) for _ in range(40)]
    gone = [f"i{i}" for i in rng.integers(0, 900, 5)]
    collection.change({one.id: one for one in items}.values(), gone, {"n": pa.int64()})
    if step % 6 == 5:
      living.publish()
      living._index()
  collection.change([item("last", rng, {"n": 1})], ["i5", "i6", "i7"])
  living.publish()
  indexes = shown[-1].ranker.indexes["image"]
  counts = shown[-1].galleries["image"].counts
  assert {place for place, count in enumerate(counts) if count >= 64} >= set(indexes) and max(indexes) > 0
  assert min(counts) < 64 and not all(map(np.all, shown[-1].galleries["image"].alive))
  monkeypatch.setattr(ranking_module, "SHORTLIST", 900)  # all that there is: then nothing may differ
  assert answers(shown[-1], np.random.default_rng(5)) == answers(
    show(collection, living.template.adapter), np.random.default_rng(5)
  )


def test_an_index_that_cannot_be_made_leaves_the_block_exact_and_is_told(opened, small, monkeypatch, caplog):
  monkeypatch.setattr(module, "INDEXED", 64)
  collection, rng, shown = opened(), np.random.default_rng(1), []
  collection.change([item(f"i{i}", rng) for i in range(100)])
  living = Living(collection, template(), shown.append, index="faiss")
  living.publish()
  turns = iter([False, True, True])
  living._stop.wait = lambda seconds: next(turns)
  monkeypatch.setattr(module, "index_of", lambda *_: 1 / 0)
  living._index()
  assert "searched exactly" in caplog.text and not shown[-1].ranker.indexes
  assert (
    len(shown) == 1 and shown[-1].search([Search((Part(vector=np.ones(WIDTH), query_type="image"),), 5)])[0].adapted
  )


def test_groups_and_columns_are_those_of_all_living_items(opened, small):
  collection, rng = opened(), np.random.default_rng(0)
  collection.change([item(f"i{i}", rng, {"n": i % 9}) for i in range(70)], types={"n": pa.int64()})
  collection.change([item("late", rng, {"word": "x"})], [f"i{i}" for i in range(0, 70, 9)], {"word": pa.string()})
  service = show(collection)
  assert service.items.facets["word"]["values"] == ["x"] and service.items.facets["n"]["most"] == 8
  job = Search((Part(vector=np.ones(WIDTH, np.float32), query_type="image"),), 70, "plain")
  one, grouped = service.search([job, Search(job.parts, 20, "plain", group=service.items.groups("n"))])
  groups = [record["metadata"].get("n") for record in service.items.records(one.plain.ids)]
  best = [groups.index(n) for n in dict.fromkeys(groups)]
  assert len(best) == 9 and grouped.plain.ids.tolist() == one.plain.ids[best].tolist()


def test_words_are_measured_on_the_living_items_alone(opened, small):
  collection, rng = opened(), np.random.default_rng(0)
  collection.change([item(f"i{i}", rng) for i in range(300)])
  before = show(collection).planner.sample
  collection.change(removed=[f"i{i}" for i in range(0, 300, 2)])
  after = show(collection)
  assert len(before) == 300 and len(after.planner.sample) == 150
  np.testing.assert_array_equal(after.planner.sample, before[1::2])


def test_a_search_compiles_nothing_while_the_collection_grows(opened, small):
  collection, rng = opened(), np.random.default_rng(0)
  shown, allowed = [], []
  living = Living(collection, template(), shown.append, allowed.append)
  living.publish()
  job = Search((Part(vector=np.ones(WIDTH, np.float32), query_type="image"),), 20)
  for count in range(0, 100, 5):
    collection.change([item(f"i{count + i}", rng) for i in range(5)], [f"i{count // 2}"])
    living.publish()
    before = _upper_bounds._cache_size()
    (found,) = shown[-1].search([job])
    assert not isinstance(found, Exception)
    assert _upper_bounds._cache_size() == before
  assert {capacity for capacity, _ in living._warm} == {8, 64}
  while len(living.batches) < 4:
    living._compile_next()
  assert allowed == [8, 16, 32]


def test_an_empty_collection_answers_and_one_that_was_emptied_too(opened, small):
  collection, rng = opened(), np.random.default_rng(0)
  job = Search((Part(vector=np.ones(WIDTH, np.float32), query_type="image"),), 5, "both")
  for _ in range(2):
    (found,) = show(collection).search([job])
    assert len(found.plain.ids) == 0 == len(found.adapted.ids)
    assert "none is there yet" in found_json(show(collection), found, 5, [], 0.0)["notes"][-1]
    collection.change([item("a", rng)], types_for({}, {}))
    collection.change(removed=["a"])


def test_changes_are_shown_within_two_seconds_by_threads_of_its_own(opened, small):
  import time

  collection, rng, shown = opened(), np.random.default_rng(0), []
  living = Living(collection, template(), shown.append)
  living.start()
  try:
    collection.change([item("a", rng)])
    until = time.monotonic() + 30  # this machine may be busy
    while not living.is_settled and time.monotonic() < until:
      time.sleep(0.01)
    assert shown[-1].items.known(["a"])[1] == []
  finally:
    living.stop()
