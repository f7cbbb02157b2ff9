"""One folder of features → a retrieval set: every instance goes, whole, to train, val or test.

Rows are drawn by a hash of their instance, so that the same seed gives the same split of any copy. The set is written
beside its place, and gets its name when it is whole.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from qat_jax.datasets import tables
from qat_jax.datasets.splits import CAPTION, parted, placed, shared_name
from qat_jax.datasets.tables import SPLITS
from qat_jax.features.retrieval_set import RELEVANT, relevance
from qat_jax.features.shards import META, read_meta, shard_files
from qat_jax.features.store import ROWS_PER_SHARD, FeatureStore
from qat_jax.features.writer import FeatureWriter
from qat_jax.sealed import check_format, read_record, write_record
from qat_jax.stages import check_same, empty, fingerprint, lock

MADE_FROM = "split.json"
FORMAT = 1  # of the set
ADVICE = "Delete it or choose another folder"


class SplitPlace(NamedTuple):
  """One folder of the set: which rows of the source it has, and which features of them."""

  rows: np.ndarray
  kinds: tuple[str, ...]
  relevant: list[np.ndarray] | None = None  # of queries that list what is right for them: rows of the source


def split(
  source: str | os.PathLike,
  root: str | os.PathLike,
  by: str | None = None,
  val: float = 0.1,
  test: float = 0.1,
  seed: int = 0,
  rows_per_shard: int = ROWS_PER_SHARD,
) -> dict[str, int]:
  """Makes a retrieval set in `root` of a folder of image features, and returns how many rows each of its folders has.

  Holds the metadata and one shard. A run that was killed goes on with the first shard that is missing; a set that is
  there, made of the same, is not written again.

  Args:
    source: a feature folder with img_emb/, as of clip-retrieval. With text_emb/ the captions of val and test are text
      queries, but for empty ones. Images whose instance has another one are image queries; but where the column
      `relevant` lists ids of other rows, only the rows with a list are, in no gallery, and a list keeps the ids of its
      query's part.
    by: the metadata column that says which images show the same thing. None: `instance` if there is one, else every row
      is an instance of its own, as is a row without a value.
    val, test: shares of the instances.

  Raises ValueError for features that were prepared, repeated ids, too few instances, nothing to search with, or a root
  that was made with other settings; KeyError for a column that is not there; FileExistsError for a root that holds
  anything else; BlockingIOError where another process makes it.
  """
  source, root = Path(source), Path(root)
  if not (0 < val < 1 and 0 < test < 1 and val + test < 1):
    raise ValueError(f"val is {val}, test {test}; give shares of the instances above 0 that leave some for train")
  images, texts = _open(source)
  stores = [images] if texts is None else [images, texts]
  prints = {store.kind: store.fingerprint for store in stores}
  made_from = fingerprint(source=prints, by=by, val=val, test=test, seed=seed)
  if rows := _rows_of(root, made_from):
    return rows
  instance = _instances(images, by)
  encoded = instance.combine_chunks().dictionary_encode()
  names, code_N = encoded.dictionary, encoded.indices.to_numpy()
  part_N = parted(names.to_pylist(), code_N, _given(images), images.ids.__getitem__, val=val, test=test, seed=seed)
  places = _places(images, texts, code_N, part_N)
  parts, metadata = root.with_name(root.name + ".parts"), images.metadata()
  metadata = metadata.drop_columns([name for name in ("instance", RELEVANT) if name in metadata.column_names])
  metadata = metadata.append_column("instance", instance)
  with lock(parts):
    if rows := _rows_of(root, made_from):  # somebody else has just made it
      return rows
    for name, place in places.items():
      plan = {"place": name, **made_from, "rows_per_shard": rows_per_shard}
      _write(parts / "set" / name, stores, metadata, place, plan)
    rows = {name: len(place.rows) for name, place in places.items()}
    write_record(parts / "set" / MADE_FROM, {"format": FORMAT, "made_from": made_from, "rows": rows})
    os.replace(parts / "set", root)
    empty(parts)
  return rows


def _open(source: Path) -> tuple[FeatureStore, FeatureStore | None]:
  """Returns the images and the captions, if any, of a folder; raises ValueError where they cannot be split."""
  images = FeatureStore.open(source, "img")
  texts = FeatureStore.open(source, "text") if shard_files(source, "text_emb", "npy") else None
  if images.space != "frozen":
    raise ValueError(f"{source} was prepared by an adapter ({images.space}); give the encoder's own features")
  if texts is not None and len(texts) != len(images):
    raise ValueError(f"{source} has {len(images)} images and {len(texts)} captions; give one caption an image")
  images.check_ids()
  if texts is not None and pc.any(pc.ends_with(images.arrow_ids(), CAPTION)).as_py():
    raise ValueError(f"{source} has an id that ends with {CAPTION}, as the ids of captions will; rename it")
  return images, texts


def _rows_of(root: Path, made_from: dict[str, Any]) -> dict[str, int] | None:
  """Returns how many rows each folder of a set that is there has, None where there is none; raises as `split`."""
  if not root.exists():
    return None
  if not (root / MADE_FROM).is_file():
    raise FileExistsError(f"{root} is there already, and is no set made by splitting; delete it or choose another")
  about = read_record(root / MADE_FROM)
  check_format(root / MADE_FROM, about.get("format", FORMAT), FORMAT, ADVICE.lower())
  check_same(root, about["made_from"], made_from, ADVICE)
  return about["rows"]


def _instances(images: FeatureStore, by: str | None) -> pa.ChunkedArray:
  """Returns the instance of each row, as text; a row without one is named by its id, which no other instance is."""
  ids = images.arrow_ids()
  name = by or ("instance" if "instance" in images.columns else None)
  if name is None:
    return ids
  given = images.names(name)
  alone = pc.if_else(pc.is_null(given), ids, pa.scalar(None, pa.string()))
  both = pc.is_in(alone, value_set=given.unique().drop_null(), skip_nulls=True)
  if pc.any(both).as_py():
    first = alone.filter(both)[0].as_py()
    raise ValueError(shared_name(images.folder, first, name))
  return pc.coalesce(given, alone)


def _places(
  images: FeatureStore, texts: FeatureStore | None, code_N: np.ndarray, part_N: np.ndarray
) -> dict[str, SplitPlace]:
  """Returns the folders of the set; `code_N` numbers the rows' instances.

  Raises ValueError where there is nothing to search with, or a part is empty.
  """
  several_N = np.bincount(code_N)[code_N] > 1
  captioned_N = _captioned(images) if texts is not None else np.zeros(len(code_N), bool)
  listed = _listed_queries(images, part_N) if RELEVANT in images.columns else {}
  if listed:
    part_N = np.where(listed.pop("asking").rows, "", part_N)
    several_N = np.zeros(len(code_N), bool)
  rows = placed(part_N, code_N, {"text": captioned_N, "image": several_N}, images.folder)
  places = {
    name: SplitPlace(chosen, ("text",) if name.endswith("text_queries") else ("img",)) for name, chosen in rows.items()
  }
  places["train"] = SplitPlace(rows["train"], ("img",) if texts is None else ("img", "text"))
  places |= listed
  if len(places) == 3:
    raise ValueError(
      f"{images.folder} has nothing to search with: no text_emb/, the captions of its images, and too few instances "
      f"with two images (there are {np.sum(np.bincount(code_N) > 1)}). Add captions, or name the column that says "
      f"which images show the same thing: --by COLUMN, one of {images.columns}"
    )
  return places


def _listed_queries(images: FeatureStore, part_N: np.ndarray) -> dict[str, SplitPlace]:
  """Returns the places of rows that list relevant ones, and under "asking" which rows those are; none: nothing.

  Raises ValueError where a part has such rows and none of what they list.
  """
  lists = relevance(images, images).positives
  asks_N = np.array([len(rows) > 0 for rows in lists])
  if not asks_N.any():
    return {}
  places = {"asking": SplitPlace(asks_N, ())}
  for part in ("train", "val", "test"):
    kept = {row: lists[row] for row in np.flatnonzero(asks_N & (part_N == part))}
    kept = {row: rows[(part_N[rows] == part) & ~asks_N[rows]] for row, rows in kept.items()}
    kept = {row: rows for row, rows in kept.items() if len(rows)}
    if not kept:
      raise ValueError(
        f"no row of {part} in {images.folder} has anything of its list in {part}; give more instances, or lists that "
        "name rows of the query's own instance too"
      )
    places[f"{part}/image_queries"] = SplitPlace(np.array(list(kept)), ("img",), list(kept.values()))
  return places


def _given(images: FeatureStore) -> np.ndarray:
  """Returns the split that each row's column `split` names (N), "" where it names none."""
  if "split" not in images.columns:
    return np.full(len(images), "")
  encoded = images.names("split").combine_chunks().dictionary_encode()
  words = [SPLITS.get(word.strip().lower(), word) for word in encoded.dictionary.to_pylist()]
  return np.array([*words, ""])[encoded.indices.fill_null(-1).to_numpy()]


def _captioned(images: FeatureStore) -> np.ndarray:
  """Says which rows have a caption: those whose text is known to be empty have none (N)."""
  column = tables.caption_column(images.columns, images.folder)
  if column is None:
    return np.ones(len(images), bool)
  return images.names(column).is_valid().to_numpy()


def _write(
  folder: Path, stores: Sequence[FeatureStore], metadata: pa.Table, place: SplitPlace, plan: dict[str, Any]
) -> None:
  """Writes one folder of the set, shard by shard; what is there already is left as it is."""
  rows_per_shard = plan["rows_per_shard"]
  if (folder / META).exists():
    check_same(folder, read_meta(folder)["split"], plan, ADVICE)
    try:
      for kind in place.kinds:
        FeatureStore.open(folder, kind).check_files()
    except ValueError as error:
      raise ValueError(f"{str(error).partition(';')[0]}; delete {folder}, and run again") from error
    return
  starts = range(0, len(place.rows), rows_per_shard)
  writer = FeatureWriter(folder, plan, len(starts))
  ids = metadata.column("id")
  for shard in writer.missing():
    rows = place.rows[starts[shard] : starts[shard] + rows_per_shard]
    about = metadata.take(pa.array(rows))
    columns = dict(zip(about.column_names, about.columns, strict=True))
    if place.kinds == ("text",):
      columns["id"] = pc.binary_join_element_wise(columns["id"], CAPTION, "")
    if place.relevant is not None:
      lists = place.relevant[starts[shard] : starts[shard] + rows_per_shard]
      columns[RELEVANT] = pa.array([ids.take(pa.array(one)).to_pylist() for one in lists])
    features = {store.kind: store[rows] for store in stores if store.kind in place.kinds}
    writer.write(shard, features, pa.table(columns))
  known = {name: value for name, value in stores[0].meta.items() if name in ("encoder", "revision")}
  writer.finish({**known, "split": plan})
