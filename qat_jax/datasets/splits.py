"""Which source fills which place of a retrieval set: train, and gallery and queries of val and test."""

import hashlib
import logging
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from qat_jax.datasets.sources import Derived

_log = logging.getLogger(__name__)
KINDS = ("toybox", "tfds", "folder", "webdataset", "parquet")
PARTS = ("train", "val", "test")
CAPTION = "#caption"  # what the id of an image's caption ends with: it is no image's, so that its image is relevant
CAPTIONS = 5  # text queries an image of a TFDS set: what COCO has
MOST_WITHOUT_CAPTION = 0.1  # with more the captions are somewhere else
Places = dict[str, tuple[Any, tuple[str, ...]]]

INTENTS = "intents"  # how the name of a toybox ends whose queries have intents
SEARCHED = {"gallery": "img", "text_queries": "text", "image_queries": "img"}
TOYBOX = {"train": ("img", "text")} | {f"{part}/{what}": (SEARCHED[what],) for part in PARTS[1:] for what in SEARCHED}


def sources(kind: str, name: str, folder: str | os.PathLike, limit: int = 0, views: int = 0) -> Places:
  """Returns place → (source, kinds of feature to encode) of a data set.

  Args:
    kind: where its items come from.
      toybox: it draws itself.
      tfds: a prepared TFDS set with the features of coco_captions; an image is an instance.
      folder: images with captions, see `FolderSource`.
      webdataset: tar shards, see `WebdatasetSource`.
      parquet: files with a column of images, see `ParquetSource`.
    name: of a toybox its config, empty for the default; "intents", or "tiny_intents", has that gallery, and image
      queries of two intents (`toybox.intents`). Of a TFDS set its name, empty for coco_captions. "subfolders": the
      images in one subfolder of a folder are one instance.
    folder: where the files lie; of tars and Parquet files also a pattern with *, or an address.
    limit: keeps the first items of each place alone, 0 all.
    views: how many made views of each picture are an instance with it, see `views.label_free`; 0: none are made.

  Raises FileNotFoundError where the files are not there, ValueError for an unknown kind or a set that cannot be split.
  """
  if kind not in KINDS:
    raise ValueError(f"data.source is {kind!r}; use one of {', '.join(KINDS)}, or give features on disk (data.root)")
  if kind in ("folder", "webdataset", "parquet"):
    places, labelled = _by_instance(open_source(kind, name, os.path.expanduser(folder)), folder, views)
  else:
    places = _toybox(name) if kind == "toybox" else _tfds(name, pathlib.Path(folder).expanduser())
    labelled = kind == "toybox"
  if views:
    from qat_jax.datasets.views import label_free  # which draws with Pillow

    places = label_free(places, views, labelled)
  if limit:
    first = lambda source: Rows(source, range(min(limit, len(source))), dict, told=True)
    places = {place: (first(source), kinds) for place, (source, kinds) in places.items()}
  return places


class Rows(Derived):
  """Chosen rows of a source, each changed to what its place wants; `told`: this place says what was left out."""

  def __init__(self, source: Any, positions: Sequence[int], change: Callable[[dict], dict], told: bool = False) -> None:
    super().__init__(source)
    self.positions, self.change = positions, change
    self.left_out = self.left_out if told else {}

  def _stamp(self, stamp: Callable[[int], dict[str, Any]], position: int) -> dict[str, Any]:
    about = stamp(self.positions[position])
    return self.change(about) if "instance" in about else about  # of a tar's or Parquet's item it has the place alone

  def __len__(self) -> int:
    return len(self.positions)

  def __getitem__(self, position: int) -> dict[str, Any]:
    return self.change(self.source[self.positions[position]])


def _toybox(name: str) -> Places:
  from qat_jax.datasets.toybox import intents
  from qat_jax.datasets.toybox import source as toybox

  if name.endswith(INTENTS):
    return intents.places(name.removesuffix(INTENTS).removesuffix("_") or "default")
  return {place: (toybox.source(place.replace("/", "_"), name or "default"), TOYBOX[place]) for place in TOYBOX}


def _tfds(name: str, folder: pathlib.Path) -> Places:
  """A set without a test split has its val split halved; every query is one caption of a gallery image."""
  from qat_jax.datasets.tfds import TfdsSource, splits

  name = name or "coco_captions"
  halves = {"val": "val[:50%]", "test": "val[50%:]"}
  parts = {"val": "val", "test": "test"} if "test" in splits(name, folder) else halves
  places: Places = {"train": (TfdsSource(name, "train", folder), ("img", "text"))}
  for split, part in parts.items():
    places[f"{split}/gallery"] = (TfdsSource(name, part, folder), ("img",))
    places[f"{split}/text_queries"] = (TfdsSource(name, part, folder, captions=CAPTIONS), ("text",))
  return places


def open_source(kind: str, name: str, where: str | os.PathLike) -> Any:
  """Returns the source of a corpus that is not split: a folder of pictures, tar shards, or Parquet files.

  Without a kind it is what is there: tar shards where there are any, else Parquet with images, else pictures. Raises
  ValueError for a name that the kind does not know.
  """
  from qat_jax.datasets.folder import FolderSource
  from qat_jax.datasets.parquet import ParquetSource
  from qat_jax.datasets.webdataset import WebdatasetSource

  kind = kind or kind_of(where)
  if name not in ("", "subfolders") or (name and kind != "folder"):
    raise ValueError(f"data.name is {name!r}; for the source folder it is empty or 'subfolders', else empty")
  if kind == "folder":
    return FolderSource(where, instance_by_folder=name == "subfolders")
  return {"webdataset": WebdatasetSource, "parquet": ParquetSource}[kind](where)


def kind_of(where: str | os.PathLike) -> str:
  """Returns the kind of source that lies somewhere: webdataset, parquet or folder."""
  from qat_jax.datasets.files import IMAGES
  from qat_jax.datasets.parquet import holds_images

  address = os.fspath(where)
  folder = pathlib.Path(address).expanduser()
  inside = [path.name for path in folder.iterdir() if not path.name.startswith(".")] if folder.is_dir() else [address]
  if any(name.lower().endswith(".tar") for name in inside):
    return "webdataset"
  if any(name.lower().endswith(".parquet") for name in inside):
    files = (name.lower() for _, _, names in os.walk(folder) for name in names)
    alone = not folder.is_dir() or holds_images(folder) or not any(name.endswith(IMAGES) for name in files)
    return "parquet" if alone else "folder"
  return "folder"


def _by_instance(source: Any, folder: str | os.PathLike, made_views: int) -> tuple[Places, bool]:
  """Split by instance, as `parted`; also says whether some items name an instance.

  Every gallery item that has a caption is a text query, and every one whose instance has another image an image query:
  of either type there are queries in val and test, or none.
  """
  items = [source.about(position) for position in range(len(source))]
  instance_of = [item["instance"] or item["id"] for item in items]
  given = [item.get("split", "") for item in items]
  names, code_N = np.unique(instance_of, return_inverse=True)
  part_N = parted(names.tolist(), code_N, np.array(given), lambda row: items[row]["id"])
  several_N = np.bincount(code_N)[code_N] > 1
  if mixed := [item["id"] for item, several in zip(items, several_N, strict=True) if several and not item["instance"]]:
    raise ValueError(shared_name(folder, mixed[0], "instance"))
  bare = [item["id"] for item in items if not item["caption"]]
  if MOST_WITHOUT_CAPTION * len(items) < len(bare) < len(items):
    raise ValueError(
      f"{len(bare)} of the {len(items)} images of {folder} have no caption, the first is {bare[0]!r}; caption at least "
      f"{1 - MOST_WITHOUT_CAPTION:.0%} of them, or none"
    )
  if 0 < len(bare) < len(items):
    _log.warning(
      "%d of %d images have no caption and are no text queries, the first is %s", len(bare), len(items), bare[0]
    )
  captioned_N = np.array([bool(item["caption"]) for item in items])
  rows = placed(part_N, code_N, {"text": captioned_N, "image": several_N}, folder)
  if len(rows) == 3 and not made_views:
    raise ValueError(
      f"the {len(items)} images of {folder} have neither captions nor, in val and test, instances with two images: "
      "there is nothing to learn from or to search with. Add captions (captions.csv, or a.txt beside a.jpg), or say "
      "which images show the same thing: a column `instance`, or a subfolder each and --config.data.name=subfolders. "
      "Or learn from made views of each image: --config.data.views=3"
    )
  kinds: dict[str, tuple[str, ...]] = {name: ("text",) if name.endswith("text_queries") else ("img",) for name in rows}
  kinds["train"] = ("img", "text") if "val/text_queries" in rows else ("img",)
  change = lambda name: _caption if name.endswith("text_queries") else _own
  places: Places = {
    name: (Rows(source, rows[name].tolist(), change(name), told=name == "train"), kinds[name]) for name in rows
  }
  return places, any(item["instance"] not in (None, item["id"]) for item in items)


def shared_name(where: object, id: str, column: str) -> str:
  """Returns the error of an item that has no instance, and whose id is the instance of others."""
  return f"{where}: the item {id!r} has no {column}, and others have its id as theirs; give it one"


def placed(
  part_N: np.ndarray, code_N: np.ndarray, able: Mapping[str, np.ndarray], where: object
) -> dict[str, np.ndarray]:
  """Returns the folders of a retrieval set → the rows that each has: train, and gallery and queries of val and test.

  Args:
    part_N: the part of each row.
    code_N: the place of each row's instance among all.
    able: by type of queries, which rows can be such; a set has the same types in val and test.
    where: what an error names.

  Raises ValueError where train or a gallery gets no rows.
  """
  places = {"train": part_N == "train", "val/gallery": part_N == "val", "test/gallery": part_N == "test"}
  if empty := [name for name, chosen_N in places.items() if not chosen_N.any()]:
    raise ValueError(
      f"{where} has {len(np.unique(code_N))} instances, and none is left for {', '.join(empty)}; give more, or a "
      "column `split` (train, val, test)"
    )
  for query_type, able_N in able.items():
    queries = {f"{part}/{query_type}_queries": (part_N == part) & able_N for part in ("val", "test")}
    places |= queries if all(chosen_N.any() for chosen_N in queries.values()) else {}
  return {name: np.flatnonzero(chosen_N) for name, chosen_N in places.items()}


def parted(
  names: Sequence[str], code_N: np.ndarray, given_N: np.ndarray, id_of: Callable[[int], str], **shares: float
) -> np.ndarray:
  """Returns the part of each item (N): train, val or test.

  It is the split that is given to the item, else to another of its instance, else drawn as `drawn`. A part that is
  given to some item is not drawn; one that is given to none is drawn from the items of train too.

  Args:
    names: the instances.
    code_N: the place of each item's instance among them.
    given_N: the split that each item names, "" where it names none.
    id_of: returns the id of an item by its place, for an error.
    shares: as of `drawn`.

  Raises ValueError for a split that is none of train, val and test.
  """
  there = set(np.unique(given_N).tolist())
  if strange := sorted(there - {"", *PARTS}):
    row = int(np.flatnonzero(given_N == strange[0])[0])
    raise ValueError(f"{id_of(row)!r} has the split {strange[0]!r}; use train, val or test")
  free_N = (given_N == "") | ((given_N == "train") & (not {"val", "test"} <= there))
  part_of = drawn_parts(
    {names[code] for code in np.unique(code_N[free_N])}, **shares | dict.fromkeys(there & {"val", "test"}, 0)
  )
  part_C = np.array([part_of.get(name, "") for name in names], "U5")
  drawn_N = part_C[code_N]
  part_C[code_N[~free_N]] = given_N[~free_N]
  return np.where(given_N == "", part_C[code_N], np.where(free_N, drawn_N, given_N))


def drawn_parts(instances: Iterable[str], val: float = 0.1, test: float = 0.1, seed: int = 0) -> dict[str, str]:
  """Returns the part of each instance, the same in every run.

  Args:
    instances: their names.
    val, test: the shares of the instances that go there; the others are train.
    seed: another one gives other parts.
  """
  key = b"" if seed == 0 else seed.to_bytes(8, "little", signed=True)
  order = sorted(instances, key=lambda name: hashlib.blake2b(name.encode(), key=key).digest())
  first, second = (max(1, int(len(order) * share + 1e-9)) if share else 0 for share in (val, test))
  return {name: "val" if i < first else "test" if i < first + second else "train" for i, name in enumerate(order)}


def _own(record: dict) -> dict:
  return {**record, "instance": record["instance"] or record["id"]}


def _caption(record: dict) -> dict:
  """Returns a gallery item's caption as a query: with another id, so that its image counts as relevant."""
  return {**_own(record), "id": f"{record['id']}{CAPTION}"}
