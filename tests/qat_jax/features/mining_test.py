import numpy as np
import pytest

from qat_jax.features import mining
from qat_jax.features.store import write_features
from tests.vectors import features


def by_hand(features_ND, instances, neighbours, keep, temperature):
  """The slow, obvious way."""
  ids, weights = [], []
  cosine_NN = (features_ND @ features_ND.T) / np.outer(*[np.linalg.norm(features_ND, axis=1)] * 2)
  for i, row in enumerate(cosine_NN):
    nearest = [j for j in np.argsort(-row, kind="stable") if j != i][:neighbours]
    kept = [j for j in nearest if instances[j] is None or instances[j] != instances[i]][:keep]
    power = np.exp(row[kept] / temperature)
    ids.append(kept + [-1] * (keep - len(kept)))
    weights.append([*(power / power.sum()), *[0.0] * (keep - len(kept))])
  return np.array(ids), np.array(weights)


@pytest.mark.parametrize("block", [7, 16, 1000])
def test_neighbours_and_weights_equal_brute_force_whatever_the_block(block):
  features_ND = 3 * features(50, 8)
  instances = [f"i{k % 13}" for k in range(48)] + [None, None]
  semi = mining.mine(features_ND, np.array(instances, object), 10, 4, 0.2, block)
  ids_NM, weights_NM = by_hand(features_ND, instances, 10, 4, 0.2)
  np.testing.assert_array_equal(semi.ids, ids_NM)
  np.testing.assert_allclose(semi.weights, weights_NM, atol=1e-5)
  assert semi.ids.dtype == np.int32
  assert semi.weights.dtype == np.float32


def test_numbered_instances_may_be_missing_as_nan():
  semi = mining.mine(features(6, 8), np.array([1, 1, 2, np.nan, np.nan, 3]), neighbours=5, keep=5)
  assert sorted(semi.ids[0]) == [-1, 2, 3, 4, 5]
  assert sorted(semi.ids[3]) == [0, 1, 2, 4, 5]


def test_only_neighbours_are_kept_and_the_rest_is_padded():
  features_ND = features(12, 8)
  instances = ["same"] * 10 + ["a", "b"]
  semi = mining.mine(features_ND, np.array(instances), neighbours=5, keep=5, temperature=0.1)
  ids_NM, weights_NM = by_hand(features_ND, instances, 5, 5, 0.1)
  assert (ids_NM == -1).any()
  np.testing.assert_array_equal(semi.ids, ids_NM)
  np.testing.assert_allclose(semi.weights, weights_NM, atol=1e-5)


def test_images_of_one_instance_have_no_semi_positives():
  semi = mining.mine(features(4, 8), np.array(["x"] * 4), 3, 2)
  assert (semi.ids == -1).all()
  assert (semi.weights == 0).all()


@pytest.mark.parametrize("block", [2, 3])
def test_fewer_images_than_neighbours_are_padded(block):
  semi = mining.mine(features(3, 8), np.array(["a", "b", "c"]), neighbours=100, keep=5, block=block)
  assert semi.ids.max() == 2
  assert (semi.ids[:, :2] >= 0).all()
  assert (semi.ids[:, 2:] == -1).all()
  np.testing.assert_allclose(semi.weights.sum(axis=1), 1, atol=1e-6)


def test_no_more_than_a_chunk_of_large_features_is_read_at_once(monkeypatch, tmp_path):
  monkeypatch.setattr(mining, "RESIDENT", 0)
  store = write_features(tmp_path / "x", {"img": features(1500, 8)}, {"id": [str(i) for i in range(1500)]})
  most, read = [], type(store).__getitem__

  def watched(self, rows):
    found = read(self, rows)
    most.append(len(found))
    return found

  monkeypatch.setattr(type(store), "__getitem__", watched)
  monkeypatch.setattr("qat_jax.search.gallery.CHUNK_BYTES", {"cpu": 1 << 14})
  streamed = mining.mine(store, np.arange(1500), 5, 2, block=512)
  assert max(most) == 512
  monkeypatch.undo()
  np.testing.assert_array_equal(streamed.ids, mining.mine(store, np.arange(1500), 5, 2).ids)


def test_a_small_temperature_does_not_overflow():
  semi = mining.mine(features(20, 8), np.arange(20), 5, 3, temperature=1e-4)
  np.testing.assert_allclose(semi.weights.sum(axis=1), 1, atol=1e-6)


@pytest.mark.parametrize(
  ("rows", "instances", "settings", "words"),
  [
    (8, 8, {"keep": 6, "neighbours": 5}, "keep is 6, neighbours 5"),
    (8, 8, {"temperature": 0}, "temperature is 0"),
    (8, 3, {}, "3 instances for 8 features"),
    (0, 0, {}, "no features to mine"),
  ],
)
def test_what_cannot_be_mined_is_refused(rows, instances, settings, words):
  with pytest.raises(ValueError, match=words):
    mining.mine(features(8, 8)[:rows], np.arange(instances), **settings)


def test_what_is_saved_is_loaded_and_what_is_damaged_refused(tmp_path):
  semi, path = mining.mine(features(8, 8), np.arange(8), 5, 3), tmp_path / "semi.npz"
  mining.save(semi, path, {"keep": 3})
  loaded, about = mining.load_semi_positives(path)
  np.testing.assert_array_equal(loaded.ids, semi.ids)
  np.testing.assert_array_equal(loaded.weights, semi.weights)
  assert about == {"keep": 3} and [there.name for there in tmp_path.iterdir()] == ["semi.npz"]
  path.write_bytes(path.read_bytes()[:-30])
  with pytest.raises(ValueError, match="semi.npz holds no semi-positives, or is damaged .*; delete it"):
    mining.load_semi_positives(path)
  assert mining.ensure({"keep": 0}, None, path) is None


def test_semi_positives_are_mined_once_for_the_same_settings(tmp_path, monkeypatch):
  columns = {"id": list("abcdefgh"), "instance": list("abcdefgh")}
  store = write_features(tmp_path / "train", {"img": features(8, 8)}, columns)
  settings = {"keep": 2, "neighbours": 4, "temperature": 0.1, "share": 0.2}
  first = mining.ensure(settings, store, tmp_path / "semi.npz")
  assert mining.ensure({**settings, "keep": 3}, store, tmp_path / "semi.npz").ids.shape == (8, 3)
  again = mining.ensure(settings, store, tmp_path / "semi.npz")
  np.testing.assert_array_equal(again.ids, first.ids)
  monkeypatch.setattr(mining, "mine", None)
  np.testing.assert_array_equal(mining.ensure(settings, store, tmp_path / "semi.npz").ids, first.ids)


def test_semi_positives_of_other_features_or_instances_are_mined_anew(tmp_path, caplog):
  settings = {"keep": 2, "neighbours": 4, "temperature": 0.1}
  first, second = features(8, 8), features(8, 8)[::-1]
  columns = {"id": list("abcdefgh"), "instance": list("abcdefgh")}

  def mined(name, features_ND, columns):
    store = write_features(tmp_path / name, {"img": features_ND}, columns)
    return mining.ensure(settings, store, tmp_path / "semi.npz").ids

  before = mined("a", first, columns)
  np.testing.assert_array_equal(mined("copy", first, columns), before)
  assert not caplog.messages
  assert (mined("b", second, columns) != before).any()
  mined("c", second, {**columns, "instance": list("aacdefgh")})
  assert [message.split(": ")[1].split()[0] for message in caplog.messages] == ["images.features", "images.metadata"]
