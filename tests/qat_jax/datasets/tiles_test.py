import pickle

import numpy as np
import pytest
from PIL import Image

from qat_jax.datasets import BOX, UnreadableImage
from qat_jax.datasets.tiles import Tiles, boxes
from qat_jax.features.records import read_ahead


class Pictures:
  """Two pictures and a broken one, which count how often they are read."""

  def __init__(self):
    self.reads = 0
    self.pictures = [Image.fromarray(np.arange(3 * 70 * 140, dtype=np.uint8).reshape(70, 140, 3)) for _ in range(2)]

  def __len__(self):
    return 3

  def __getitem__(self, position):
    self.reads += 1
    if position == 2:
      raise UnreadableImage("c", "cut short")
    return {"id": "ab"[position], "image": self.pictures[position], "caption": "a shelf", "instance": None}


@pytest.mark.parametrize("n", [1, 2, 3, 5, 16])
def test_crops_cover_a_picture_and_share_a_quarter_with_their_neighbours(n):
  box_N4 = np.array(boxes(n))
  assert len(box_N4) == n * n and box_N4.min() == 0 and box_N4.max() == 1
  side = box_N4[0, 2]
  np.testing.assert_allclose(box_N4[:, 2] - box_N4[:, 0], side, atol=2e-4)
  if n > 1:
    np.testing.assert_allclose((box_N4[0, 2] - box_N4[1, 0]) / side, 0.25, atol=2e-3)
    assert (box_N4[0, [1, 3]] == box_N4[1, [1, 3]]).all()  # row by row


def test_each_crop_is_an_item_with_its_picture_and_its_box():
  source = Pictures()
  tiles = pickle.loads(pickle.dumps(Tiles(source, (2, 1))))
  assert len(tiles) == 15
  records = [tiles[i] for i in range(10)]
  assert [record["id"] for record in records[:5]] == ["a#1.0.0", "a#2.0.0", "a#2.0.1", "a#2.1.0", "a#2.1.1"]
  assert {record["picture"] for record in records[5:]} == {"b"}
  assert records[2]["caption"] == "a shelf"
  assert [records[2][name] for name in BOX] == [0.4286, 0.0, 1.0, 0.5714]
  np.testing.assert_array_equal(records[2]["image"], np.asarray(source.pictures[0])[:40, 60:])
  np.testing.assert_array_equal(records[0]["image"], source.pictures[0])
  with pytest.raises(UnreadableImage, match="'c' cannot be read: cut short"):
    tiles[10]


def test_a_picture_is_read_once_for_all_its_crops_by_many_threads():
  source = Pictures()
  records = list(read_ahead(Tiles(source, (1, 2, 3)), range(42), True, 8, 8))
  assert [record.get("picture") for record in records[:28]] == ["a"] * 14 + ["b"] * 14
  assert all(isinstance(record, UnreadableImage) for record in records[28:])
  assert source.reads == 3


def test_pictures_smaller_than_their_crops_have_crops_of_a_pixel():
  source = Pictures()
  source.pictures[0] = Image.new("RGB", (3, 1))
  assert {Tiles(source, (5,))[i]["image"].size for i in range(25)} == {(1, 1)}


@pytest.mark.parametrize("sizes", [(), (0,), (17,), (2, 2), (1.5,)])
def test_sizes_that_make_no_crops_are_refused(sizes):
  with pytest.raises(ValueError, match="give whole numbers from 1 to 16, each once"):
    Tiles(Pictures(), sizes)
