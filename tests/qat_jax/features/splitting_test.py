import pathlib
import re
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qat_jax.features import leaks, splitting
from qat_jax.features.retrieval_set import RetrievalSet
from qat_jax.features.splitting import split
from qat_jax.features.store import FeatureStore, write_features
from tests.vectors import features

PLACES = ("train", "val/gallery", "test/gallery")


def clip_retrieval(folder, sizes=(30, 0, 20), texts=True, **columns):
  """Writes features as clip_inference does: no ids of ours, no meta.json, a shard with another set of columns."""
  total = sum(sizes)
  for kind in ("img", "text") if texts else ("img",):
    (folder / f"{kind}_emb").mkdir(parents=True)
  (folder / "metadata").mkdir()
  for shard, (start, size) in enumerate(zip(np.cumsum([0, *sizes[:-1]]), sizes, strict=True)):
    for kind in ("img", "text") if texts else ("img",):
      rows_ND = features(total, 4, len(kind))[start : start + size].astype(np.float16)
      np.save(folder / f"{kind}_emb/{kind}_emb_{shard}.npy", rows_ND)
    rows = range(start, start + size)
    names = pa.array([f"pictures/{i}.jpg" for i in rows], pa.string())
    about = {"image_path": names, "caption": pa.array([f"picture {i}" for i in rows], pa.string())}
    about |= {name: pa.array(values[start : start + size]) for name, values in columns.items()}
    if shard == 0:
      about["price"] = pa.array(list(rows), pa.int64())
    pq.write_table(pa.table(about), folder / f"metadata/metadata_{shard}.parquet")
  return folder


def contents(folder):
  return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_clip_retrieval_folder_becomes_a_retrieval_set(tmp_path):
  source = clip_retrieval(tmp_path / "source")
  rows = split(source, tmp_path / "set", rows_per_shard=7)
  assert rows == {
    "train": 40,
    **dict.fromkeys(("val/gallery", "test/gallery", "val/text_queries", "test/text_queries"), 5),
  }
  data = RetrievalSet.open(tmp_path / "set")
  assert data.query_types == ("text",) and data.train_texts is not None
  images, texts = FeatureStore.open(source, "img"), FeatureStore.open(source, "text")
  place = {name: i for i, name in enumerate(images.ids)}
  seen = []
  for name in PLACES:
    store = FeatureStore.open(tmp_path / "set" / name, "img")
    np.testing.assert_array_equal(store[:], images[np.array([place[i] for i in store.ids])])
    assert store.column("instance").tolist() == store.ids.tolist()
    assert store.column("caption").tolist() == [f"picture {place[i]}" for i in store.ids]
    np.testing.assert_array_equal(store.column("price"), [place[i] if place[i] < 30 else np.nan for i in store.ids])
    seen += store.ids.tolist()
  assert sorted(seen) == sorted(images.ids)
  queries = data.split("test").queries["text"]
  assert queries.ids.tolist() == [f"{i}#caption" for i in data.split("test").gallery.ids]
  np.testing.assert_array_equal(queries[:], texts[np.array([place[i.removesuffix("#caption")] for i in queries.ids])])
  assert [p.tolist() for p in data.split("test").relevance("text").positives] == [[i] for i in range(5)]
  assert not (tmp_path / "set.parts").exists()


def test_an_instance_is_never_in_two_parts_and_images_with_another_view_are_queries(tmp_path):
  toy = [None if i == 7 else f"toy{i // 3}" for i in range(50)]
  source = clip_retrieval(tmp_path / "source", texts=False, toy=toy)
  split(source, tmp_path / "set", by="toy", val=0.3, test=0.2)
  data = RetrievalSet.open(tmp_path / "set")
  assert data.query_types == ("image",)
  parts = [set(FeatureStore.open(tmp_path / "set" / name).column("instance")) for name in PLACES]
  assert sum(map(len, parts)) == len(set.union(*parts)) == 18  # toy0 … toy16, and the one without
  assert list(map(len, parts)) == [10, 5, 3]
  assert "pictures/7.jpg" in set.union(*parts)
  for name in ("val", "test"):
    one = data.split(name)
    instance = one.gallery.column("instance").tolist()
    views = [i for i, own in zip(one.gallery.ids, instance, strict=True) if instance.count(own) > 1]
    assert one.queries["image"].ids.tolist() == views
    assert one.without_positives("image") == 0


def test_a_column_instance_is_taken_unless_another_is_named(tmp_path):
  columns = {"instance": [f"a{i % 25}" for i in range(50)], "shop": [i % 10 for i in range(50)]}
  source = clip_retrieval(tmp_path / "source", **columns)
  split(source, tmp_path / "one")
  split(source, tmp_path / "two", by="shop")
  assert set(FeatureStore.open(tmp_path / "one/val/gallery").column("instance")) <= set(columns["instance"])
  assert set(FeatureStore.open(tmp_path / "two/train").column("instance")) < {str(i) for i in range(10)}


def test_the_seed_decides_and_a_copy_is_split_alike(tmp_path):
  for name in ("a", "b"):
    split(clip_retrieval(tmp_path / name), tmp_path / f"{name}_set")
  assert contents(tmp_path / "a_set") == contents(tmp_path / "b_set")
  split(tmp_path / "a", tmp_path / "other", seed=1)
  ids = [FeatureStore.open(tmp_path / name / "test/gallery").ids.tolist() for name in ("a_set", "other")]
  assert ids[0] != ids[1]


def test_killed_at_any_shard_it_goes_on_and_ends_with_the_same_bytes(tmp_path, monkeypatch):
  source = clip_retrieval(tmp_path / "source")
  split(source, tmp_path / "whole", rows_per_shard=7)
  real, kills = splitting.FeatureWriter.write, 0

  def dying(writer, shard, features, columns, report=None):
    if not (tmp_path / f"died at {writer.folder.name} {shard}").exists():
      (tmp_path / f"died at {writer.folder.name} {shard}").touch()
      raise KeyboardInterrupt
    real(writer, shard, features, columns, report)

  monkeypatch.setattr(splitting.FeatureWriter, "write", dying)
  while not (tmp_path / "killed").exists():
    try:
      split(source, tmp_path / "killed", rows_per_shard=7)
    except KeyboardInterrupt:
      kills += 1
      assert not (tmp_path / "killed").exists()
  assert kills == 6 + 2  # the shards of train, then one each of the folders called gallery and text_queries
  assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


@pytest.mark.parametrize("place", ["train", "val/gallery"])  # one under construction, one whole
def test_what_an_earlier_call_wrote_and_is_damaged_is_named_and_written_again(tmp_path, monkeypatch, place):
  source = clip_retrieval(tmp_path / "source")
  split(source, tmp_path / "whole", rows_per_shard=7)
  real, count = splitting.FeatureWriter.write, {"train": 1, "val/gallery": 7}[place]

  def dying(writer, shard, features, columns, report=None):
    if len(list(tmp_path.glob("set.parts/**/img_emb/*.npy"))) == count + (place != "train"):
      raise KeyboardInterrupt
    real(writer, shard, features, columns, report)

  monkeypatch.setattr(splitting.FeatureWriter, "write", dying)
  with pytest.raises(KeyboardInterrupt):
    split(source, tmp_path / "set", rows_per_shard=7)
  monkeypatch.setattr(splitting.FeatureWriter, "write", real)
  (damaged,) = (tmp_path / "set.parts/set" / place / "img_emb").glob("*_0000.npy")
  damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
  with pytest.raises(ValueError, match=r"img_emb_0000\.npy is not what was written.*delete (\S+)") as raised:
    split(source, tmp_path / "set", rows_per_shard=7)
  advised = pathlib.Path(re.search(r"delete (\S+?)[,;]", str(raised.value))[1])
  shutil.rmtree(advised) if advised.is_dir() else advised.unlink()
  split(source, tmp_path / "set", rows_per_shard=7)
  assert contents(tmp_path / "set") == contents(tmp_path / "whole")


def test_a_set_that_is_there_is_written_again_for_nothing_and_never_overwritten(tmp_path):
  source = clip_retrieval(tmp_path / "source")
  rows = split(source, tmp_path / "set")
  before = contents(tmp_path / "set")
  assert split(source, tmp_path / "set") == rows
  with pytest.raises(ValueError, match=r"seed was 0, is 1\. Delete it or choose another folder"):
    split(source, tmp_path / "set", seed=1)
  with pytest.raises(FileExistsError, match="is no set made by splitting"):
    split(source, source)
  assert contents(tmp_path / "set") == before


def test_empty_captions_are_no_queries(tmp_path):
  captions = [None, "", " "] * 10 + [f"picture {i}" for i in range(20)]
  columns = {"id": [str(i) for i in range(50)], "caption": captions}
  source = write_features(tmp_path / "source", dict.fromkeys(("img", "text"), features(50, 4)), columns).folder
  rows = split(source, tmp_path / "set", val=0.3, test=0.3)
  assert rows["test/gallery"] == 15 > rows["test/text_queries"] > 0
  assert all(FeatureStore.open(tmp_path / "set/test/text_queries").column("caption"))


@pytest.mark.parametrize(
  ("columns", "settings", "error", "words"),
  [
    ({}, {"texts": False}, ValueError, r"nothing to search with: no text_emb/.*--by COLUMN, one of \['image_path'"),
    ({"id": ["a#caption", *map(str, range(49))]}, {}, ValueError, "has an id that ends with #caption"),
    ({"id": ["a"] * 50}, {}, ValueError, "1 ids occur more than once: 'a'"),
    ({}, {"by": "shop"}, KeyError, "no metadata column 'shop'"),
    ({"toy": ["one", "two"] * 25}, {"by": "toy"}, ValueError, "has 2 instances, and none is left for train"),
    ({}, {"val": 0.5, "test": 0.5}, ValueError, "val is 0.5, test 0.5; give shares"),
    ({"toy": [None, *["pictures/0.jpg"] * 49]}, {"by": "toy"}, ValueError, "'pictures/0.jpg' has no toy, and others"),
  ],
)
def test_what_cannot_be_split_is_refused_and_leaves_nothing(tmp_path, columns, settings, error, words):
  source = clip_retrieval(tmp_path / "source", texts=settings.pop("texts", True), **columns)
  with pytest.raises(error, match=words):
    split(source, tmp_path / "set", **settings)
  assert [p.name for p in tmp_path.iterdir()] == ["source"]


def test_refusals_of_a_retrieval_set_lead_to_the_command(tmp_path):
  source = clip_retrieval(tmp_path / "source")
  command = "`qat-jax split FOLDER NEW` makes a retrieval set of one folder of features"
  with pytest.raises(ValueError, match=f"source is one folder of features, .*{command}"):
    RetrievalSet.open(source)
  with pytest.raises(FileNotFoundError, match=command):
    RetrievalSet.open(tmp_path)
  split(source, tmp_path / "set")
  for name, own in (("test/text_queries", "id"), ("val/gallery", "instance")):
    path = tmp_path / f"set/{name}/metadata/metadata_0000.parquet"
    table = pq.read_table(path)
    if own == "id":
      ids = [i.removesuffix("#caption") for i in table.column("id").to_pylist()]
      pq.write_table(table.set_column(0, "id", pa.array(ids)), path)
      with pytest.raises(ValueError, match=f"are those of images in .*such as a.jpg#caption; {command}"):
        RetrievalSet.open(tmp_path / "set")
    else:
      pq.write_table(table.drop_columns(["instance"]), path)
      with pytest.raises(ValueError, match=f"no metadata column `instance`.*{command}, --by COLUMN"):
        RetrievalSet.open(tmp_path / "set")


def test_rows_that_list_others_are_queries_whose_lists_keep_their_own_part(tmp_path):
  toy = [f"toy{i // 2}" for i in range(50)]  # every second picture asks, for the first ones of all toys
  lists = [[f"pictures/{j}.jpg" for j in range(0, 50, 2)] if i % 2 else None for i in range(50)]
  source = clip_retrieval(tmp_path / "source", (50,), texts=False, instance=toy, relevant=lists)
  rows = split(source, tmp_path / "set", rows_per_shard=3)
  assert rows == {
    **{"train": 21, "train/image_queries": 21},
    **dict.fromkeys(("val/gallery", "test/gallery", "val/image_queries", "test/image_queries"), 2),
  }
  data = RetrievalSet.open(tmp_path / "set")
  assert "relevant" not in data.split("test").gallery.columns
  for split_, size in ((data.split("val"), 2), (data.split("test"), 2), (data.train_listed, 21)):
    assert all(int(name[9:-4]) % 2 for name in split_.queries["image"].ids)
    assert [p.tolist() for p in split_.relevance("image").positives] == [list(range(size))] * size
  assert leaks.check(data, allowed=False) == {}


@pytest.mark.parametrize(
  ("lists", "words"),
  [
    ([["pictures/99.jpg"]] + [None] * 49, "lists 1 ids that .*source does not have: 'pictures/99.jpg'"),
    ([["pictures/3.jpg"]] + [None] * 49, "no row of (train|val|test) .* has anything of its list in"),
  ],
)
def test_lists_that_cannot_be_split_are_refused(tmp_path, lists, words):
  source = clip_retrieval(tmp_path / "source", (50,), texts=False, relevant=lists)
  with pytest.raises(ValueError, match=words):
    split(source, tmp_path / "set")


def test_a_column_split_holds_and_what_it_does_not_name_is_drawn_from_train(tmp_path):
  given = ["Train"] * 30 + ["test"] * 15 + [None] * 5
  source = clip_retrieval(tmp_path / "source", split=given)
  rows = split(source, tmp_path / "set")
  assert rows == {
    "train": 32,
    **dict.fromkeys(("val/gallery", "val/text_queries"), 3),
    **dict.fromkeys(("test/gallery", "test/text_queries"), 15),
  }
  assert set(FeatureStore.open(tmp_path / "set/test/gallery").column("split")) == {"test"}
  with pytest.raises(ValueError, match="'pictures/4.jpg' has the split 'tset'; use train, val or test"):
    split(clip_retrieval(tmp_path / "other", split=["train"] * 4 + ["tset"] * 46), tmp_path / "another")
