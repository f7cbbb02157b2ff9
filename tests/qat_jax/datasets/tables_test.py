"""Every cell of the table in docs/data.md: a kind of fault, in each source that can have it."""

import json
import pathlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qat_jax.datasets.folder import FolderSource
from qat_jax.datasets.parquet import ParquetSource
from qat_jax.datasets.webdataset import WebdatasetSource
from qat_jax.features.records import metadata_table
from qat_jax.features.splitting import split
from qat_jax.features.store import FeatureStore
from qat_jax.serve.items import Items
from tests.qat_jax.datasets.corpora import picture, write_tar

DOCS = pathlib.Path(__file__).parents[3] / "docs/data.md"


def column(values):
  if any(isinstance(value, int) and value >= 2**63 for value in values):
    return pa.array(values, pa.uint64())
  entries = all(isinstance(value, list) and isinstance(value[0], tuple) for value in values)
  return pa.array(values, pa.map_(pa.string(), pa.string()) if entries else None)


def folder_with(root, name, values):
  for i in range(len(values)):
    (root / f"{i}.png").write_bytes(picture(i))
  lines = [json.dumps({"file": f"{i}.png", name: value}) for i, value in enumerate(values)]
  (root / "captions.jsonl").write_text("\n".join(lines))
  source = FolderSource(root)
  return metadata_table([source.about(i) for i in range(len(source))]).to_pylist()


def tar_with(root, name, values):
  write_tar(root / "a.tar", {i: {"png": picture(i), "json": json.dumps({name: v})} for i, v in enumerate(values)})
  source = WebdatasetSource(root)
  return metadata_table([source.about(i) for i in range(len(source))]).to_pylist()


def parquet_with(root, name, values):
  for i, value in enumerate(values):  # a file a value, so that types differ
    pq.write_table(pa.table({"image": [picture(i)], name: column([value])}), root / f"{i}.parquet")
  source = ParquetSource(root)
  return metadata_table([source.about(i) for i in range(len(source))]).to_pylist()


def features_with(root, name, values):
  for kind in ("img_emb", "text_emb", "metadata"):
    (root / kind).mkdir(parents=True)
  for i in range(30):
    values_here = [values[i] if i < len(values) else float(i) if name == "instance" else values[0]]
    for kind in ("img", "text"):
      np.save(root / f"{kind}_emb/{kind}_emb_{i}.npy", np.random.default_rng(i).normal(size=(1, 4)).astype("f4"))
    columns = {"id": [f"item{i}"]} | {name: column(values_here)}
    pq.write_table(pa.table(columns), root / f"metadata/metadata_{i}.parquet")
  return root


def split_with(root, name, values):
  split(features_with(root / "f", name, values), root / "set")
  stores = [FeatureStore.open(root / "set" / part, "img") for part in ("train", "val/gallery", "test/gallery")]
  clean = name.strip().lower()
  types = {store.arrow_column(clean).type for store in stores if clean}
  assert len(types) == len(clean[:1])  # one type, whichever rows a part has
  rows = {row["id"]: row for store in stores for row in store.metadata().to_pylist()}
  return [rows[f"item{i}"] for i in range(len(values))]


def store_with(root, name, values):
  store = FeatureStore.open(features_with(root / "f", name, values), "img")
  rows = store.metadata().to_pylist()[: len(values)]
  if name in store.columns and name in ("instance", "caption"):
    rows = [{**row, name: value} for row, value in zip(rows, store.names(name).to_pylist(), strict=False)]
  return rows


def serve_with(root, name, values):
  items = Items.of(FeatureStore.open(features_with(root / "f", name, values), "img"))
  return [items.records([i])[0]["metadata"] for i in range(len(values))]


SOURCES = {
  "folder": folder_with,
  "tar": tar_with,
  "Parquet": parquet_with,
  "split": split_with,
  "features": store_with,
  "serve": serve_with,
}
# A kind's row in the docs → the column, its values, and what is read as `caption`, `instance` or that column.
KINDS = {
  "a type that differs": ("width", [640, 800.5, None], [640, 800.5, None]),
  "numbers and text": ("width", [640, "wide", None], ["640", "wide", None]),
  "a whole number from 2⁶³ on": ("uid", [2**63 + 5], [2**63 + 5]),
  "an integral float as an instance": ("instance", [3.0, 4], ["3", "4"]),
  "a blank caption": ("caption", ["a mug", "  "], ["a mug", None]),
  "a caption that is a list": ("caption", [["a red mug", "a mug"]], ["a red mug"]),
  "a caption that is an object": ("caption", [{"raw": "a mug"}], "object"),
  "a caption that is a map": ("caption", [[("en", "a mug")]], "object"),
  "spaces around an instance": ("instance", ["mug ", " mug", "pot"], ["mug", "mug", "pot"]),
  "a column without a name": (" ", ["x"], [None]),
  "a column with spaces or capitals": (" Caption ", ["a mug"], ["a mug"]),
}


def cells():
  """Returns kind, source and rule of each cell of the table in the docs."""
  lines = [line for line in DOCS.read_text().splitlines() if line.startswith("| ")]
  start = next(i for i, line in enumerate(lines) if line.startswith("| kind | rule |"))
  heads = [cell.strip() for cell in lines[start].strip("|").split("|")]
  rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[start + 1 : start + 1 + len(KINDS)]]
  return [(row[0], head, cell) for row in rows for head, cell in zip(heads[2:], row[2:], strict=True)]


def test_the_table_has_every_kind_and_source():
  assert {kind for kind, _, _ in cells()} == set(KINDS) and {source for _, source, _ in cells()} == set(SOURCES)


@pytest.mark.parametrize(("kind", "source", "cell"), [cell for cell in cells() if cell[2] != "–"])
def test_each_kind_is_read_the_same_in_each_source(tmp_path, kind, source, cell):
  name, values, expected = KINDS[kind]
  if cell == "refused":
    with pytest.raises(ValueError, match="object"):
      SOURCES[source](tmp_path, name, values)
    return
  rows = SOURCES[source](tmp_path, name, values)
  shown = lambda values: [None if value is None else str(value).removesuffix(".0") for value in values]
  assert shown(row.get(name.strip().lower()) for row in rows) == shown(expected)
