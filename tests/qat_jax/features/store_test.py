import socket

import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qat_jax import stages
from qat_jax.features.store import FeatureStore, write_features


def some_features(rows, width=4, seed=0, dtype=np.float16):
  rows_ND = np.random.default_rng(seed).normal(size=(rows, width))
  return (rows_ND / np.linalg.norm(rows_ND, axis=1, keepdims=True)).astype(dtype)


def columns(rows):
  return {"id": [f"item{i}" for i in range(rows)], "instance": [f"thing{i // 2}" for i in range(rows)]}


@pytest.fixture
def array():
  return some_features(10)


@pytest.fixture
def store(tmp_path, array):
  return write_features(tmp_path / "store", {"img": array}, columns(10), {"encoder": "e"}, rows_per_shard=4)


@pytest.fixture
def foreign(tmp_path, array):
  """A folder as clip-retrieval leaves it: no meta.json, numbers without padding, eleven shards."""
  folder = tmp_path / "foreign"
  (folder / "img_emb").mkdir(parents=True)
  (folder / "metadata").mkdir()
  for shard in range(11):
    np.save(folder / f"img_emb/img_emb_{shard}.npy", np.full((1, 4), shard + 1, np.float32))
    table = pa.table({"image_path": [f"{shard}.jpg"], "caption": [None if shard == 2 else f"no. {shard}"]})
    pq.write_table(table, folder / f"metadata/metadata_{shard}.parquet")
  return folder


SLICES = [(None, None), (2, 9), (5, 6), (4, 8), (7, 3), (-3, None), (None, None, 3), (20, 30)]


@pytest.mark.parametrize("rows", [slice(*ends) for ends in SLICES], ids=str)
def test_a_slice_over_shards_equals_the_slice_of_the_array(store, array, rows):
  np.testing.assert_array_equal(store[rows], array[rows])
  assert store[rows].dtype == np.float16


def test_positions_in_any_order_with_repeats_are_gathered(store, array):
  for positions in (np.array([9, 0, 3, 3, 8, 4], np.int32), np.array([], np.int32), np.array([5]), 7):
    np.testing.assert_array_equal(store[positions], array[positions])
  for positions in ([-1, 2], [3, 10]):
    with pytest.raises(IndexError, match="store of 10 items"):
      store[np.array(positions)]


def test_chunks_stream_everything_in_order(store, array):
  starts, parts = zip(*store.chunks(3), strict=True)
  assert starts == (0, 3, 6, 9)
  np.testing.assert_array_equal(np.concatenate(parts), array)


def test_the_store_knows_its_items(store):
  assert (len(store), store.width, store.dtype, store.space) == (10, 4, np.float16, "frozen")
  assert store.ids.tolist() == columns(10)["id"]
  assert store.column("instance")[3] == "thing1"
  assert store.meta["encoder"] == "e" and store.meta["normalised"]
  assert [entry["rows"] for name, entry in store.meta["files"].items() if name.startswith("img")] == [4, 4, 2]
  assert store.meta["kinds"] == {"img": {"width": 4, "dtype": "float16"}}
  with pytest.raises(KeyError, match=r"no metadata column 'colour'.*\['id', 'instance'\]"):
    store.column("colour")


def test_shards_of_a_foreign_folder_are_read_in_the_order_of_their_numbers(foreign):
  store = FeatureStore.open(foreign)
  np.testing.assert_array_equal(store[:][:, 0], np.arange(1, 12))
  assert store.ids.tolist() == [f"{i}.jpg" for i in range(11)]
  assert store.column("caption")[2] is None
  assert store.meta == {}


def test_a_foreign_folder_gets_its_meta_on_request_and_is_checked_by_it(foreign):
  FeatureStore.open(foreign).write_meta(encoder="clip", revision="abc")
  store = FeatureStore.open(foreign)
  store.verify()
  assert store.meta["encoder"] == "clip"
  assert store.meta["rows"] == 11
  assert not store.meta["normalised"]
  np.save(foreign / "img_emb/img_emb_3.npy", np.full((1, 4), 99, np.float32))
  with pytest.raises(ValueError, match=r"img_emb_3\.npy is not what was written"):
    FeatureStore.open(foreign).verify()
  with pytest.raises(FileExistsError, match=r"meta\.json is there already"):
    store.write_meta()


def test_a_folder_without_metadata_numbers_its_items(tmp_path):
  (tmp_path / "text_emb").mkdir()
  np.save(tmp_path / "text_emb/text_emb_0.npy", some_features(3))
  store = FeatureStore.open(tmp_path)
  assert store.kind == "text"
  assert store.ids.tolist() == ["0", "1", "2"]
  assert store.metadata().column_names == ["id"]


def test_a_missing_shard_is_named(store):
  (store.folder / "img_emb/img_emb_0001.npy").unlink()
  with pytest.raises(FileNotFoundError, match=r"img_emb_0001\.npy is missing"):
    FeatureStore.open(store.folder)


def saved(path, array):
  return lambda folder: np.save(folder / path, array)


def metadata(number, **columns):
  return lambda folder: pq.write_table(pa.table(columns), folder / f"metadata/metadata_{number}.parquet")


def cut_short(folder):
  path = folder / "img_emb/img_emb_1.npy"
  path.write_bytes(path.read_bytes()[:-3])


@pytest.mark.parametrize(
  ("damage", "words"),
  [
    (cut_short, r"img_emb_1\.npy is truncated"),
    (metadata(4, image_path=["a", "b"]), r"img_emb_4\.npy has 1 rows, its metadata 2"),
    (saved("img_emb/img_emb_5.npy", np.ones((1, 3), "f4")), r"img_emb_5\.npy is 3 wide.*img_emb_0\.npy is 4 wide"),
    (saved("img_emb/img_emb_0.npy", np.asfortranarray(np.ones((2, 4), "f4"))), "column by column"),
    (saved("img_emb/img_emb_6.npy", np.full((1, 4), np.nan, "f4")), r"1 items have NaN or infinite .*: '6\.jpg'"),
    (saved("img_emb/img_emb_6.npy", np.full((1, 4), np.inf, "f4")), r"1 items have NaN or infinite .*: '6\.jpg'"),
    (saved("img_emb/img_emb_6.npy", np.zeros((1, 4), "f4")), r"1 items have zero features: '6\.jpg'"),
    (metadata(4, image_path=["3.jpg"], caption=["x"]), r"1 ids occur more than once: '3\.jpg'"),
    (
      lambda f: (f / "metadata/metadata_4.parquet").rename(f / "metadata/metadata_15.parquet"),
      r"img_emb_4\.npy, metadata_15\.parquet have no partner",
    ),
    *(
      (lambda f, name=name: (f / name).write_bytes(b""), r"is no shard, which are called (img_emb|metadata)_0\.")
      for name in ("img_emb/img_emb_1 (copy).npy", "img_emb/part_0.NPY", "metadata/meta_0.parquet")
    ),
  ],
)
def test_what_is_wrong_with_a_foreign_folder_is_named(foreign, damage, words):
  (foreign / "img_emb/._img_emb_0.npy").write_bytes(b"")
  FeatureStore.open(foreign).verify()
  damage(foreign)
  with pytest.raises(ValueError, match=words):
    FeatureStore.open(foreign).verify()


def test_a_broken_row_is_found_in_every_block(tmp_path):
  rows_ND = np.ones((20_000, 1), np.float32)
  for row in (8191, 8192, 19_999):
    rows_ND[:] = 1
    rows_ND[row] = np.nan
    with pytest.raises(ValueError, match=rf"1 items have NaN or infinite features: '{row}'"):
      write_features(tmp_path / f"{row}", {"img": rows_ND}, {"id": np.arange(20_000).astype(str)})


def test_missing_entries_of_a_categorical_column_stay_missing(foreign):
  names = pa.array(["x", None, "y"]).dictionary_encode()
  np.save(foreign / "img_emb/img_emb_0.npy", np.ones((3, 4), np.float32))
  pq.write_table(pa.table({"image_path": list("abc"), "caption": names}), foreign / "metadata/metadata_0.parquet")
  assert FeatureStore.open(foreign).column("caption")[:4].tolist() == ["x", None, "y", "no. 1"]


def test_a_column_that_a_later_shard_lacks_is_missing_there(foreign):
  pq.write_table(pa.table({"image_path": ["4.jpg"]}), foreign / "metadata/metadata_4.parquet")
  assert FeatureStore.open(foreign).column("caption")[[3, 4, 5]].tolist() == ["no. 3", None, "no. 5"]


def test_a_folder_without_features_says_what_it_holds(tmp_path):
  (tmp_path / "pictures").mkdir()
  with pytest.raises(FileNotFoundError, match=r"no img_emb/img_emb_\*\.npy.*\['pictures'\]"):
    FeatureStore.open(tmp_path, "img")


def test_chunks_of_any_size_are_written_like_one_array(tmp_path, array):
  whole = write_features(tmp_path / "whole", {"img": array}, columns(10), rows_per_shard=4)
  chunks = (array[i : i + 3] for i in range(0, 10, 3))
  streamed = write_features(tmp_path / "streamed", {"img": chunks}, columns(10), rows_per_shard=4)
  assert streamed.meta == whole.meta
  streamed.verify()


@pytest.mark.parametrize(
  ("rows", "words"), [(9, "1 img features for 2 rows"), (11, "more img features than the 10 ids")]
)
def test_features_and_ids_of_different_numbers_are_refused_and_leave_no_store(tmp_path, rows, words):
  with pytest.raises(ValueError, match=words):
    write_features(tmp_path / "s", {"img": some_features(rows)}, columns(10), rows_per_shard=4)
  with pytest.raises(ValueError, match="is not finished"):
    FeatureStore.open(tmp_path / "s")
  assert len(write_features(tmp_path / "s", {"img": some_features(10)}, columns(10))) == 10


@pytest.mark.parametrize(
  ("features", "settings", "words"),
  [
    ({}, {}, r"features of \[\].*wanted one or both"),
    ({"image": some_features(10)}, {}, r"features of \['image'\]"),
    ({"img": some_features(10)}, {"rows_per_shard": 0}, "0 rows a shard"),
    ({"img": np.ones(10, np.float16)}, {}, r"img features are float16 of shape \(10,\)"),
  ],
)
def test_what_no_store_can_hold_is_not_written(tmp_path, features, settings, words):
  with pytest.raises(ValueError, match=words):
    write_features(tmp_path / "s", features, columns(10), **settings)
  assert not list(tmp_path.rglob("*.npy"))


def test_meta_that_json_cannot_hold_is_refused_before_anything_is_written(tmp_path, array):
  with pytest.raises(TypeError, match="not JSON serializable"):
    write_features(tmp_path / "s", {"img": array}, columns(10), {"encoder": object()})
  assert not list(tmp_path.iterdir())


def test_what_a_kill_left_of_meta_json_is_in_nobodys_way(tmp_path, array):
  with pytest.raises(ValueError, match="0 img features for 1 rows"):
    write_features(tmp_path / "s", {"img": array[:9]}, columns(10), rows_per_shard=9)
  (tmp_path / f"s/meta.json.{socket.gethostname()}-99999999-0.tmp").write_text("{")
  write_features(tmp_path / "s", {"img": array}, columns(10)).verify()
  assert sorted(path.name for path in (tmp_path / "s").iterdir()) == ["img_emb", "meta.json", "metadata"]


def test_a_finished_folder_is_never_overwritten_and_one_under_construction_does_not_open(store, array):
  with pytest.raises(FileExistsError, match="delete it or choose another folder"):
    write_features(store.folder, {"img": array}, columns(10))
  (store.folder / "meta.json").rename(store.folder / "later")
  (store.folder / "incomplete").mkdir()
  with pytest.raises(ValueError, match="is not finished"):
    FeatureStore.open(store.folder)


def test_arrays_of_jax_and_numbers_as_ids_are_taken_and_the_store_is_of_the_first_kind(tmp_path, array):
  store = write_features(tmp_path / "s", {"text": jnp.asarray(array), "img": array}, {"id": list(range(10))})
  assert (store.kind, store.ids.tolist()) == ("text", [str(i) for i in range(10)])
  np.testing.assert_array_equal(store[:], array)


def test_the_fingerprint_follows_features_and_metadata_and_not_the_place(tmp_path):
  rows_ND = np.eye(4, dtype=np.float32)
  columns = {"id": list("abcd"), "caption": ["one", "two", "three", "four"]}
  store = write_features(tmp_path / "s", {"img": rows_ND}, columns)
  before = store.fingerprint
  assert write_features(tmp_path / "t", {"img": rows_ND}, columns).fingerprint == before
  columns["caption"][1] = "TWO"
  edited = write_features(tmp_path / "u", {"img": rows_ND}, columns).fingerprint
  assert stages.differences(before, edited)[0].startswith("metadata was")
  with open(store.shards[0].path, "r+b") as file:  # in place, meta.json untouched
    file.seek(-4, 2)
    file.write(np.float32(-1).tobytes())
  with pytest.raises(ValueError, match=r"img_emb_0000.npy is not what was written: .*or delete meta.json"):
    store.fingerprint  # noqa: B018
  (store.folder / "meta.json").unlink()
  store = FeatureStore.open(store.folder)
  assert [text.split()[0] for text in stages.differences(before, store.fingerprint)] == ["features"]


@pytest.mark.parametrize("dtype", [">f2", ">f4", "f8", "i4"])
def test_features_in_another_form_are_refused_when_they_are_opened(tmp_path, array, dtype):
  store = write_features(tmp_path / "s", {"img": array}, columns(10))
  np.save(store.shards[0].path, array.astype(dtype))
  with pytest.raises(ValueError, match=rf"img_emb_0000.npy holds {np.dtype(dtype)} .*this machine's byte order"):
    FeatureStore.open(tmp_path / "s")
  with pytest.raises(ValueError, match="wanted float16 or float32"):
    write_features(tmp_path / "t", {"img": array.astype(dtype)}, columns(10))


def test_a_shard_that_changes_while_it_is_open_is_noticed(tmp_path, array):
  store = write_features(tmp_path / "s", {"img": array}, columns(10))
  np.save(store.shards[0].path, -array)
  for rows in (slice(0, 3), np.array([2, 1])):
    with pytest.raises(OSError, match="img_emb_0000.npy was changed while it was open; open its store again"):
      store[rows]
  np.testing.assert_array_equal(FeatureStore.open(store.folder)[:], -array)


def test_a_text_file_that_is_called_npy_is_told_apart_without_advice_about_pickles(tmp_path):
  write_features(tmp_path / "f", {"img": np.eye(2, 4, dtype=np.float32)}, {"id": ["a", "b"]})
  (tmp_path / "f/img_emb/img_emb_0000.npy").write_text("0.1, 0.2\n")
  with pytest.raises(ValueError, match=r"img_emb_0000.npy is no .npy file: it begins with b'0.1, 0.2") as caught:
    FeatureStore.open(tmp_path / "f")
  assert "pickle" not in str(caught.value)


def test_a_folder_of_pictures_is_named_without_all_its_files(tmp_path):
  for i in range(30):
    (tmp_path / f"{i:02d}.png").write_bytes(b"")
  with pytest.raises(FileNotFoundError, match=r"'04.png'\] and 25 more; qat-jax extract encodes pictures$"):
    FeatureStore.open(tmp_path)


def test_one_file_goes_with_several_only_if_none_of_them_is_missing(tmp_path):
  for part, first in (("a", 0), ("b", 1)):
    store = write_features(tmp_path / part, {"img": np.eye(6, dtype="f4")}, {"id": list("abcdef")}, rows_per_shard=2)
    (store.folder / "meta.json").unlink()
    whole = store[:]
    for path in sorted((store.folder / "img_emb").iterdir()):
      path.unlink()
    np.save(store.folder / "img_emb/img_emb_0.npy", whole)
    for path in sorted((store.folder / "metadata").iterdir(), reverse=True):
      path.rename(path.with_name(f"metadata_{int(path.stem[-4:]) + first}.parquet"))
  assert FeatureStore.open(tmp_path / "a").ids.tolist() == list("abcdef")
  with pytest.raises(ValueError, match=r"img_emb_0\.npy, metadata_1\.parquet, .*have no partner"):
    FeatureStore.open(tmp_path / "b")
