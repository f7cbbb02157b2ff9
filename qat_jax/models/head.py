"""A head: what serves one query type, a form of `qat_jax.models.forms` with its settings and its variables.

Variables lie in one safetensors file, each array by its path, such as `text/params/query_map/kernel`.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from qat_jax.adaptation import normalise
from qat_jax.models.forms import FORMS, initialise
from qat_jax.stages import checksum_of, fingerprint, write_whole


@dataclasses.dataclass(frozen=True)
class Head:
  """What serves one query type: a form and its variables."""

  form: str  # a key of FORMS
  settings: dict  # the form's keyword arguments
  variables: dict  # {"params": …, "constants": …}
  note: str = ""  # what fitting chose, in words

  def module(self, width: int) -> nn.Module:
    """Returns the form's Linen module."""
    return FORMS[self.form](width, **self.settings)

  @property
  def scale(self) -> float:
    """What its scores are multiplied by beside those of other galleries, so that they count as cosines do.

    A levelled score is (cosine − level) / 2. Experts' items are divided by the `longest`, and half of a query is the
    weight of what is taken off.
    """
    if self.form == "levelled":
      return 2.0 * self.inner.scale
    return 2**0.5 * float(self.variables["constants"]["longest"]) if self.form == "experts" else 1.0

  def initialise(self, width: int) -> dict:
    """Returns the variables that the form starts with."""
    return initialise(self.module(width), jax.random.key(0))

  @functools.cached_property
  def space(self) -> str:
    """The gallery that the head is for: `frozen`, or the name of what it makes of the gallery's items."""
    arrays = jax.tree.leaves(_gallery_side(self))
    if not arrays:
      return "frozen"
    digest = hashlib.blake2b(digest_size=8)
    for array in arrays:
      digest.update(np.asarray(array, np.float32).tobytes())
    return f"mapped-{digest.hexdigest()}"

  def prepare(self, gallery_ND: np.ndarray | jax.Array) -> jax.Array:
    """Returns the unit items (NE, float32) that the head's adaptations are for, of a gallery's rows (ND)."""
    if self.space == "frozen":  # one program for all heads that leave the items alone
      return _normalise(jnp.asarray(gallery_ND))
    return _prepare(self.module(gallery_ND.shape[1]), self.variables, jnp.asarray(gallery_ND))

  def whole(self, query_QD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns numbers (two Q, float64) that make scores of different queries comparable: score · first + second.

    Where the head is PLDA or experts, that is the whole log likelihood ratio; else the score itself.
    """
    module = self.module(query_QD.shape[1])
    if not hasattr(module, "whole"):
      return np.ones(len(query_QD)), np.zeros(len(query_QD))
    times_Q, plus_Q = module.apply(self.variables, jnp.asarray(query_QD, jnp.float32), method="whole")
    return np.asarray(times_Q, np.float64), np.asarray(plus_Q, np.float64)

  def items_wide(self, width: int) -> int:
    """Returns how wide the items are that the head wants, of a gallery of this width."""
    module, row_1D = self.module(width), jax.ShapeDtypeStruct((1, width), np.float32)
    return int(jax.eval_shape(lambda v, x: module.apply(v, x, method="prepare"), self.variables, row_1D).shape[1])

  def inside(self, form: str) -> Head | None:
    """Returns the head of a form that this one stands on, or itself; None where there is none."""
    head = self
    while head.form != form:
      if "form" not in head.settings or head.form == "ensemble":
        return None
      head = head.inner
    return head

  @property
  def inner(self) -> Head:
    """The head that this one, which is around another form, stands on."""
    variables = {kind: tree.get("head", {}) for kind, tree in self.variables.items()}
    return Head(self.settings["form"], self.settings["settings"], variables)

  @functools.cached_property
  def fingerprint(self) -> dict[str, Any]:
    """All that the head computes with, as `stages.fingerprint` takes it."""
    digest = hashlib.blake2b(digest_size=16)
    for path, leaf in jax.tree_util.tree_leaves_with_path(self.variables):
      digest.update(f"{name_of(path)} {leaf.dtype} {leaf.shape}".encode())
      digest.update(np.asarray(leaf).tobytes())
    return fingerprint(form=self.form, settings=self.settings, variables=digest.hexdigest())


_normalise = jax.jit(normalise)


@functools.partial(jax.jit, static_argnums=0)
def _prepare(module: nn.Module, variables: dict, gallery_ND: jax.Array) -> Any:  # apply has no better type
  return module.apply(variables, gallery_ND, method="prepare")


def _gallery_side(head: Head) -> dict:
  """Returns all of a head's variables that decide what it makes of the gallery's items; empty where it is normalise."""
  if "form" not in head.settings:
    return head.variables.get("params", {}).get("gallery_map", {})
  side = {"head": _gallery_side(head.inner)}
  if head.form in ("levelled", "projected", "experts") or head.settings.get("captions"):
    side |= {name: array for name, array in head.variables["constants"].items() if name != "head"}
  return side


def write_variables(folder: pathlib.Path, trees: Mapping[str, object]) -> dict[str, str] | None:
  """Writes trees of arrays to a file named after its content; returns its name and checksum, None for no arrays."""
  leaves = jax.tree_util.tree_leaves_with_path(dict(trees))
  if not leaves:
    return None
  data = safetensors.numpy.save({name_of(path): np.asarray(leaf, order="C") for path, leaf in leaves})
  checksum = checksum_of(data)
  name = f"params-{checksum[:8]}.safetensors"
  write_whole(folder / name, data)
  return {"file": name, "checksum": checksum}


def read_variables(
  folder: pathlib.Path, written: Mapping[str, str] | None, wanted: Mapping[str, Any]
) -> dict[str, Any]:
  """Returns trees of arrays (NumPy) in the shape of `wanted`; `written` is what `write_variables` returned.

  Raises ValueError where the file is missing or not as it was written, or arrays are others than those wanted.
  """
  arrays: dict[str, np.ndarray] = {}
  source = folder
  if written is not None:
    source = folder / written["file"]
    try:
      if pathlib.Path(written["file"]).name != written["file"]:
        raise ValueError("its name is no name of a file")
      data = source.read_bytes()
      if checksum_of(data) != written["checksum"]:
        raise ValueError(f"its checksum is not the one in {folder / 'adapter.json'}")
      arrays = safetensors.numpy.load(data)
    except (OSError, ValueError, SafetensorError) as error:
      raise ValueError(f"the parameters {source} are missing or damaged ({error}); save or fetch them again") from error
  check_shapes(arrays, wanted, source)
  return jax.tree_util.tree_map_with_path(
    lambda path, leaf: arrays[name_of(path)].astype(leaf.dtype, copy=False), dict(wanted)
  )


def check_shapes(saved: object, wanted: object, source: pathlib.Path) -> None:
  """Raises ValueError that names the first array in which two pytrees differ: there or not, and its shape."""
  got, want = _shapes(saved), _shapes(wanted)
  for name in sorted(got.keys() | want.keys()):
    if got.get(name) != want.get(name):
      raise ValueError(
        f"the checkpoint {source} has {got.get(name, 'nothing')} for {name}, the model wants "
        f"{want.get(name, 'nothing')}: it is another model's. Use another --workdir, or the config it was made with"
      )


def _shapes(tree: object) -> dict[str, tuple[int, ...]]:
  return {name_of(path): tuple(x.shape) for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def name_of(path: tuple[object, ...]) -> str:
  """Returns the name of an array by its path in a pytree, the parts joined by "/"."""
  return jax.tree_util.keystr(path, simple=True, separator="/")
