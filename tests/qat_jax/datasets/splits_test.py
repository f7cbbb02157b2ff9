import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from qat_jax.datasets.pictures import decode
from qat_jax.datasets.splits import parted, sources
from tests.qat_jax.datasets.corpora import picture, tfds_set, write_tar


def column(found, place, name):
  source, _ = found[place]
  return [source[i][name] for i in range(len(source))]


def test_each_caption_of_a_tfds_image_is_a_query_for_it(tmp_path):
  tfds_set(tmp_path, {"train": range(3), "val": range(3, 5), "test": range(5, 6)})
  found = sources("tfds", "coco_captions", tmp_path)
  assert {place: kinds for place, (_, kinds) in found.items()} == {
    "train": ("img", "text"),
    "val/gallery": ("img",),
    "val/text_queries": ("text",),
    "test/gallery": ("img",),
    "test/text_queries": ("text",),
  }
  assert column(found, "train", "caption") == ["0 of 0", "0 of 1", "0 of 2"]
  assert column(found, "val/gallery", "id") == column(found, "val/gallery", "instance") == ["3", "4"]
  assert column(found, "test/text_queries", "id") == ["5-0", "5-1", "5-2", "5-3", "5-4"]
  assert column(found, "test/text_queries", "instance") == ["5"] * 5
  assert column(found, "test/text_queries", "caption") == [f"{i} of 5" for i in range(5)]


def test_a_tfds_set_without_a_test_split_has_its_val_split_halved_and_a_limit_keeps_the_first_items(tmp_path):
  tfds_set(tmp_path, {"train": range(3), "val": range(3, 7)})
  found = sources("tfds", "coco_captions", tmp_path)
  assert [column(found, place, "id") for place in ("val/gallery", "test/gallery")] == [["3", "4"], ["5", "6"]]
  assert column(found, "test/text_queries", "instance") == ["5"] * 5 + ["6"] * 5
  found = sources("tfds", "coco_captions", tmp_path, limit=2)
  assert {place: len(source) for place, (source, _) in found.items()} == dict.fromkeys(found, 2)


def put_images(folder, count, views, header="file,caption,instance", row="{file},toy {i},toy{i}"):
  """Writes `views` images of each of `count` instances, and their table of captions."""
  lines = [header]
  for i in range(count):
    for view in range(views):
      file = f"{i}_{view}.png"
      Image.new("RGB", (4, 4), (i, view, 0)).save(folder / file)
      lines.append(row.format(file=file, i=i))
  (folder / "captions.csv").write_text("\n".join(lines) + "\n")


def test_a_folder_is_split_by_instance_the_same_way_each_time(tmp_path):
  put_images(tmp_path, 40, 2)
  found = sources("folder", "", tmp_path)
  parts = {place: set(column(found, place, "instance")) for place in ("train", "val/gallery", "test/gallery")}
  assert set.union(*parts.values()) == {f"toy{i}" for i in range(40)}
  assert {place: len(instances) for place, instances in parts.items()} == {
    "train": 32,
    "val/gallery": 4,
    "test/gallery": 4,
  }
  again = sources("folder", "", tmp_path)
  assert [column(found, place, "id") for place in found] == [column(again, place, "id") for place in again]


def test_queries_of_a_folder_are_its_captions_and_the_images_that_have_a_second_view(tmp_path):
  split = ["train", "val", "test"]
  put_images(tmp_path, 3, 2, "file,caption,instance,split", "{file},toy {i},toy{i},{i}")
  table = tmp_path / "captions.csv"
  text = table.read_text()
  for i, part in enumerate(split):
    text = text.replace(f"toy{i},{i}", f"toy{i},{part}")
  table.write_text(text)
  found = sources("folder", "", tmp_path)
  assert column(found, "test/gallery", "id") == column(found, "test/image_queries", "id") == ["2_0.png", "2_1.png"]
  assert column(found, "test/text_queries", "id") == ["2_0.png#caption", "2_1.png#caption"]
  assert column(found, "test/text_queries", "caption") == ["toy 2"] * 2
  assert found["train"][1] == ("img", "text")
  assert decode(found["val/gallery"][0][1]).getpixel((0, 0)) == (1, 1, 0)


@pytest.mark.parametrize("views", [1, 2])
def test_pictures_alone_are_refused_with_what_to_add(tmp_path, views):
  for i in range(30):
    (tmp_path / f"{i}.png").write_bytes(picture(i))
  if views == 2:  # in train alone
    rows = [
      f"{i}.png,{f'toy{i // 2}' if i < 20 else i},{'train' if i < 20 else 'val' if i < 25 else 'test'}"
      for i in range(30)
    ]
    (tmp_path / "captions.csv").write_text("\n".join(["file,instance,split", *rows]))
  with pytest.raises(
    ValueError, match="30 images .* neither captions nor.*Add captions .*or say which images show the same"
  ):
    sources("folder", "", tmp_path)


def test_there_are_queries_of_a_type_in_both_splits_or_in_none(tmp_path):
  put_images(tmp_path, 30, 1, "file,caption,instance,split", "{file},toy {i},toy{i},train")
  text = (tmp_path / "captions.csv").read_text().replace("toy28,train", "toy27,val").replace("toy27,train", "toy27,val")
  (tmp_path / "captions.csv").write_text(text.replace("toy29,train", "toy29,test"))
  found = sources("folder", "", tmp_path)
  assert not [place for place in found if place.endswith("image_queries")]
  assert column(found, "val/text_queries", "instance") == ["toy27", "toy27"]


@pytest.mark.parametrize(
  ("row", "words"),
  [
    ("{file},toy {i},toy{i},tset", "'0_0.png' has the split 'tset'; use train, val or test"),
    ("{file},toy {i},toy0,train", "has 1 instances, and none is left for train, test/gallery; give more, or a column"),
  ],
)
def test_a_folder_that_cannot_be_split_is_refused(tmp_path, row, words):
  put_images(tmp_path, 3, 1, "file,caption,instance,split", row)
  with pytest.raises(ValueError, match=words):
    sources("folder", "", tmp_path)


def test_an_image_without_an_instance_whose_name_is_an_instance_is_refused(tmp_path):
  put_images(tmp_path, 3, 1, "file,caption,instance", "{file},toy {i},0_0.png")
  table = tmp_path / "captions.csv"
  table.write_text(table.read_text().replace("0_0.png,toy 0,0_0.png", "0_0.png,toy 0,"))
  with pytest.raises(ValueError, match=r"the item '0_0\.png' has no instance, and others have its id as theirs"):
    sources("folder", "", tmp_path)


def test_an_image_without_a_caption_is_no_text_query(tmp_path, caplog):
  put_images(tmp_path, 40, 2)
  chosen = column(sources("folder", "", tmp_path), "test/gallery", "id")
  table = tmp_path / "captions.csv"
  number = chosen[0].split("_")[0]
  table.write_text(table.read_text().replace(f"{chosen[0]},toy {number},", f"{chosen[0]},,"))
  found = sources("folder", "", tmp_path)
  assert f"1 of 80 images have no caption and are no text queries, the first is {chosen[0]}" in caplog.text
  assert column(found, "test/gallery", "id") == chosen
  assert column(found, "test/text_queries", "id") == [f"{name}#caption" for name in chosen[1:]]
  assert found["train"][1] == ("img", "text")
  table.write_text(re.sub(r",toy 3\d?,", ",,", table.read_text()))  # of more than one in ten
  with pytest.raises(
    ValueError, match="2[23] of the 80 images of .* have no caption, the first is .*; caption at least 90%"
  ):
    sources("folder", "", tmp_path)


@pytest.mark.parametrize(
  ("kind", "name", "error", "words"),
  [
    ("toybocks", "", ValueError, "data.source is 'toybocks'; use one of toybox, tfds, folder"),
    ("folder", "x", ValueError, "data.name is 'x'; for the source folder it is empty or 'subfolders'"),
    ("tfds", "coco_captions", FileNotFoundError, "tfds build coco_captions"),
  ],
)
def test_what_is_not_there_is_named_with_what_to_do(tmp_path, kind, name, error, words):
  with pytest.raises(error, match=words):
    sources(kind, name, tmp_path)


@pytest.mark.parametrize(
  ("names", "parts"),
  [
    (("train", "valid", "test2017"), {"train": {0}, "val": {1}, "test": {2}}),
    (("training", "other", "dev"), {"train": {0, 1}, "val": {2}, "test": {0, 1}}),
    (("train", "test"), {"train": {0}, "val": {0}, "test": {1}}),
  ],
)
@pytest.mark.parametrize("kind", ["folder", "webdataset", "parquet", "column"])
def test_names_of_splits_hold_and_what_none_names_is_drawn_from_train(tmp_path, kind, names, parts):
  pictures = {name: [10 * number + i for i in range(10)] for number, name in enumerate(names)}
  for name, numbers in pictures.items():
    if kind == "webdataset":
      write_tar(tmp_path / f"{name}-0.tar", {i: {"png": picture(i), "txt": "x"} for i in numbers})
    elif kind == "parquet":
      columns = {"image": [picture(i) for i in numbers], "caption": ["x"] * len(numbers)}
      pq.write_table(pa.table(columns), tmp_path / f"{name}-0.parquet")
    else:
      (tmp_path / name).mkdir()
      for i in numbers:
        (tmp_path / f"{name}/{i}.png").write_bytes(picture(i))
        (tmp_path / f"{name}/{i}.txt").write_text("x")
  if kind == "column":
    rows = [(f"{name}/{i}.png", name.rstrip("2017")) for name, numbers in pictures.items() for i in numbers]
    lines = [f"{file},x,{'' if split == 'other' else split.title()}" for file, split in rows]
    (tmp_path / "captions.csv").write_text("\n".join(["file,caption,split", *lines]))
  found = sources("folder" if kind == "column" else kind, "", tmp_path)
  shown = lambda place: {decode(found[place][0][i]).getpixel((0, 0))[0] // 10 for i in range(len(found[place][0]))}
  read = {part: shown("train" if part == "train" else f"{part}/gallery") for part in parts}
  assert all(there and there <= parts[part] for part, there in read.items())
  assert sum(len(found[place][0]) for place in ("train", "val/gallery", "test/gallery")) == 10 * len(names)


@pytest.mark.parametrize(
  ("given", "expected"),
  [
    ("train test -", "train test test"),  # what names no split goes with its instance
    ("train val test", "train val test"),
    ("- - -", "one one one"),
  ],
)
def test_an_instance_goes_whole_where_items_name_no_split(given, expected):
  given_N = np.array([word.strip("-") for word in given.split()] + [""] * 40)
  code_N = np.array([0, 1, 1] + [*range(2, 42)])
  part_N = parted([f"i{code}" for code in range(42)], code_N, given_N, str, val=0.1, test=0.1)
  if expected.startswith("one"):
    assert part_N[1] == part_N[2] and set(part_N) == {"train", "val", "test"}
  else:
    assert part_N[:3].tolist() == expected.split()
