import jax.numpy as jnp
import numpy as np
import pytest

from qat_jax.adaptation import plain
from qat_jax.features.store import write_features
from qat_jax.search import gallery as galleries
from qat_jax.search.gallery import parts, release
from qat_jax.search.rank import rank, rerank
from qat_jax.types import as_gallery
from tests.vectors import features


@pytest.fixture
def store(tmp_path):
  columns = {"id": [str(i) for i in range(700)]}
  return write_features(tmp_path / "gallery", {"img": features(700).astype(np.float16)}, columns, rows_per_shard=300)


def test_a_gallery_gives_the_same_ranking_wherever_it_lies(store, tmp_path):
  adaptation, gallery_ND = plain(features(4, seed=1)), store[:]
  np.save(tmp_path / "gallery.npy", gallery_ND)
  mapped_ND = np.load(tmp_path / "gallery.npy", mmap_mode="r")
  expected = rank(adaptation, jnp.asarray(gallery_ND, jnp.float32), 10)
  for gallery in (store, mapped_ND, gallery_ND, jnp.asarray(gallery_ND)):
    ranking = rank(adaptation, gallery, 10, chunk_rows=256)
    np.testing.assert_array_equal(ranking.ids, expected.ids)
    np.testing.assert_allclose(ranking.scores, expected.scores, atol=1e-6)
    np.testing.assert_array_equal(rerank(adaptation, gallery, expected).ids, expected.ids)


def test_every_item_comes_once(store):
  chunks = list(parts(store, None, 256, 1))
  assert [(part.first, part.items, len(part.features)) for part in chunks] == [
    (0, 256, 256),
    (256, 256, 256),
    (512, 188, 256),
  ]
  np.testing.assert_array_equal(np.concatenate([part.features[: part.items] for part in chunks]), store[:])


def test_a_device_array_is_looked_at_window_by_window_where_it_lies(monkeypatch):
  monkeypatch.setitem(galleries.WINDOW, "cpu", 1200)
  gallery_ND = jnp.asarray(features(700))
  windows = list(parts(as_gallery(gallery_ND), None, None, 4))
  assert [(part.first, part.items, part.window, part.skipped) for part in windows] == [
    (0, 300, 300, 0),
    (300, 300, 300, 0),
    (600, 100, 300, 200),
  ]
  np.testing.assert_array_equal(np.concatenate([part.rows(np.arange(part.items)) for part in windows]), gallery_ND)
  adaptation = plain(features(4, seed=1))
  for k in (1, 10, 250):
    np.testing.assert_array_equal(
      rank(adaptation, gallery_ND, k).ids, np.argsort(-(adaptation.query @ gallery_ND.T), axis=1, stable=True)[:, :k]
    )


def test_a_broken_item_of_a_later_chunk_is_named():
  gallery_ND = features(700)
  gallery_ND[613, 2] = np.inf
  with pytest.raises(ValueError, match="item 613 is NaN or infinite"):
    rank(plain(features(2)), gallery_ND, 10, chunk_rows=256)


def test_a_gallery_of_another_space_is_refused(store):
  with pytest.raises(ValueError, match="space 'frozen', the adaptation wants 'mapped-1'"):
    rank(plain(features(2), space="mapped-1"), store, 10)


def test_only_memory_maps_that_nobody_writes_to_are_released(tmp_path):
  np.save(tmp_path / "x.npy", features(10))
  assert release(np.load(tmp_path / "x.npy", mmap_mode="r")[2:5])
  assert not release(np.load(tmp_path / "x.npy", mmap_mode="c")[2:5])
  assert not release(features(10)[2:5])


@pytest.mark.parametrize("rows", [7, 10, 20])
def test_lengths_of_a_large_gallery_are_added_up_in_blocks(rows, monkeypatch):
  gallery_ND = jnp.asarray(np.random.default_rng(0).standard_normal((20, 4)), jnp.float16)
  wanted_N = np.square(np.asarray(gallery_ND, np.float64)).sum(axis=1)
  monkeypatch.setattr(galleries, "SQUARED", rows * 4)
  np.testing.assert_allclose(galleries.squares.__wrapped__(gallery_ND), wanted_N, rtol=1e-6)


def test_a_part_has_no_more_bounds_than_can_be_counted(monkeypatch):
  monkeypatch.setattr(galleries, "COUNTABLE", 64)
  gallery_ND = np.eye(20, dtype=np.float32)
  assert max(part.items for part in parts(as_gallery(gallery_ND), None, 1000, 8)) == 8
