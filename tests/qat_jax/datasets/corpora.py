"""Corpora of small pictures as tar shards and Parquet files, for the tests of both."""

import io
import json
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


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
