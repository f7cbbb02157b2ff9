import numpy as np
import pytest
from PIL import Image

from qat_jax.datasets.pictures import decode
from qat_jax.datasets.splits import sources
from qat_jax.datasets.views import Views, label_free, view
from tests.qat_jax.datasets.corpora import picture, tar_shards


def scene(width=90, height=60):
  x, y = np.meshgrid(np.arange(width), np.arange(height))
  return Image.fromarray(np.stack([x * 255 // width, y * 255 // height, (x + y) % 256], axis=2).astype(np.uint8))


def test_a_view_is_the_same_at_every_run_and_another_for_every_id_and_number():
  made = [np.asarray(view(scene(), name, number)) for name, number in (("a", 1), ("a", 1), ("a", 2), ("b", 1))]
  np.testing.assert_array_equal(made[0], made[1])
  assert not np.array_equal(made[0], made[2]) and not np.array_equal(made[0], made[3])
  assert made[0].shape == (60, 90, 3)


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (3, 2), (200, 7)])
def test_pictures_of_any_size_and_kind_have_views(size):
  for mode in ("RGB", "L", "RGBA"):
    for number in range(1, 6):
      made = view(Image.new(mode, size), "x", number)
      assert made.size == size and made.mode == "RGB"


def test_most_of_a_picture_is_seen_and_none_of_the_outside_is_black():
  white = Image.new("RGB", (80, 80), (250, 250, 250))
  dark = np.mean([(np.asarray(view(white, "x", n)) < 100).all(axis=2).mean() for n in range(1, 41)])
  assert dark < 0.03  # what covers it, now and then
  spread = [np.asarray(view(scene(), "x", n))[..., 0].astype(float).std() for n in range(1, 41)]
  assert min(spread) > 10  # it shows more than one place of it


class Source:
  def __init__(self, count, stamped=False):
    self.count = count
    if stamped:
      self.stamp = lambda position: {"id": f"p{position}", "changed": 5}

  def __len__(self):
    return self.count

  def __getitem__(self, position):
    return {"id": f"p{position}", "image": picture(position), "caption": f"no. {position}", "instance": "toy"}


def test_a_picture_and_its_views_are_one_instance():
  views = Views(Source(3), range(3))
  assert len(views) == 9
  records = [views[i] for i in range(9)]
  assert [record["id"] for record in records[3:6]] == ["p1", "p1#view1", "p1#view2"]
  assert [record["instance"] for record in records] == [f"p{i}" for i in (0, 0, 0, 1, 1, 1, 2, 2, 2)]
  assert decode(records[3]).getpixel((0, 0)) == (1, 40, 7)
  np.testing.assert_array_equal(decode(records[4]), view(decode(records[3]), "p1", 1))
  with pytest.raises(IndexError, match="position 9 asked of a source of 9"):
    views[9]


def test_a_source_with_other_pictures_or_another_recipe_has_another_stamp(monkeypatch):
  views = Views(Source(2, stamped=True), [0, 1])
  before = views.stamp(3)
  assert before["id"] == "p1" and before != views.stamp(2)
  monkeypatch.setattr("qat_jax.datasets.views.RECIPE", 99)
  assert views.stamp(3) != before
  assert Views(Source(2), [0]).stamp(0) != before


def places():
  kinds = {"train": ("img", "text"), "gallery": ("img",), "text_queries": ("text",), "image_queries": ("img",)}
  names = ["train", *(f"{split}/{kind}" for split in ("val", "test") for kind in list(kinds)[1:])]
  return {name: (Source(4), kinds[name.split("/")[-1]]) for name in names}


def test_labels_are_used_for_nothing_but_the_test():
  given = places()
  found = label_free(given, 2, labelled=True)
  assert sorted(found) == sorted(["train", "val/gallery", "val/image_queries", "test/gallery", "test/image_queries"])
  assert len(found["train"][0]) == 12 and found["train"][1] == ("img",)
  assert found["val/image_queries"][0][1]["instance"] == found["val/gallery"][0][1]["instance"] == "p1"
  assert found["val/image_queries"][0][1]["id"] == "p1#view1"
  for place in ("test/gallery", "test/image_queries"):
    assert found[place] is given[place]


def test_captions_stay_where_there_are_no_labels_and_the_tests_queries_are_views():
  given = places()
  found = label_free(given, 1, labelled=False)
  assert found["train"][1] == ("img", "text")
  assert found["test/text_queries"] is given["test/text_queries"]
  assert found["test/image_queries"][0][0]["id"] == "p0#view1"


def test_pictures_alone_become_a_retrieval_set(tmp_path):
  for number in range(20):
    (tmp_path / f"{number}.png").write_bytes(picture(number))
  with pytest.raises(ValueError, match=r"learn from made views of each image: --config\.data\.views=3"):
    sources("folder", "", tmp_path)
  found = sources("folder", "", tmp_path, views=3)
  sizes = {place: len(source) for place, (source, _) in found.items()}
  assert sizes == {"train": 64, "val/gallery": 2, "val/image_queries": 2, "test/gallery": 2, "test/image_queries": 2}
  labelled = sources("webdataset", "", str(tar_shards(tmp_path / "s", shards=3, rows=20)), views=1)
  assert sorted(labelled) == ["test/gallery", "test/image_queries", "train", "val/gallery", "val/image_queries"]
  assert "#view" not in labelled["test/image_queries"][0][0]["id"]


@pytest.mark.parametrize("settings", [{}, {"limit": 2}, {"views": 1}, {"views": 1, "limit": 2}])
def test_what_a_source_left_out_is_said_once_with_views_and_with_a_limit(tmp_path, settings):
  tar_shards(tmp_path, shards=3, rows=10)
  (tmp_path / "notes.md").write_text("no pictures")
  places = sources("webdataset", "", tmp_path, **settings)
  told = {place: source.left_out for place, (source, _) in places.items()}
  expected = {".md files": ["notes.md"], "columns of no plain values": ["tags"]}
  assert told.pop("train") == expected and not any(told.values())
