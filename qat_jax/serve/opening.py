"""Folders and names → a `Service`: everything is read and checked before anything serves."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

import qat_jax
from qat_jax.adaptation import unit
from qat_jax.adapter import SAMPLE_ROWS, Adapter, load
from qat_jax.encoders import Encoder, load_encoder
from qat_jax.evidence import calibrate
from qat_jax.features.prepared import prepared_features
from qat_jax.features.shards import is_unit
from qat_jax.features.store import FeatureStore
from qat_jax.keeping import KeptMarks
from qat_jax.search.index import Index
from qat_jax.search.indexes.faiss import FaissIndex
from qat_jax.search.indexes.scann import ScannIndex
from qat_jax.serve.aspects import Aspect
from qat_jax.serve.aspects import read as read_aspects
from qat_jax.serve.items import Items
from qat_jax.serve.limits import Limits
from qat_jax.serve.pictures import Pictures
from qat_jax.serve.service import Service
from qat_jax.types import ArrayGallery, Gallery, check_encoders

INDEXES = ("exact", "scann", "faiss")
SHARE = 0.4  # of the free memory that galleries may take; larger ones stay on the disk, memory-mapped


@dataclasses.dataclass(frozen=True)
class Settings:
  """What a server serves."""

  adapter: str
  gallery: str
  images: str | None = None
  encoder: str | None = None
  index: str = "exact"
  prepared: str | None = None  # where galleries are written that the adapter maps
  aspects: str | None = None  # a file of aspects, {name: [phrases]}; default: beside the adapter, or the package's
  keep_marks: str | None = None  # a folder that marks are appended to; None: they are kept nowhere
  verify: bool = True  # read the checksums of all features first


def open_service(settings: Settings, limits: Limits, log: Callable[[str], Any] = lambda line: None) -> Service:
  """Returns the service of a gallery and an adapter, compiled and ready.

  Raises ValueError, FileNotFoundError or OSError, in one line, for what is missing, damaged or does not fit.
  """
  if settings.index not in INDEXES:
    raise ValueError(f"the index is {settings.index!r}; use one of {', '.join(INDEXES)}")
  adapter, store = load(settings.adapter), FeatureStore.open(settings.gallery)
  if store.space != "frozen":
    raise ValueError(f"the gallery {settings.gallery} was prepared by an adapter; give the frozen one")
  if store.width != adapter.width:
    raise ValueError(f"the gallery {settings.gallery} is {store.width} wide; the adapter wants {adapter.width}")
  log(f"reading {len(store):,} items of {settings.gallery}")
  if settings.verify:
    store.verify()
  items, pictures = Items.of(store), Pictures(settings.images, limits.image_pixels)
  encoder = _encoder(settings, adapter, store)
  kept = None if settings.keep_marks is None else KeptMarks(settings.keep_marks)
  frozen, prepared = _galleries(settings, adapter, store)
  stores = {id(one): one for one in (frozen, *prepared.values())}
  size = sum(len(one) * one.width * 4 for one in stores.values())
  free = free_memory()
  single, half = size < SHARE * free, size / 2 < SHARE * free
  placed = {key: _placed(one, single) if half else one for key, one in stores.items()}
  where = "in memory" if half else "on the disk, memory-mapped"
  log(f"{len(store):,} items, {size / 1e9:.2f} GB as float32: {where}")
  about = {
    **about_of(adapter, encoder),
    "gallery": {"items": len(store), "width": store.width, "where": where},
    "index": settings.index,
  }
  galleries = {name: placed[id(one)] for name, one in prepared.items()}
  indexes = {name: _index(settings.index, one) for name, one in galleries.items()} if settings.index != "exact" else {}
  evidence = {}  # what scores are worth, where the adapter keeps validation queries
  for name, gallery in galleries.items():
    if planted := adapter.planted.get(name):
      log(f"planting {len(planted):,} validation queries of {name} in the gallery")
      evidence[name] = calibrate(adapter, gallery, name)
  aspects, plain = aspects_of(settings.adapter, settings.aspects), placed[id(frozen)]
  service = Service(adapter, items, plain, galleries, encoder, pictures, indexes, aspects, kept, about, evidence)
  _ = items.facets
  service.warm(log)
  return service


def _galleries(
  settings: Settings, adapter: Adapter, store: FeatureStore
) -> tuple[FeatureStore, dict[str, FeatureStore]]:
  """Returns the gallery at unit length, and as each head wants it; what has to be written goes to `prepared`."""
  base = settings.prepared or (str(Path(settings.adapter) / "served") if Path(settings.adapter).is_dir() else None)
  frozen = store
  if not is_unit(np.asarray(store[:SAMPLE_ROWS])):
    frozen = prepared_features(
      _place(base, "frozen"), store, lambda rows_ND: unit(rows_ND, np.float32).astype(store.dtype), "frozen"
    )
  prepared: dict[str, FeatureStore] = {}
  for name, head in adapter.heads.items():
    same = next((other for other in prepared if adapter.heads[other].space == head.space), None)
    folder = None if head.space == "frozen" and frozen is store else _place(base, head.space)
    prepared[name] = prepared[same] if same else adapter.prepare(frozen, name, folder=folder)
  return frozen, prepared


def _place(base: str | None, name: str) -> Path:
  if base is None:
    raise ValueError("the gallery has to be written anew for this adapter; say where: --prepared FOLDER")
  return Path(base) / name


def _placed(gallery: Gallery, single: bool) -> ArrayGallery:
  """Returns a gallery as an array of the device, in float32 where there is room: halves cost a conversion a search."""
  rows_ND = np.asarray(gallery[:])
  return ArrayGallery(jnp.asarray(rows_ND, jnp.float32 if single else rows_ND.dtype), gallery.space)


def _index(kind: str, gallery: Gallery) -> Index:
  if kind == "scann":
    return ScannIndex.build(gallery)
  return FaissIndex.build(gallery, "Flat" if len(gallery) < 50_000 else f"IVF{round(len(gallery) ** 0.5)},Flat")


def _encoder(settings: Settings, adapter: Adapter, store: FeatureStore) -> Encoder | None:
  """Returns the encoder named, else the gallery's own; None where neither is; another revision is a ValueError."""
  known = store.encoder or adapter.encoder
  name = settings.encoder or (known[0] if known else None)
  if not name or name == "none":
    return None
  try:
    encoder = load_encoder(name, batch_size=1)
  except (FileNotFoundError, ImportError) as error:
    raise type(error)(f"{error}; name the gallery's encoder, --encoder NAME, or none: --encoder none") from error
  check_encoders("the queries", (encoder.name, encoder.revision), f"the gallery {settings.gallery}", known)
  return encoder


def about_of(adapter: Adapter | None, encoder: Encoder | None) -> dict[str, Any]:
  """Returns what /v1/info says of an adapter and an encoder."""
  about: dict[str, Any] = {"version": qat_jax.__version__, "adapter": None, "encoder": None}
  if adapter is not None:
    about["adapter"] = {
      "heads": {name: head.form for name, head in adapter.heads.items()},
      "encoder": None if adapter.encoder is None else shown_name(adapter.encoder[0]),
      "fingerprint": {name: head.fingerprint["variables"][:12] for name, head in adapter.heads.items()},
    }
  if encoder is not None:
    about["encoder"] = {"name": shown_name(encoder.name), "revision": encoder.revision}
  return about


def aspects_of(adapter: str, named: str | None) -> dict[str, Aspect]:
  """Returns the aspects that searches may name: of the file named, of aspects.json beside the adapter, or our own."""
  beside = Path(adapter) / "aspects.json"
  return read_aspects(named or (beside if beside.is_file() else None))


def free_memory() -> int:
  """Returns how many bytes of memory are free."""
  return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def shown_name(name: str) -> str:
  """Returns a name as it may be shown: of a folder its last part."""
  return Path(name).name if os.path.isabs(name) else name
