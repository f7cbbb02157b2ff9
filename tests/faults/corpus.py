"""Malformed files of every kind that we read, from a seed: each function writes one into an empty folder."""

import io
import json
import os
import pathlib
import pickle
import random
import shutil
import struct
import zipfile
import zlib
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tests.faults.disk import hurt

ODD = [
  "",
  " ",
  "\0",
  "é" * 300,
  "🙂",
  "../../x",
  "x" * 5000,
  "null",
  "-1",
  "1e999",
  "NaN",
  "\u202e",
  '"',
  ";,\t",
  "#view",
]
VALUES = [None, True, -1, 0, 7, 2**63, -(2**70), 1e308, float("nan"), 0.5, [], {}, [1, "a"], {"a": [{}]}, *ODD]
CANARY = "executed"  # the file that what is run in a pickle makes
DTYPES = ("f2", "f4", "f4", "f8", ">f2", ">f4", "i4", "?", "c8", "U5", "V8", "O")
SHAPES = ((0, 8), (5,), (5, 0), (5, 8), (5, 8), (5, 9), (2, 3, 4), (1, 8), (8, 5), ())


class Runs:
  """What runs where somebody unpickles it."""

  def __reduce__(self) -> tuple:
    return os.system, (f"touch {CANARY}",)


def npy(path: pathlib.Path, rng: random.Random) -> None:
  """Writes a .npy file of any type, shape and content, or something with its name."""
  dtype, shape, fill = rng.choice(DTYPES), rng.choice(SHAPES), rng.choice((0, 1, np.nan, np.inf, 1e30, None))
  numbers = np.random.default_rng(rng.randrange(1 << 30)).normal(size=shape)
  if fill is not None:
    numbers = np.where(numbers > rng.choice((-9, 1)), fill, numbers)
  with np.errstate(all="ignore"):
    array = np.array([Runs()] * 5, object) if dtype == "O" else numbers.astype("S8" if dtype == "V8" else dtype)
  if rng.random() < 0.2:
    array = np.asfortranarray(array)
  np.save(path, array, allow_pickle=True)
  way = rng.randrange(8)
  if way < 2:
    hurt(path, rng)
  elif way == 2:
    header = str(
      {"descr": rng.choice(("<f4", "O", "<f9", "[('a', '<f4')]")), "fortran_order": False, "shape": _shape(rng)}
    )
    text = header.encode().ljust(118 + rng.choice((0, 9000))) + b"\n"
    path.write_bytes(
      b"\x93NUMPY" + rng.choice((b"\1\0", b"\2\0", b"\3\0", b"\\9\0")) + struct.pack("<H", len(text)) + text
    )
  elif way == 3:
    path.write_bytes(rng.choice((b"", b"\x93NUMPY", b"1 2 3\n", b"PK\3\4", pickle.dumps(Runs()))))


def _shape(rng: random.Random) -> Any:
  return rng.choice(((10**12, 8), (-5, 8), (5, 8), (2**62, 2**62), ("5", 8), (5.0, 8), None))


def parquet(path: pathlib.Path, rng: random.Random, rows: int) -> None:
  """Writes metadata: types that are odd, values that are missing or repeated, a number of rows that is wrong."""
  count = rng.choice((rows, rows, rows, 0, rows + 1))
  kinds: list[Any] = [
    [f"i{n}" for n in range(count)],
    list(range(count)),
    [None] * count,
    ["a"] * count,
    [rng.choice(ODD) for _ in range(count)],
    [b"\xff\xfe"] * count,
    [[1, 2]] * count,
    [{"a": 1}] * count,
    [0.5] * count,
    [float("nan")] * count,
    pa.array(["x"] * count).dictionary_encode(),
  ]
  names = ["id", "instance", "caption", *ODD[:3], "key", "image_path"]
  columns = {
    name: kinds[0] if rng.random() < 0.5 else rng.choice(kinds) for name in rng.sample(names, rng.randint(0, 6))
  }
  table = pa.table({name: pa.array(values) if isinstance(values, list) else values for name, values in columns.items()})
  pq.write_table(table, path)
  if rng.random() < 0.3:
    hurt(path, rng)


def features(folder: pathlib.Path, rng: random.Random) -> None:
  """Writes a feature folder, with metadata and meta.json or without."""
  for kind in rng.sample(("img", "text"), rng.randint(1, 2)):
    (folder / f"{kind}_emb").mkdir()
    for shard in range(rng.randint(1, 2)):
      npy(folder / f"{kind}_emb/{kind}_emb_{shard}.npy", rng)
  if rng.random() < 0.7:
    (folder / "metadata").mkdir()
    parquet(folder / "metadata/metadata_0.parquet", rng, 5)
  if rng.random() < 0.4:
    (folder / "meta.json").write_bytes(document(rng, META))


META = {"version": 1, "space": "frozen", "encoder": "toy", "revision": None, "rows": 5, "files": {}, "kinds": {}}


def document(rng: random.Random, like: dict[str, Any]) -> bytes:
  """Returns JSON in which some values are others, or what is nearly JSON."""
  content = {name: rng.choice(VALUES) if rng.random() < 0.3 else value for name, value in like.items()}
  if rng.random() < 0.2:
    content[rng.choice(ODD)] = rng.choice(VALUES)
  text = json.dumps(content).encode()
  return rng.choice(
    (text, text, text, text, text[: rng.randrange(len(text))], b"[" * 20_000, b"\xff" + text, b"[]", b"7")
  )


def captions(folder: pathlib.Path, rng: random.Random) -> None:
  """Writes a folder of pictures with a table of captions that is broken, or in another encoding."""
  for number in range(3):
    Image.new("RGB", (9, 9), (80 * number, 3, 3)).save(folder / f"{number}.png")
  columns = rng.sample(("file", "caption", "instance", "file_name", *ODD[:5]), rng.randint(1, 4))
  rows = [[rng.choice((f"{n}.png", *ODD, "ein Töpfchen")) for _ in columns] for n in range(3)]
  kind = rng.choice(("csv", "tsv", "jsonl", "parquet", "txt"))
  if kind == "jsonl":
    text = "\n".join(json.dumps(dict(zip(columns, row, strict=True))) for row in rows)
  elif kind == "txt":
    (folder / "0.txt").write_bytes(rng.choice(ODD).encode() + rng.choice((b"", b"\xff\xfe", b"\0")))
    return
  elif kind == "parquet":
    pq.write_table(
      pa.table({name: [row[i] for row in rows] for i, name in enumerate(columns)}), folder / "captions.parquet"
    )
    return
  else:
    text = "\n".join(("," if kind == "csv" else "\t").join(row) for row in [list(columns), *rows])
  data = text.encode(rng.choice(("utf-8", "utf-8", "utf-8-sig", "latin-1", "utf-16", "utf-32")), "replace")
  (folder / f"captions.{kind}").write_bytes(data[: rng.randrange(len(data) + 1)] if rng.random() < 0.2 else data)


def picture(folder: pathlib.Path, rng: random.Random) -> None:
  """Writes a picture: of any mode, animated, turned by EXIF, cut, changed, or a bomb."""
  mode = rng.choice(("RGB", "RGBA", "CMYK", "L", "1", "I;16", "I", "F", "P", "LA", "YCbCr"))
  kind = rng.choice(("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"))
  buffer, image = io.BytesIO(), Image.new(mode, (rng.choice((1, 7, 33)), rng.choice((1, 21))))
  try:
    if rng.random() < 0.2:
      exif = Image.Exif()
      exif[0x0112] = rng.choice((0, 3, 6, 8, 9, 65535))
      image.save(buffer, kind, exif=exif)
    elif kind in ("GIF", "TIFF", "WEBP") and rng.random() < 0.5:
      image.save(buffer, kind, save_all=True, append_images=[image, image])
    else:
      image.save(buffer, kind)
  except (OSError, ValueError, KeyError):  # a mode that the kind has not
    Image.new("RGB", (9, 9)).save(buffer, kind)
  path = folder / f"a.{rng.choice(('png', 'jpg', 'gif', kind.lower()))}"
  path.write_bytes(buffer.getvalue())
  way = rng.randrange(6)
  if way < 2:
    hurt(path, rng)
  elif way == 2:
    chunk = lambda name, data: struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    width, height = rng.choice(((50_000, 50_000), (2**31 - 1, 2**31 - 1), (0, 5), (20_000, 3)))
    parts = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, rng.choice((1, 8, 16)), 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + parts + chunk(b"IDAT", zlib.compress(bytes(100_000))) + chunk(b"IEND", b""))


def retrieval_set(folder: pathlib.Path, rng: random.Random, whole: pathlib.Path) -> None:
  """Writes a retrieval set in which folders, files or values are others."""
  shutil.copytree(whole, folder / "set")
  for _ in range(rng.randint(1, 3)):
    paths = sorted(p for p in (folder / "set").rglob("*"))
    path = rng.choice(paths)
    way = rng.randrange(5)
    if way == 0:
      shutil.rmtree(path) if path.is_dir() else path.unlink()
    elif path.is_dir():
      other = rng.choice([p for p in paths if p.is_dir() and path not in p.parents and p not in path.parents])
      if other != path:
        shutil.rmtree(path)
        shutil.copytree(other, path)
    elif path.suffix == ".npy":
      npy(path, rng)
    elif path.suffix == ".parquet":
      parquet(path, rng, 8)
    else:
      path.write_bytes(document(rng, META)) if way < 3 else path.unlink()


def released(folder: pathlib.Path, rng: random.Random, whole: pathlib.Path) -> None:
  """Writes a released checkpoint: other settings, other tensors, a pickle that wants to run, a damaged archive."""
  shutil.copytree(whole, folder / "released")
  config, weights = folder / "released/config.yml", folder / "released/weights.pt"
  way = rng.randrange(5)
  if way == 0:
    lines = config.read_text().splitlines()
    place = rng.randrange(len(lines))
    lines[place] = f"{lines[place].split(':')[0]}: {rng.choice(VALUES)}"
    config.write_text("\n".join(lines), errors="replace")
  elif way == 1:
    text = rng.choice(
      ("!!python/object/apply:os.system ['touch executed']", "a: &a [*a]", "{", "\0", "- 1", "a: 1\na: 2")
    )
    config.write_text(text)
  elif way == 2:
    with zipfile.ZipFile(weights, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
      archive.writestr("m/data.pkl", anything(rng))
      archive.writestr("m/data/0", bytes(rng.randrange(99)))
  else:
    hurt(weights if way == 3 else config, rng)


def anything(rng: random.Random) -> bytes:
  """Returns a pickle: of plain values, of arrays, of what wants to run, or a broken one."""
  what = rng.choice(
    (VALUES, {"gnd": VALUES}, np.eye(3), Runs(), {"a": Runs()}, [np.float32(1)], {"imlist": ["a"], "gnd": [{}]})
  )
  data = bytearray(pickle.dumps(what, rng.randint(0, 5)))
  if rng.random() < 0.5:
    for _ in range(rng.randint(1, 6)):
      data[rng.randrange(len(data))] = rng.randrange(256)
  return bytes(data) if rng.random() < 0.8 else bytes(data[: rng.randrange(len(data))])


def hdf5(path: pathlib.Path, rng: random.Random) -> None:
  """Writes an HDF5 file of features and ids, or nearly."""
  with h5py.File(path, "w") as file:
    if rng.random() < 0.9:
      shape, dtype = (
        rng.choice(((5, 8), (5, 8), (0, 8), (5,), (4, 8), (2, 2, 2))),
        rng.choice(("f2", "f4", "i4", "S3", "f8")),
      )
      file["features"] = np.zeros(shape, dtype)
    ids = rng.choice((["a", "b", "c", "d", "e"], [1, 2, 3, 4, 5], ["a"] * 5, "one", [b"\xff"] * 5))
    file[rng.choice(("index", "index", "ids"))] = ids
  if rng.random() < 0.5:
    hurt(path, rng)


def csv(path: pathlib.Path, rng: random.Random, fields: tuple[str, ...]) -> None:
  """Writes a CSV whose head, rows, quotes or encoding are odd."""
  head = [name if rng.random() < 0.9 else rng.choice(ODD) for name in fields]
  rows = [
    [rng.choice(("a", "b", "a b", "Public", "Private", "a 0.5 b 0.1", *ODD)) for _ in head]
    for _ in range(rng.randrange(6))
  ]
  lines = [head, *(row[: rng.randint(1, len(row))] if rng.random() < 0.2 else row for row in rows)]
  text = rng.choice(("\n", "\r\n", "\r")).join(",".join(line) for line in lines)
  path.write_bytes(text.encode(rng.choice(("utf-8", "utf-8", "latin-1", "utf-16")), "replace"))
