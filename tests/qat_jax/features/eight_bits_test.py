"""An 8-bit copy beside features: no bit of a ranking changes, and a copy of other features is never used."""

import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import qat_jax
from qat_jax.adaptation import unit
from qat_jax.features import eight_bits, prepared
from qat_jax.features.store import FeatureStore, write_features
from qat_jax.sealed import read_record, write_record
from qat_jax.search import coarse, copies, exact, gallery, kernels
from qat_jax.types import Adaptation

ITEMS, WIDTH, SHARD = 900, 24, 256


def features(rng, kind: str = "random") -> np.ndarray:
  item_ND = rng.standard_normal((ITEMS, WIDTH))
  if kind == "ties":
    item_ND = item_ND[rng.integers(0, 30, ITEMS)]
  elif kind == "cone":
    item_ND = np.where(np.arange(WIDTH) < 2, 30, 1) * (rng.standard_normal(WIDTH) + 0.1 * item_ND)
  return unit(item_ND)


def written(folder, item_ND: np.ndarray, dtype: str = "float16") -> FeatureStore:
  columns = {"id": [str(i) for i in range(len(item_ND))], "colour": [f"c{i % 40}" for i in range(len(item_ND))]}
  return write_features(folder, {"img": item_ND.astype(dtype)}, columns, rows_per_shard=SHARD)


def adaptation(rng, rank: int = 3, queries: int = 3) -> Adaptation:
  left, right = 0.2 * rng.standard_normal((2, queries, WIDTH, rank)).astype(np.float32)
  query_QD = np.float32(unit(rng.standard_normal((queries, WIDTH))))
  return Adaptation(query_QD, np.ones((queries, 1), np.float32), left, right)


@pytest.fixture
def stored(tmp_path):
  store = written(tmp_path / "gallery", features(np.random.default_rng(0)))
  store.write_eight_bits()
  return FeatureStore.open(store.folder)


@pytest.fixture
def looks(monkeypatch):
  """Notes what was looked at: whether bounds came from 8 bits."""
  noted, filtered = [], exact.filtered
  monkeypatch.setattr(exact, "filtered", lambda *args: noted.append((found := filtered(*args)).coarse) or found)
  return noted


def ranked(store: FeatureStore, own: Adaptation, **how) -> list[np.ndarray]:
  found = qat_jax.rank(own, store, how.pop("k", 10), **how)
  return [found.ids, found.scores]


def assert_same(store: FeatureStore, own: Adaptation, **how) -> None:
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv(coarse.SWITCH, "float32")
    plain = ranked(store, own, **how)
  for one, other in zip(plain, ranked(store, own, **how), strict=True):
    np.testing.assert_array_equal(one, other)


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_no_bit_of_a_streamed_ranking_changes(tmp_path_factory, data):
  pick = lambda *values: data.draw(st.sampled_from(values))
  rng = np.random.default_rng(data.draw(st.integers(0, 1 << 30)))
  store = written(
    tmp_path_factory.mktemp("g") / "gallery", features(rng, pick("random", "ties", "cone")), pick("float16", "float32")
  )
  store.write_eight_bits()
  masks = {
    "exclude": lambda: {"exclude": rng.integers(-1, ITEMS, (3, 5))},
    "flags": lambda: {"allowed": rng.random(ITEMS) < 0.3},
    "group": lambda: {"group": "colour"},
    "none left": lambda: {"exclude": np.tile(np.arange(ITEMS), (3, 1))},
    "nothing": dict,
  }[pick("nothing", "exclude", "flags", "group", "none left")]()
  own = adaptation(rng, pick(0, 3, 20))
  looks, filtered = [], exact.filtered
  with pytest.MonkeyPatch.context() as patch:
    kind = pick("int8", "float32")
    patch.setattr(kernels, "quicker_kind", lambda: kind)
    patch.setattr(exact, "MANY", pick(exact.MANY, 1))
    patch.setattr(copies, "GATHERED", pick((256, 1024, 4096), (16, 64)))
    patch.setattr(exact, "filtered", lambda *args: looks.append((found := filtered(*args)).coarse) or found)
    assert_same(store, own, k=pick(1, 10, 80), chunk_rows=pick(None, 300, 256), **masks)
  assert any(looks)


@pytest.mark.parametrize("kind", ["random", "cone"])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_what_is_read_back_leaves_out_no_more_than_it_says(tmp_path, kind, dtype):
  store = written(tmp_path / "gallery", features(np.random.default_rng(3), kind), dtype)
  store.write_eight_bits()
  for start, stop in ((0, ITEMS), (200, 600)):  # across shards
    copy, item_ND = store.eight_bits[start:stop], store[start:stop].astype(float)
    values_ND, scale_N, step_D = (np.float64(x) for x in (copy.values, copy.scale, copy.step))
    rest_ND = item_ND - copy.centre - scale_N[:, None] * step_D * values_ND
    assert (np.linalg.norm(rest_ND, axis=1) <= copy.error).all()
    assert (np.linalg.norm(rest_ND / step_D, axis=1) <= copy.step_error).all()
    assert (scale_N * np.linalg.norm(values_ND, axis=1) <= copy.reach).all()
    assert (np.asarray(copy.error) < 0.05).all()
    square_N = np.square(item_ND).sum(axis=1)
    assert store.eight_bits.lengths[0] <= square_N.min() and square_N.max() <= store.eight_bits.lengths[1]


def flipped(path) -> None:
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 64
  path.write_bytes(data)


def edited(path, **entries) -> None:
  write_record(path, read_record(path) | entries)


DAMAGES = {
  "a flipped byte": lambda folder: flipped(folder / "img_emb_0001.int8"),
  "a truncated copy": lambda folder: os.truncate(folder / "img_emb_0001.int8", 1000),
  "a missing copy": lambda folder: (folder / "img_emb_0001.int8").unlink(),
  "another shard's copy": lambda folder: os.replace(folder / "img_emb_0002.int8", folder / "img_emb_0001.int8"),
  "a changed shard": lambda folder: flipped(folder / "img_emb_0001.npy"),
  "shards in another order": lambda folder: [
    os.replace(folder / f"img_emb_000{i}.{end}", folder / f"img_emb_000{j}.{end}")
    for i, j in ((0, 9), (1, 0), (9, 1))
    for end in ("npy", "int8")
  ],
  "another format": lambda folder: edited(folder / "eight_bits.json", format=2),
  "an edited record": lambda folder: (folder / "eight_bits.json").write_text(
    (folder / "eight_bits.json").read_text().replace('"reach": ', '"reach": 0')
  ),
  "a record of fewer shards": lambda folder: edited(
    folder / "eight_bits.json", shards=read_record(folder / "eight_bits.json")["shards"][:-1]
  ),
  "a record without its entries": lambda folder: write_record(folder / "eight_bits.json", {"format": 1}),
  "no JSON": lambda folder: (folder / "eight_bits.json").write_text("{"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_copy_that_does_not_fit_is_named_and_left_out(stored, looks, caplog, damage):
  own = adaptation(np.random.default_rng(1))
  DAMAGES[damage](stored.folder / "img_emb")
  store = FeatureStore(stored.folder, "img", {})
  assert_same(store, own)
  assert not any(looks) and store.eight_bits is None
  assert str(stored.folder / "img_emb") in caplog.text and "qat-jax eight-bits" in caplog.text
  store.write_eight_bits()
  assert_same(store, own)
  assert any(looks)


@pytest.mark.parametrize("settled", [True, False])
def test_a_folder_that_was_moved_keeps_its_copy(stored, monkeypatch, settled, looks):
  monkeypatch.setattr(eight_bits, "SETTLED_NS", 0 if settled else 1 << 62)
  stored.write_eight_bits()
  record = read_record(stored.folder / "img_emb" / eight_bits.RECORD)
  assert {shard[key]["state"] is None for shard in record["shards"] for key in ("copy", "features")} == {not settled}
  for path in (stored.folder / "img_emb").iterdir():  # as copying does
    os.utime(path, (1, 1))
  assert_same(FeatureStore.open(stored.folder), adaptation(np.random.default_rng(1)))
  assert any(looks)


def test_a_file_whose_state_is_known_is_not_read_to_open_the_copy(stored, monkeypatch):
  monkeypatch.setattr(eight_bits, "SETTLED_NS", 0)
  stored.write_eight_bits()
  monkeypatch.setattr(eight_bits, "changed", lambda written: next(iter(written), None))
  assert FeatureStore.open(stored.folder).eight_bits is not None
  flipped(stored.folder / "img_emb" / "img_emb_0000.int8")
  assert FeatureStore.open(stored.folder).eight_bits is None


@pytest.mark.parametrize("name", ["img_emb_0003.npy", "img_emb_0003.int8"])
def test_what_is_changed_while_it_is_open_is_named(stored, name):
  assert stored.eight_bits is not None
  flipped(stored.folder / "img_emb" / name)
  with pytest.raises(OSError, match=f"{name} was changed while it was open"):
    ranked(stored, adaptation(np.random.default_rng(1)))


@pytest.mark.parametrize("value", [np.nan, 0.5])
def test_rows_that_are_not_unit_get_no_copy(stored, value):
  store = FeatureStore.open(stored.folder)
  path = store.shards[1].path
  item_ND = np.load(path)
  item_ND[7] = value
  np.save(path, item_ND)
  store = FeatureStore(store.folder, "img", {})
  with pytest.raises(ValueError, match=f"item {SHARD + 7} "):
    store.write_eight_bits()
  assert store.eight_bits is None


def test_a_copy_that_was_not_finished_is_none(stored, monkeypatch):
  monkeypatch.setattr(eight_bits, "write_record", lambda *_: 1 / 0)
  with pytest.raises(ZeroDivisionError):
    stored.write_eight_bits()
  assert FeatureStore.open(stored.folder).eight_bits is None


def test_rows_that_were_just_read_are_not_read_again(stored, monkeypatch):
  reads, read = [], FeatureStore.__getitem__
  monkeypatch.setattr(FeatureStore, "__getitem__", lambda self, rows: reads.append(len(rows)) or read(self, rows))
  unread = copies.Unread(stored, 250, 100, jax.devices()[0], np.ones(2))
  item_ND = read(stored, slice(250, 350))
  for items in ([1, 5, 9, 30], [5, 30], [30], [2, 5]):
    part, place_U = unread.near(np.array(items))
    np.testing.assert_array_equal(part.rows(place_U), item_ND[items])
  assert reads == [4, 2]


def test_gates_as_wide_as_features_read_the_copy_and_deep_rankings_the_features(stored, looks):
  own = adaptation(np.random.default_rng(1))
  assert_same(stored, own, k=ITEMS // 2)
  assert not any(looks)
  assert_same(stored, own.replace(gate=np.linspace(0.5, 1, 3 * WIDTH, dtype=np.float32).reshape(3, WIDTH)))
  assert any(looks)


def test_in_memory_the_stored_copy_is_taken(stored, looks, monkeypatch):
  monkeypatch.setattr(coarse, "LEAST_NUMBERS", 0)
  monkeypatch.setattr(coarse, "multiplies_faster", lambda *_: True)
  monkeypatch.setattr(gallery, "copied", lambda _: 1 / 0)
  own = adaptation(np.random.default_rng(1))
  for dtype in (None, jnp.float32):
    placed = copies.in_memory(stored, dtype)
    assert placed.space == "frozen" and placed.dtype == (dtype or np.float16)
    assert_same(placed, own)
    assert any(looks)
    looks.clear()


@pytest.mark.parametrize("fails", [False, True])
def test_a_large_gallery_that_is_prepared_gets_a_copy(stored, monkeypatch, caplog, fails):
  monkeypatch.setattr(eight_bits, "LEAST_NUMBERS", 0)
  if fails:
    monkeypatch.setattr(eight_bits, "write_whole", lambda path, *_: exec("raise OSError(f'no room for {path}')"))
  prepare = lambda: prepared.prepared_features(stored.folder.with_name("new"), stored, lambda x: -x, "frozen")
  new = prepare()
  assert (new.eight_bits is None) == fails == ("no room" in caplog.text)
  np.testing.assert_array_equal(new[:], -stored[:])
  if not fails:
    made = json.loads((new.folder / "img_emb" / eight_bits.RECORD).read_text())
    assert json.loads((prepare().folder / "img_emb" / eight_bits.RECORD).read_text()) == made


def test_verify_reads_the_copy(stored):
  stored.verify()
  flipped(stored.folder / "img_emb" / "img_emb_0002.int8")
  with pytest.raises(ValueError, match="img_emb_0002.int8 is not what it was"):
    stored.verify()
