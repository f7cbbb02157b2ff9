"""A collection is what its changes say, however it was opened, merged, compacted or ended."""

import errno
import os
import random
import shutil

import numpy as np
import pyarrow as pa
import pytest

import qat_jax
from qat_jax.serve.collection import collection as module
from qat_jax.serve.collection.collection import Collection, types_for
from tests.qat_jax.serve.collection.conftest import WIDTH, content, item


def changed(collection, model, rng, numbers):
  """Makes one random change of a collection and of the dictionary that it should equal."""
  names = [f"i{numbers.randrange(60)}" for _ in range(numbers.randint(0, 9))]
  removed = [f"i{numbers.randrange(60)}" for _ in range(numbers.randint(0, 4))]
  items = [
    item(name, rng, {"n": numbers.randrange(9)} if numbers.random() < 0.5 else {}) for name in dict.fromkeys(names)
  ]
  collection.change(items, removed, types_for(collection.items.types, {"n": 1}))
  for name in removed:
    model.pop(name, None)
  for one in items:
    model.pop(one.id, None)
    model[one.id] = one.feature.tobytes(), {**one.metadata, ".content": "", ".stamp": ""}


@pytest.mark.parametrize("seed", range(4))
def test_random_changes_leave_what_they_say_after_merges_compactions_and_restarts(opened, small_blocks, seed):
  collection, model, numbers, rng = opened(), {}, random.Random(seed), np.random.default_rng(seed)
  for _ in range(120):
    changed(collection, model, rng, numbers)
    if numbers.random() < 0.1:
      collection.compact()
    if numbers.random() < 0.1:
      collection = opened()
    assert list(content(collection).items()) == list(model.items())
    assert len(collection) == len(model)
    name = f"i{numbers.randrange(60)}"
    assert (collection.get(name) is not None) == (name in model)
  sizes = [block.capacity for block in collection.snapshot()[1]]
  assert len(sizes) < 12 and sum(sizes) < 8 * len(model) + 64


@pytest.mark.parametrize("moment", ["log begun", "base half written", "base written", "record written"])
def test_a_compaction_that_is_killed_at_any_moment_loses_nothing(opened, monkeypatch, moment):
  collection, rng = opened(), np.random.default_rng(0)
  collection.change([item(f"i{i}", rng) for i in range(5)])
  collection.change(removed=["i1"])

  def dying(*arguments, **more):
    if moment == "base half written":
      (collection.folder / "rows-1/incomplete").mkdir(parents=True)
    if moment in ("base written", "record written"):
      real(*arguments, **more)
    raise KeyboardInterrupt

  name = "write_record" if moment == "record written" else "write_features"
  if moment == "base written":
    name = "write_features"
  real = getattr(module, name)
  monkeypatch.setattr(module, name, dying)
  with pytest.raises(KeyboardInterrupt):
    collection.compact()
  monkeypatch.setattr(module, name, real)
  collection.change([item("after", rng)])
  before = content(collection)
  collection = opened()
  assert content(collection) == before and len(before) == 5
  collection.compact()
  assert content(opened()) == before
  assert sorted(path.name for path in collection.folder.iterdir() if path.name != ".lock") == [
    "collection.json",
    *sorted(path.name for path in collection.folder.glob("log-*")),
    *sorted(path.name for path in collection.folder.glob("rows-*")),
  ]
  assert len(list(collection.folder.glob("rows-*"))) == 1


def test_a_full_disk_changes_nothing_and_says_so(opened, monkeypatch):
  collection, rng = opened(), np.random.default_rng(0)
  collection.change([item("a", rng)])
  before = content(collection)

  def full(*_):
    raise OSError(errno.ENOSPC, "full")

  with monkeypatch.context() as patch:
    patch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="no room"):
      collection.change([item("b", rng)], ["a"])
  assert content(collection) == before == content(opened())


def test_one_process_has_it_and_others_encoders_and_widths_are_refused(opened, tmp_path):
  collection = opened()
  with pytest.raises(BlockingIOError, match="in use"):
    Collection(tmp_path / "data", ("maker", "1"), WIDTH)
  collection.close()
  with pytest.raises(ValueError, match="encoder"):
    Collection(tmp_path / "data", ("other", "1"), WIDTH)
  with pytest.raises(ValueError, match="8 wide"):
    Collection(tmp_path / "data", ("maker", "1"), 9)


def test_the_features_around_a_collection_are_its_base_until_they_change(tmp_path):
  rng = np.random.default_rng(0)
  rows_ND = rng.standard_normal((50, WIDTH)).astype(np.float32)
  columns = {"id": [f"i{i}" for i in range(50)], "price": list(range(50))}
  store = qat_jax.write_features(tmp_path / "outer", {"img": rows_ND}, columns)
  folder = tmp_path / "outer/.qat-jax/maker"
  collection = Collection(folder, ("maker", None), WIDTH, store)
  unit_ND = rows_ND / np.linalg.norm(rows_ND, axis=1, keepdims=True)
  np.testing.assert_allclose(collection.get("i7").feature, unit_ND[7], atol=1e-3)
  collection.change([item("new", rng, {"price": 3})], ["i7"])
  before = content(collection)
  collection.close()
  shutil.rmtree(tmp_path / "outer/img_emb")
  shutil.rmtree(tmp_path / "outer/metadata")
  (tmp_path / "outer/meta.json").unlink()
  other = qat_jax.write_features(tmp_path / "elsewhere", {"img": rows_ND[:40]}, {"id": columns["id"][:40]})
  with pytest.raises(ValueError, match="not those that it was begun with"):
    Collection(folder, ("maker", None), WIDTH, other)
  again = Collection(folder, ("maker", None), WIDTH, store.__class__.open(_copy(store, tmp_path, rows_ND, columns)))
  assert content(again) == before
  again.compact()
  again.close()
  alone = Collection(folder, ("maker", None), WIDTH)
  assert content(alone).keys() == before.keys()
  alone.close()


def _copy(store, tmp_path, rows_ND, columns):
  return qat_jax.write_features(tmp_path / "copy", {"img": rows_ND}, columns).folder


def test_columns_widen_where_that_is_allowed_and_values_of_another_type_are_named():
  known = {"price": pa.int64(), "name": pa.string(), "day": pa.date32()}
  assert types_for(known, {"price": 3, "new": True, "gone": None}) == {"new": pa.bool_()}
  assert types_for(known, {"day": "2026-01-31"}) == {}
  for metadata in ({"price": 2.5}, {"price": "much"}, {"name": 3}, {"price": True}, {"day": "soon"}):
    with pytest.raises(ValueError, match=next(iter(metadata))):
      types_for(known, metadata)
  assert types_for(known, {"price": 2.5, "name": 3}, widen=True) == {"price": pa.float64()}
  assert types_for(known, {"price": "much"}, widen=True) == {"price": pa.string()}


def test_widened_columns_keep_their_values(opened, small_blocks):
  collection, rng = opened(), np.random.default_rng(0)
  collection.change([item(f"i{i}", rng, {"price": i}) for i in range(6)], types={"price": pa.int64()})
  collection.change([item("x", rng, {"price": "much"})], types={"price": pa.string()})
  wanted = {**{f"i{i}": str(i) for i in range(6)}, "x": "much"}
  for one in (collection, opened()):
    assert {name: about["price"] for name, (_, about) in content(one).items()} == wanted
