import pytest

from qat_jax.datasets.pictures import decode
from qat_jax.datasets.tfds import TfdsSource
from tests.qat_jax.datasets.corpora import tfds_set


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  folder = tmp_path_factory.mktemp("tfds")
  tfds_set(folder, {"train": range(100, 104), "val": range(104, 106)}, lambda number: 2 + number % 2)
  return folder


@pytest.mark.parametrize("name", ["coco_captions", "coco_captions/2014", "coco_captions:1.1.0"])
def test_a_prepared_set_is_read_without_its_code(data_dir, name):
  source = TfdsSource(name, "train", data_dir)
  assert len(source) == 4
  record = source[3]
  assert decode(record).getpixel((0, 0)) == (103, 40, 7)
  del record["image"]
  assert record == {"id": "103", "caption": "0 of 103", "instance": "103"}


def test_splits_may_be_cut_and_joined(data_dir):
  source = TfdsSource("coco_captions", "train[1:3]+val", data_dir)
  assert [source[i]["id"] for i in range(len(source))] == ["101", "102", "104", "105"]


def test_several_captions_of_an_image_are_rows_of_one_instance(data_dir):
  source = TfdsSource("coco_captions", "train", data_dir, captions=3)
  assert len(source) == 12
  rows = [source[i] for i in (3, 4, 5, 6, 7, 8)]
  assert [row["id"] for row in rows] == ["101-0", "101-1", "101-2", "102-0", "102-1", "102-2"]
  assert [row["caption"] for row in rows] == [*(f"{i} of 101" for i in range(3)), "0 of 102", "1 of 102", "0 of 102"]
  assert [row["instance"] for row in rows] == ["101"] * 3 + ["102"] * 3


@pytest.mark.parametrize(
  ("settings", "words"),
  [
    ({"split": "test"}, r"no split 'test', only \['train', 'val'\]"),
    ({"split": "train", "captions": 0}, "captions is 0"),
  ],
)
def test_bad_settings_are_refused(data_dir, settings, words):
  with pytest.raises(ValueError, match=words):
    TfdsSource("coco_captions", data_dir=data_dir, **settings)


def test_a_set_that_is_not_prepared_says_how_to(tmp_path):
  with pytest.raises(FileNotFoundError, match="tfds build coco_captions --file_format=array_record"):
    TfdsSource("coco_captions", "train", tmp_path)


def test_positions_outside_the_split_are_refused(data_dir):
  with pytest.raises(IndexError, match="position 2 asked of a source of 2"):
    TfdsSource("coco_captions", "val", data_dir)[2]
