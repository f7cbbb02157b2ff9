"""Folders and names → a `Service`: everything is read and checked before anything serves."""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

import qat_jax
from qat_jax.adaptation import unit
from qat_jax.adapter import SAMPLE_ROWS, Adapter, load
from qat_jax.cluster.work import LOCAL
from qat_jax.distributed import Gallery as Sharded
from qat_jax.encoders import Encoder, load_encoder
from qat_jax.evidence import calibrate
from qat_jax.features.prepared import prepared_features
from qat_jax.features.shards import is_unit
from qat_jax.features.store import FeatureStore
from qat_jax.keeping import KeptMarks
from qat_jax.search.copies import in_memory
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
  gallery: str | Sequence[str]  # on a cluster a folder for each shard
  images: str | None = None
  encoder: str | None = None
  index: str = "exact"
  prepared: str | None = None  # where galleries are written that the adapter maps
  aspects: str | None = None  # a file of aspects, {name: [phrases]}; default: beside the adapter, or the package's
  keep_marks: str | None = None  # a folder that marks are appended to; None: they are kept nowhere
  verify: bool = True  # read the checksums of all features first
  cluster: str = LOCAL  # who searches: this process, or a Ray cluster (docs/scale.md)
  replicas: int = 1  # how many actors of a cluster hold each shard
  on_disk: bool = False  # shards of a cluster are read where they lie, at each search


def open_service(settings: Settings, limits: Limits, log: Callable[[str], Any] = lambda line: None) -> Service:
  """Returns the service of a gallery and an adapter, compiled and ready.

  Raises ValueError, FileNotFoundError or OSError, in one line, for what is missing, damaged or does not fit.
  """
  if settings.index not in INDEXES:
    raise ValueError(f"the index is {settings.index!r}; use one of {', '.join(INDEXES)}")
  adapter, stores = load(settings.adapter), _stores(settings, log)
  for store in stores:
    if store.space != "frozen":
      raise ValueError(f"the gallery {store.folder} was prepared by an adapter; give the frozen one")
    if store.width != adapter.width:
      raise ValueError(f"the gallery {store.folder} is {store.width} wide; the adapter wants {adapter.width}")
  items, pictures = Items.of(*stores), Pictures(settings.images, limits.image_pixels)
  encoder = _encoder(settings, adapter, stores[0])
  kept = None if settings.keep_marks is None else KeptMarks(settings.keep_marks)
  with contextlib.ExitStack() as stack:
    if settings.cluster == LOCAL:
      plain, galleries, where = _in_process(settings, adapter, stores[0], log)
    else:
      plain, galleries, where = _on_cluster(settings, adapter, stores, limits.seconds, stack)
    about = {
      **about_of(adapter, encoder),
      "gallery": {"items": len(items), "width": adapter.width, "where": where},
      "index": settings.index,
    }
    indexes = {name: index_of(settings.index, one) for name, one in galleries.items() if settings.index != "exact"}
    evidence = {}  # what scores are worth, where the adapter keeps validation queries
    for name, gallery in galleries.items():
      if planted := adapter.planted.get(name):
        log(f"planting {len(planted):,} validation queries of {name} in the gallery")
        evidence[name] = calibrate(adapter, gallery, name)
    aspects = aspects_of(settings.adapter, settings.aspects)
    service = Service(adapter, items, plain, galleries, encoder, pictures, indexes, aspects, kept, about, evidence)
    _ = items.facets
    service.warm(log)
    stack.pop_all()
    return service


def _stores(settings: Settings, log: Callable[[str], Any]) -> list[FeatureStore]:
  """Returns the feature folders of a gallery, verified where that is wanted."""
  paths = [settings.gallery] if isinstance(settings.gallery, str) else list(settings.gallery)
  if settings.cluster == LOCAL and (len(paths) > 1 or settings.replicas > 1 or settings.on_disk):
    raise ValueError(
      f"got {len(paths)} galleries, {settings.replicas} replicas, but no cluster; several folders, --replicas and "
      "--on-disk are for one: add --cluster auto, or give one folder"
    )
  if settings.cluster != LOCAL and settings.index != "exact":
    raise ValueError(f"the index is {settings.index!r}; a gallery on a cluster is searched exactly, leave out --index")
  stores = [FeatureStore.open(path) for path in paths]
  for store in stores:
    log(f"reading {len(store):,} items of {store.folder}")
    if settings.verify:
      store.verify()
  return stores


def _in_process(
  settings: Settings, adapter: Adapter, store: FeatureStore, log: Callable[[str], Any]
) -> tuple[Gallery, dict[str, Gallery], str]:
  """Returns the gallery as it is and for each query type, in memory where there is room; and where that is."""
  frozen, prepared = _galleries(adapter, store, _base(settings))
  stores = {id(one): one for one in (frozen, *prepared.values())}
  size = sum(len(one) * one.width * 4 for one in stores.values())
  free = free_memory()
  single, half = size < SHARE * free, size / 2 < SHARE * free
  placed = {key: _placed(one, single) if half else one for key, one in stores.items()}
  where = "in memory" if half else "on the disk, memory-mapped"
  log(f"{len(store):,} items, {size / 1e9:.2f} GB as float32: {where}")
  return placed[id(frozen)], {name: placed[id(one)] for name, one in prepared.items()}, where


def _on_cluster(
  settings: Settings, adapter: Adapter, stores: Sequence[FeatureStore], patience: float, stack: contextlib.ExitStack
) -> tuple[Gallery, dict[str, Gallery], str]:
  """Returns the gallery as it is and for each query type, each shard where a cluster searches it; and where that is.

  Args:
    settings: what is served.
    adapter: the one that settings name.
    stores: the shards.
    patience: seconds to wait for a shard that does not answer.
    stack: closes what was opened.
  """
  base = _base(settings)
  each = [
    _galleries(adapter, store, None if base is None else f"{base}/{number}") for number, store in enumerate(stores)
  ]
  known: dict[tuple[str, ...], Sharded] = {}

  def opened(parts: Sequence[FeatureStore]) -> Sharded:
    paths = tuple(os.path.abspath(part.folder) for part in parts)
    if paths not in known:
      known[paths] = Sharded(
        paths,
        settings.cluster,
        adapter=os.path.abspath(settings.adapter) if Path(settings.adapter).exists() else settings.adapter,
        replicas=settings.replicas,
        on_device=not settings.on_disk,
      )
      known[paths].patience = patience  # once it is open: an actor takes long to start
      stack.callback(known[paths].close)
    return known[paths]

  frozen = opened([one for one, _ in each])
  prepared: dict[str, Gallery] = {name: opened([galleries[name] for _, galleries in each]) for name in adapter.heads}
  return frozen, prepared, f"{len(stores)} shards on a cluster, {settings.replicas} of each"


def _base(settings: Settings) -> str | None:
  """Returns the folder that mapped galleries are written to."""
  return settings.prepared or (str(Path(settings.adapter) / "served") if Path(settings.adapter).is_dir() else None)


def _galleries(adapter: Adapter, store: FeatureStore, base: str | None) -> tuple[FeatureStore, dict[str, FeatureStore]]:
  """Returns the gallery at unit length, and as each head wants it; what has to be written goes to `base`."""
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
  return in_memory(gallery, jnp.float32 if single else None)


def index_of(kind: str, gallery: Gallery) -> Index:
  """Returns an index of a gallery, by the kind's name."""
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
  check_encoders("the queries", (encoder.name, encoder.revision), f"the gallery {store.folder}", known)
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
