"""Corpora of small pictures as tar shards, Parquet files and TFDS sets, for their tests."""

import io
import json
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core import registered


def picture(number):
  file = io.BytesIO()
  Image.new("RGB", (6, 5), (number % 256, 40, 7)).save(file, "PNG")
  return file.getvalue()


def write_tar(path, records):
  """Writes records (key → ending → bytes or text) as a tar shard."""
  with tarfile.open(path, "w") as tar:
    for key, members in records.items():
      for ending, content in members.items():
        content = content.encode() if isinstance(content, str) else content
        info = tarfile.TarInfo(f"{key}.{ending}")
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))


def tar_shards(folder, shards=2, rows=6):
  """Writes shards of pictures with captions, two an instance."""
  folder.mkdir(exist_ok=True)
  for shard in range(shards):
    numbers = range(shard * rows, (shard + 1) * rows)
    about = lambda i: json.dumps({"instance": f"toy{i // 2}", "price": i, "tags": ["a"]})
    records = {f"{i:05d}": {"png": picture(i), "txt": f"toy no. {i}\n", "json": about(i)} for i in numbers}
    write_tar(folder / f"{shard:04d}.tar", records)
  return folder


def parquet_files(folder, names=("a", "b"), rows=6, per_group=4, **changes):
  """Writes files of pictures as dataset hubs do: a struct of bytes and path."""
  folder.mkdir(exist_ok=True)
  for number, name in enumerate(names):
    numbers = range(number * rows, (number + 1) * rows)
    columns = {
      "image": [{"bytes": picture(i), "path": f"{i}.png"} for i in numbers],
      "caption": [f"toy no. {i}" for i in numbers],
      "instance": [i // 2 for i in numbers],
      "price": [0.5 * i for i in numbers],
    }
    pq.write_table(
      pa.table(columns | {n: [f(i) for i in numbers] for n, f in changes.items()}),
      folder / f"{name}.parquet",
      per_group,
    )
  return folder


def tfds_set(folder, parts, captions=lambda number: 5):
  """Prepares coco_captions: split → numbers of its images, and number → how many captions that image has."""
  with registered.skip_registration():  # the name is that of the real set, whose code needs TensorFlow

    class CocoCaptions(tfds.core.GeneratorBasedBuilder):
      """Images of one colour, with the features of the real set."""

      VERSION = tfds.core.Version("1.1.0")
      BUILDER_CONFIGS = (tfds.core.BuilderConfig(name="2014"),)
      url_infos = {}  # noqa: RUF012

      def _info(self):
        texts = tfds.features.Sequence({"id": np.int64, "text": np.str_})
        image = tfds.features.Image(encoding_format="png")
        features = {"image": image, "image/filename": tfds.features.Text(), "image/id": np.int64, "captions": texts}
        return tfds.core.DatasetInfo(
          builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

      def _split_generators(self, dl_manager):
        return {part: self._generate_examples(numbers) for part, numbers in parts.items()}

      def _generate_examples(self, numbers):
        for number in numbers:
          texts = [{"id": 10 * number + i, "text": f"{i} of {number}"} for i in range(captions(number))]
          about = {"image/filename": f"{number}.png", "image/id": number, "captions": texts}
          yield number, {"image": io.BytesIO(picture(number)), **about}

  CocoCaptions(data_dir=folder, file_format="array_record").download_and_prepare()
