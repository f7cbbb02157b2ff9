"""A folder of pictures is followed by content: each is encoded once, whatever it is called."""

import functools
import os

import numpy as np
import pytest
from PIL import Image

from qat_jax.datasets.splits import open_source
from qat_jax.serve.collection.blocks import ADDED
from qat_jax.serve.collection.feeding import Feeder, Progress
from tests.qat_jax.datasets.corpora import parquet_files, tar_shards
from tests.qat_jax.serve.collection.conftest import WIDTH, content, item


@pytest.fixture
def pictures(tmp_path):
  folder = tmp_path / "pictures"
  folder.mkdir()
  for i in range(5):
    Image.new("RGB", (4, 4), (40 * i, 10, 10)).save(folder / f"{i}.png")
  return folder


@pytest.fixture
def fed(opened, pictures):
  """Runs the feeder of a fresh process; returns the collection, what was encoded, and the progress."""

  def run():
    encoded, progress = [], Progress()

    def encode(images):
      encoded.extend(image.getpixel((0, 0)) for image in images)
      rows_ND = np.array([[1 + sum(image.getpixel((0, 0))), *range(1, WIDTH)] for image in images], np.float32)
      return rows_ND / np.linalg.norm(rows_ND, axis=1, keepdims=True)

    collection = opened()
    Feeder(collection, functools.partial(open_source, "", "", pictures), encode, 2, progress).run()
    return collection, encoded, progress

  return run


def test_new_pictures_alone_are_encoded(fed, pictures):
  collection, encoded, progress = fed()
  assert len(encoded) == len(collection) == 5 and progress.left == 0 and progress.all == 5
  Image.new("RGB", (4, 4), "white").save(pictures / "new.png")
  collection, encoded, _ = fed()
  assert encoded == [(255, 255, 255)] and len(collection) == 6
  assert fed()[1] == []


def test_tars_and_parquet_files_are_followed_like_folders(fed, pictures):
  for path in pictures.iterdir():
    path.unlink()
  tar_shards(pictures, shards=2, rows=3)
  assert sorted(content(fed()[0])) == [f"000{i // 3}/{i:05d}" for i in range(6)]
  for path in pictures.iterdir():
    path.unlink()
  parquet_files(pictures, rows=2, id=lambda i: f"item{i}")
  collection, encoded, _ = fed()
  assert sorted(content(collection)) == [f"item{i}" for i in range(4)] and encoded == []  # the pictures of the tars
  assert collection.get("item3").metadata["caption"] == "toy no. 3" and fed()[1] == []


def test_a_whole_number_that_no_float_holds_makes_its_column_text(fed, pictures):
  (pictures / "captions.jsonl").write_text(f'{{"file": "0.png", "x": 0.5}}\n{{"file": "1.png", "x": {2**53 + 1}}}')
  metadata = {name: about["x"] for name, (_, about) in content(fed()[0]).items()}
  assert metadata == {"0.png": "0.5", "1.png": "9007199254740993"}


def test_a_renamed_picture_keeps_its_feature_and_a_removed_one_goes(fed, pictures):
  collection, _, _ = fed()
  before = content(collection)
  (pictures / "more").mkdir()
  (pictures / "0.png").rename(pictures / "more/zero.png")
  (pictures / "1.png").unlink()
  collection, encoded, _ = fed()
  after = content(collection)
  assert encoded == [] and set(after) == {"2.png", "3.png", "4.png", "more/zero.png"}
  assert after["more/zero.png"][0] == before["0.png"][0]
  assert after["more/zero.png"][1]["file"] == "more/zero.png"


def test_other_bytes_are_encoded_and_other_captions_are_not(fed, pictures):
  fed()
  (pictures / "2.txt").write_text("a caption")
  Image.new("RGB", (4, 4), "blue").save(pictures / "3.png")
  os.utime(pictures / "4.png", ns=(1, 1))
  collection, encoded, _ = fed()
  assert encoded == [(0, 0, 255)]
  assert content(collection)["2.png"][1]["caption"] == "a caption"
  assert len(collection) == 5


def test_an_empty_folder_removes_nothing(fed, pictures):
  fed()
  for path in pictures.iterdir():
    path.unlink()
  with pytest.raises(FileNotFoundError, match="no images"):
    fed()


def test_what_was_removed_or_added_by_hand_stays_so(fed, opened, pictures):
  collection, _, _ = fed()
  collection.change(removed=["0.png"], gone={"0.png": collection.get("0.png").stamp})
  collection.change([item("1.png", np.random.default_rng(0), stamp=ADDED)])
  mine = content(collection)["1.png"]
  collection.compact()
  collection, encoded, _ = fed()
  assert encoded == [] and "0.png" not in content(collection) and content(collection)["1.png"] == mine
  Image.new("RGB", (4, 4), "blue").save(pictures / "0.png")
  collection, encoded, _ = fed()
  assert encoded == [(0, 0, 255)] and "0.png" in content(collection)


def test_unreadable_pictures_are_named_and_read_once_they_are_whole(fed, pictures):
  whole = (pictures / "0.png").read_bytes()
  (pictures / "0.png").write_bytes(whole[:40])
  collection, encoded, progress = fed()
  assert list(progress.unreadable) == ["0.png"] and len(collection) == 4
  (pictures / "0.png").write_bytes(whole)
  collection, encoded, progress = fed()
  assert len(encoded) == 1 and len(collection) == 5 and not progress.unreadable
