"""The `Adapter`: a head for each query type, loaded from and saved to a folder.

A folder holds `adapter.json` (width, forms, settings, provenance, the parameters' checksum) and one file of parameters.
adapter.json is written last and whole, so a kill at any moment leaves the old adapter or the new one.
"""

import functools
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, overload

import jax
import jax.numpy as jnp
import numpy as np

from qat_jax import hub, marks, types
from qat_jax.adaptation import power_of_two
from qat_jax.cluster.work import LOCAL
from qat_jax.features.prepared import prepared_features
from qat_jax.features.shards import is_unit
from qat_jax.features.store import FeatureStore
from qat_jax.models import head_files
from qat_jax.models import quari_files as released_files
from qat_jax.models.head import Head
from qat_jax.models.head_files import FILES
from qat_jax.planted import Planted, arrays
from qat_jax.search.sums import Term
from qat_jax.stages import lock
from qat_jax.types import KIND_OF_QUERY, QUERY_TYPES, Adaptation, EncoderName, Gallery

QUERY_BLOCK = 1024  # queries adapted in one call, which bounds the memory of their maps
SAMPLE_ROWS = 1024  # gallery rows looked at to tell whether the gallery is normalised


class Adapter:
  """Frozen query features → `Adaptation`, by a head for each query type.

  `info` is its provenance, of any entries: encoder, config, versions, the choice of the validation gate. `planted` are
  queries of validation by query type, for `qat_jax.calibrate`.
  """

  def __init__(
    self,
    width: int,
    heads: dict[str, Head],
    info: dict[str, Any] | None = None,
    planted: Mapping[str, Planted | Mapping[str, Any]] | None = None,
  ) -> None:
    unknown = set(heads) - set(QUERY_TYPES)
    if unknown or not heads:
      raise ValueError(f"an adapter has heads for {sorted(heads)}; wanted one or both of {QUERY_TYPES}")
    self.width, self.heads, self.info = width, dict(heads), dict(info or {})
    self.planted = {n: one if isinstance(one, Planted) else Planted(**one) for n, one in (planted or {}).items()}
    self._calls = {name: _jitted(head, width) for name, head in self.heads.items()}
    self._on_device: dict[str, dict] = {}  # variables after their first use: copying a memory's pairs takes long

  def __reduce__(self) -> tuple:
    return Adapter, (self.width, self.heads, self.info, self.planted)  # jitted functions are not copied, but made anew

  @property
  def params(self) -> dict[str, dict]:
    """The parameter tree: {query type: variables}."""
    return {name: head.variables for name, head in self.heads.items()}

  @property
  def fingerprint(self) -> dict[str, Any]:
    """Everything that decides what the adapter computes, for `stages.fingerprint`; without `info`."""
    return {"width": self.width, "heads": {name: head.fingerprint for name, head in self.heads.items()}}

  @property
  def encoder(self) -> EncoderName | None:
    """The encoder whose features the adapter was trained on; None if it is not known for certain.

    A released checkpoint names its encoder in its own words, which are only in `info`.
    """
    return (self.info["encoder"], self.info["revision"]) if {"encoder", "revision"} <= self.info.keys() else None

  def head(self, query_type: str | None = None) -> Head:
    """Returns the head of a query type, which may be None if all query types have the same head.

    Raises ValueError if there is no such head, or if heads differ and the type is None.
    """
    return self.heads[self._name(query_type)]

  def __call__(self, query_QD: jax.Array | np.ndarray | FeatureStore, query_type: str | None = None) -> Adaptation:
    """Returns the adaptation of Q queries (QD, frozen features of the adapter's encoder; any float dtype).

    `query_type` is "text" or "image". It may be None for a FeatureStore, whose kind says it, or if all heads are the
    same. Blocks of queries are padded to a power of two, so that few sizes are compiled.
    Raises ValueError for another width or encoder, no queries, a type that is missing or contradicts the store's, or a
    query with NaN or of length zero, named by its position.
    """
    encoder = self.encoder
    if isinstance(query_QD, FeatureStore):
      types.check_encoders(f"the queries {query_QD.folder}", query_QD.encoder, "the adapter", encoder)
      encoder = query_QD.encoder or encoder
      query_type, query_QD = _type_of(query_QD, query_type), query_QD[:]
    name = self._name(query_type)
    head, query_QD = self.heads[name], np.asarray(query_QD)
    check_queries(query_QD, self.width)
    if name not in self._on_device:
      self._on_device[name] = jax.device_put(head.variables)
    blocks = []
    for start in range(0, len(query_QD), QUERY_BLOCK):
      block_QD = query_QD[start : start + QUERY_BLOCK].astype(np.float32)
      size = power_of_two(len(block_QD))
      padded_QD = np.concatenate([block_QD, np.broadcast_to(block_QD[-1:], (size - len(block_QD), self.width))])
      adaptation = self._calls[name](self._on_device[name], jnp.asarray(padded_QD))
      blocks.append(adaptation if size == len(block_QD) else adaptation[: len(block_QD)])
    whole = blocks[0] if len(blocks) == 1 else jax.tree.map(lambda *x: jnp.concatenate(x), *blocks)
    return whole.replace(space=head.space, encoder=encoder, frozen=query_QD.astype(np.float32))

  @overload
  def prepare(
    self,
    gallery: np.ndarray | jax.Array,
    query_type: str | None = None,
    folder: str | os.PathLike | None = None,
    cluster: str = LOCAL,
  ) -> jax.Array: ...
  @overload
  def prepare(
    self,
    gallery: FeatureStore,
    query_type: str | None = None,
    folder: str | os.PathLike | None = None,
    cluster: str = LOCAL,
  ) -> FeatureStore: ...
  @overload
  def prepare(
    self, gallery: Gallery, query_type: str | None = None, folder: str | os.PathLike | None = None, cluster: str = LOCAL
  ) -> Gallery: ...
  def prepare(
    self,
    gallery: Gallery | np.ndarray | jax.Array,
    query_type: str | None = None,
    folder: str | os.PathLike | None = None,
    cluster: str = LOCAL,
  ) -> Gallery | jax.Array:
    """Returns the gallery that this adapter's queries are scored against; called once, offline.

    Args:
      gallery: an array (ND), which gives an array (float32, unit); or a FeatureStore or another Gallery, which is
        returned as it is if the head does not map it and its rows are of unit length.
      query_type: as in a call of the adapter.
      folder: where the new features are written if there are any. It remembers its gallery and map: a second call with
        the same ones opens it, a call with others says so and writes it anew.
      cluster: where the work is done (docs/scale.md).

    Raises:
      ValueError: the gallery was prepared by another adapter, has another width or encoder, or needs a `folder`.
      FileExistsError: the folder holds files that `prepare` did not make.
    """
    head, rows = self.head(query_type), types.as_gallery(gallery)
    name = str(getattr(rows, "folder", "")) or f"of {len(rows)} items"
    types.check_encoders(f"the gallery {name}", getattr(rows, "encoder", None), "the adapter", self.encoder)
    space = rows.space or "frozen"
    if space not in ("frozen", head.space):
      raise ValueError(f"the gallery {name} was prepared by another adapter ({space}); give prepare() the frozen one")
    wanted = self.width if space == "frozen" else head.items_wide(self.width)
    if rows.width != wanted:
      raise ValueError(f"the gallery {name} is {rows.width} wide; this adapter wants {wanted}")
    if not isinstance(gallery, Gallery):
      return head.prepare(gallery)
    if space == head.space and is_unit(np.asarray(rows[:SAMPLE_ROWS])):
      return gallery
    if isinstance(gallery, types.ArrayGallery):
      return types.ArrayGallery(head.prepare(gallery.array), head.space)
    if folder is None:
      what = "the adapter maps the gallery" if head.space != "frozen" else "the gallery's rows are not of unit length"
      raise ValueError(f"{what}, so it has to be written anew; say where: prepare(gallery, folder=…)")
    return prepared_features(folder, rows, functools.partial(_prepared, head, rows.dtype), head.space, cluster)

  def refine(self, adaptation: Adaptation, right: Any, weight: float = marks.WEIGHT) -> Adaptation:
    """Returns queries refined by pictures marked as right: normalise(q' + weight · mean of the marks' image queries).

    `right` holds frozen features: an array (RD) for one query, or a list of arrays, one for each query. A query without
    marks keeps its bits. Raises ValueError where the queries' head and the image head have other items or maps of their
    own: `refine_terms` then has the sum.
    """
    row_MD, owner_M = marks.listed_marks(right, len(adaptation), self.width)
    return marks.refined(adaptation, self(row_MD, "image"), owner_M, weight) if len(row_MD) else adaptation

  def refine_terms(
    self,
    adaptation: Adaptation,
    right: Any,
    galleries: Mapping[str, Any],
    query_type: str,
    weight: float = marks.WEIGHT,
  ) -> list[Term]:
    """As `refine`, for any heads, as terms of `qat_jax.rank_sum`.

    `adaptation`, `right` and `weight` are as for `refine`, `galleries` the prepared ones by query type. With the frozen
    one, as "frozen", scores beside another gallery are scaled to spread as plain ones do; without it, by head alone.
    """
    query = Term(adaptation, galleries[query_type], self.heads[query_type].scale)
    row_MD, owner_M = marks.listed_marks(right, len(adaptation), self.width)
    if not len(row_MD):
      return [query]
    mark, gallery = self(row_MD, "image"), galleries["image"]
    scale: np.ndarray | float = self.heads["image"].scale
    if query_type != "image" and "frozen" in galleries and adaptation.frozen is not None:
      query, scale = marks.evened(query, mark, gallery, galleries["frozen"])
    return marks.terms(query, mark, owner_M, gallery, weight, scale)

  def together(self, pictures_MD: np.ndarray | jax.Array) -> Adaptation:
    """Returns one query of several pictures of one thing: their scores add, each through the image head."""
    pictures_MD = np.asarray(pictures_MD)
    first = self(pictures_MD[:1], "image")
    return self.refine(first, pictures_MD[1:], len(pictures_MD) - 1) if len(pictures_MD) > 1 else first

  def save(self, folder: str | os.PathLike) -> None:
    """Writes the adapter to a folder, whole or not at all. It replaces an older adapter there; other files stay.

    Raises BlockingIOError if another process writes to the folder.
    """
    with lock(folder):
      head_files.write(pathlib.Path(folder).resolve(), self.width, self.heads, self.info, arrays(self.planted))

  def _name(self, query_type: str | None) -> str:
    if query_type is None:
      name, *others = self.heads
      if all(self.heads[other].fingerprint == self.heads[name].fingerprint for other in others):
        return name
      raise ValueError(f"this adapter has a head for each of {sorted(self.heads)} queries; say which: query_type=…")
    if query_type not in self.heads:
      raise ValueError(f"query_type is {query_type!r}, but this adapter has heads for {sorted(self.heads)} only")
    return query_type


def load(path: str | os.PathLike, revision: str | None = None) -> Adapter:
  """Returns the adapter in a run's folder, in an exported adapter's folder, or in a released QuARI checkpoint.

  `path` may also be `hf://owner/name` for an adapter or a checkpoint on the Hugging Face hub, with its `revision`.
  Raises FileNotFoundError if there is none, ValueError if it is damaged, of a later format, or if its parameters do not
  fit its forms.
  """
  address = str(path)
  if address.startswith("hf://"):
    folder = hub.download(address, (*FILES, *released_files.FILES), revision)
    source = f"{address}@{folder.name}"
    if not (folder / "adapter.json").exists():
      return Adapter(*head_files.read_released(folder, source))
    adapter = load(folder)
    adapter.info["source"] = source
    return adapter
  if revision is not None:
    raise ValueError(f"revision is {revision!r}, but {path} is no address on the hub; leave it out")
  path = pathlib.Path(path).resolve()
  folder = path if (path / "adapter.json").exists() else path / "adapter"
  if not (folder / "adapter.json").exists():
    if released_files.is_released(path):
      return Adapter(*head_files.read_released(path, path.name))
    raise FileNotFoundError(
      f"no adapter in {path}: neither adapter.json nor adapter/adapter.json. Train one with "
      "python -m train.main --config configs/demo.py --workdir …"
    )
  return Adapter(*head_files.read_heads(folder))


def check_queries(query_QD: np.ndarray, width: int) -> None:
  """Raises ValueError unless the queries are Q ≥ 1 finite rows of the given width, each 10⁻¹⁶ long or more."""
  if query_QD.ndim != 2 or query_QD.shape[1] != width or not jnp.issubdtype(query_QD.dtype, jnp.floating):
    raise ValueError(f"queries are {query_QD.dtype} {query_QD.shape}; wanted floats of shape (Q, {width})")
  if len(query_QD) == 0:
    raise ValueError("there are no queries: the array has 0 rows; give at least one")
  square_Q = np.square(query_QD.astype(np.float32)).sum(axis=1)
  broken = np.flatnonzero(~np.isfinite(square_Q) | (square_Q < 1e-32))  # float32 cannot scale shorter ones
  if len(broken):
    raise ValueError(f"query {broken[0]} is NaN, infinite or zero (and {len(broken) - 1} more); leave such queries out")


def _type_of(queries: FeatureStore, query_type: str | None) -> str:
  """Returns the query type of a store's kind; raises ValueError if `query_type` is another one."""
  type_of_store = next(name for name, kind in KIND_OF_QUERY.items() if kind == queries.kind)
  if query_type not in (None, type_of_store):
    raise ValueError(f"query_type is {query_type!r}, but {queries.folder} was opened as {queries.kind!r} features")
  return type_of_store


def _prepared(head: Head, dtype: np.dtype, rows_ND: np.ndarray) -> np.ndarray:
  return np.asarray(head.prepare(rows_ND), dtype)


def _jitted(head: Head, width: int) -> Callable[[dict, jax.Array], Adaptation]:
  module = head.module(width)
  return jax.jit(lambda variables, query_QD: module.apply(variables, query_QD))
