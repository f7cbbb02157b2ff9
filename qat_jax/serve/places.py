"""What `qat-jax serve PICTURES` is told: where the pictures are, where what is made of them lies, and its encoder."""

import dataclasses
import re
from pathlib import Path

from qat_jax.datasets.splits import open_source
from qat_jax.encoders import Encoder
from qat_jax.features.shards import shard_files
from qat_jax.features.store import FeatureStore
from qat_jax.sealed import read_record
from qat_jax.serve.collection.collection import RECORD
from qat_jax.serve.opening import shown_name
from qat_jax.types import EncoderName, check_encoders

HIDDEN = ".qat-jax"
TOY = "toy_clip"
REAL = "openai/clip-vit-base-patch16"
NOTICE = "the encoder toy_clip comes with the package and knows drawn toys alone; for photographs: --encoder " + REAL


@dataclasses.dataclass(frozen=True)
class Place:
  """What is served, and where what is made of it lies."""

  pictures: str  # a folder, tar shards, Parquet files, or a feature folder
  data: str | None = None  # None: beside the pictures
  encoder: str | None = None
  adapter: str | None = None
  images: str | None = None  # the pictures of a feature folder
  aspects: str | None = None
  keep_marks: str | None = None
  watch: bool = False
  learn: bool = False
  index: str = "exact"  # of the large blocks of a collection
  share: bool = False  # with other processes, of which one writes


def data_folder(place: Place) -> Path:
  """Returns where what is made lies; raises ValueError for an address that nothing can lie beside."""
  if place.data is not None:
    return Path(place.data)
  if "://" in place.pictures:
    raise ValueError(f"{place.pictures} is an address; say where the features shall lie: --data FOLDER")
  path = Path(place.pictures).expanduser()
  if path.is_dir():
    return path / HIDDEN
  return path.parent / f"{HIDDEN}-{slug(path.name)}"


def slug(name: str) -> str:
  """Returns a name as that of a folder."""
  return re.sub(r"[^A-Za-z0-9._]+", "-", shown_name(name)).strip("-.") or "encoder"


def features_in(pictures: str) -> FeatureStore | None:
  """Returns the store where a feature folder is served."""
  folder = Path(pictures)
  return FeatureStore.open(folder, "img") if folder.is_dir() and shard_files(folder, "img_emb", "npy") else None


def has_files(pictures: str) -> bool:
  """Says whether the source is a folder of picture files."""
  from qat_jax.datasets.folder import FolderSource

  return Path(pictures).is_dir() and isinstance(open_source("", "", pictures), FolderSource)


def encoder_name(place: Place, store: FeatureStore | None, root: Path) -> str | None:
  """Returns the encoder that is named, that of the features, the one used here before, or the bundled one."""
  if place.encoder is not None or store is not None:
    return place.encoder or (store.encoder[0] if store is not None and store.encoder else None)
  before = sorted(root.glob(f"*/{RECORD}"))
  if len(before) > 1:
    names = [read_record(path)["encoder"][0] for path in before]
    raise ValueError(f"{root} has features of {', '.join(names)}; say which to serve: --encoder NAME")
  return read_record(before[0])["encoder"][0] if before else TOY


def known_encoder(encoder: Encoder | None, store: FeatureStore | None) -> EncoderName:
  """Returns what a collection's features are of: the encoder, or what the features say; raises ValueError otherwise."""
  if encoder is not None:
    if store is not None:
      check_encoders("the encoder", (encoder.name, encoder.revision), f"the features {store.folder}", store.encoder)
    return encoder.name, encoder.revision
  if store is None:
    raise ValueError("pictures want an encoder; name one: --encoder NAME")
  return store.encoder or ("unknown", None)
