"""Aspects told in words: what a search shall be alike in, what it shall ignore, what a text changes.

An aspect is a name and phrases ("colour": "a red thing", "a blue thing", …). The features of its phrases, less their
mean, span the directions V in which the aspect varies, with singular values S. *Ignore* takes these directions off
queries and items. *Alike* keeps only them, the strong ones more. *Change* takes the query's own part in them away and
puts the text's in its place. All of it is a map T for the frozen gallery, so search stays exact and nothing is trained.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from qat_jax.adaptation import unit
from qat_jax.serve.limits import invalid
from qat_jax.types import Adaptation

STRONG = 0.2  # of the greatest singular value, above which *ignore* takes a direction off; measured, as is CHANGED
CHANGED = 0.75  # the weight of what the text changes beside the rest of the picture
ALIKE = 1e-3  # spread of the phrases' features below which an aspect has no direction
RANKS = (16, 64, 256)  # of T; zeros fill it up to one of these, so that few shapes are compiled
SAMPLE = 4096  # items that tell the gallery's mean and spread
CENTRED = 100  # items from which the mean is taken out: it holds the encoder's gap between texts and pictures
PHRASES = (2, 256)  # of an aspect: least and most


@dataclasses.dataclass(frozen=True)
class Aspect:
  """A name and the phrases that tell its values."""

  name: str
  phrases: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Words:
  """What a search says about aspects. `guess`: the aspect that the text changes is the one that it names best."""

  alike: tuple[Aspect, ...] = ()
  ignore: tuple[Aspect, ...] = ()
  change: Aspect | None = None
  guess: tuple[Aspect, ...] = ()

  def __bool__(self) -> bool:
    return bool(self.alike or self.ignore or self.change or self.guess)

  def without(self, name: str) -> Words:
    """Returns the same without one aspect."""
    keep = lambda aspects: tuple(aspect for aspect in aspects if aspect.name != name)
    change = None if self.change and self.change.name == name else self.change
    return Words(keep(self.alike), keep(self.ignore), change)

  @property
  def names(self) -> list[str]:
    """The aspects that are named."""
    return [aspect.name for aspect in (*self.alike, *self.ignore, *filter(None, [self.change]))]


@dataclasses.dataclass(frozen=True)
class Direction:
  """Where an aspect varies."""

  mean_D: np.ndarray  # of its phrases
  along_DR: np.ndarray  # orthonormal, the strongest first
  strength_R: np.ndarray  # singular values over the greatest


def read(path: str | os.PathLike) -> dict[str, Aspect]:
  """Returns the aspects of a JSON file, {name: [phrases]}; raises ValueError that says what is wrong in it."""
  try:
    content = json.loads(Path(path).read_bytes())
  except ValueError as error:
    raise ValueError(f"{path} is no JSON ({error}); write {{name: [phrases]}}") from error
  least, most = PHRASES
  if not isinstance(content, dict):
    raise ValueError(f"{path} holds a {type(content).__name__}; write {{name: [phrases]}}")
  for name, phrases in content.items():
    texts = [phrase for phrase in phrases if isinstance(phrase, str)] if isinstance(phrases, list) else []
    if not least <= len(texts) <= most or len(texts) < len(phrases):
      raise ValueError(f"{path}: the aspect {name!r} must be a list of {least} to {most} phrases; about 16 do best")
  return {name: Aspect(name, tuple(phrases)) for name, phrases in content.items()}


def direction(aspect: Aspect, row_WD: np.ndarray) -> Direction:
  """Returns where an aspect varies, from the features of its phrases; raises Refused where they are all alike."""
  row_WD = unit(row_WD)
  mean_D = row_WD.mean(axis=0)
  _, strength_R, along_RD = np.linalg.svd(row_WD - mean_D, full_matrices=False)
  if strength_R[0] < ALIKE * len(row_WD) ** 0.5:
    raise invalid(f"the phrases of the aspect {aspect.name[:60]!r} are all alike to the encoder; give others")
  strength_R = strength_R / strength_R[0]
  keep = strength_R > ALIKE
  return Direction(mean_D, along_RD[keep].T, strength_R[keep])


def guessed(aspects: Sequence[Aspect], row_WDs: Sequence[np.ndarray], text_D: np.ndarray) -> Aspect:
  """Returns the aspect with the phrase that is nearest to a text."""
  nearest = [float((unit(row_WD) @ unit(text_D)).max()) for row_WD in row_WDs]
  return aspects[int(np.argmax(nearest))]


class Maps:
  """T for a frozen gallery: the sample of its items gives the mean that is taken out, and the spread of aspects."""

  def __init__(self, sample_ND: np.ndarray) -> None:
    self.sample_ND = np.asarray(sample_ND, np.float64)
    few = len(sample_ND) < CENTRED
    self.mean_D = np.zeros(sample_ND.shape[1]) if few else unit(self.sample_ND.mean(axis=0))

  def of(self, alike: Sequence[Direction], ignore: Sequence[Direction], centred: bool = False) -> Mapping[str, Any]:
    """Returns gate, left and right of T (leading axis 1). `centred`: the gallery's mean is taken out of T = I too."""
    off_DR = np.linalg.qr(np.hstack([self._strong(one) for one in ignore]))[0] if ignore else None
    width = len(self.mean_D)
    if not alike:
      left_DR, right_DR = (np.zeros((width, 0)) if off_DR is None else off_DR,) * 2
      if centred:
        rest_D = self.mean_D - left_DR @ (left_DR.T @ self.mean_D)
        left_DR, right_DR = np.column_stack([left_DR, rest_D]), np.column_stack([right_DR, self.mean_D])
      return _padded(1.0, -left_DR, right_DR)
    stack_RD = np.vstack([self._block(one, off_DR) for one in alike])
    _, strength_R, along_RD = np.linalg.svd(stack_RD, full_matrices=False)
    keep = strength_R > ALIKE * strength_R[0]
    return _padded(0.0, along_RD[keep].T * strength_R[keep], along_RD[keep].T)

  def _strong(self, one: Direction) -> np.ndarray:
    return one.along_DR[:, one.strength_R > STRONG]

  def _block(self, one: Direction, off_DR: np.ndarray | None) -> np.ndarray:
    """Returns the rows (RD) that an aspect puts into T, of root mean square 1 on the gallery."""
    row_RD, mean_D = np.sqrt(one.strength_R)[:, None] * one.along_DR.T, self.mean_D
    if off_DR is not None:
      row_RD = row_RD - (row_RD @ off_DR) @ off_DR.T
      mean_D = unit(mean_D - off_DR @ (off_DR.T @ mean_D))
    row_RD = row_RD - (row_RD @ mean_D)[:, None] * mean_D
    spread = np.sqrt(np.square(self.sample_ND @ row_RD.T).sum(axis=1).mean())
    if spread < 1e-9:
      raise invalid("what shall be alike is all ignored; leave one of the two out")
    return row_RD / spread


def mapped(t: Mapping[str, Any], x_D: np.ndarray) -> np.ndarray:
  """Returns T x."""
  left_DR, right_DR = (np.asarray(t[name][0], np.float64) for name in ("left", "right"))
  return t["gate"][0] * x_D + left_DR @ (right_DR.T @ x_D)


def changed(t: Mapping[str, Any], change: Direction, picture_D: np.ndarray, text_D: np.ndarray) -> np.ndarray:
  """Returns the query (D) that has the picture's features but for one aspect, and the text's in that."""
  along = lambda x_D: change.along_DR @ (change.along_DR.T @ x_D)
  rest_D, new_D = picture_D - along(picture_D), along(text_D - change.mean_D)
  return unit(mapped(t, rest_D)) + CHANGED * unit(mapped(t, new_D))


def adaptation_of(t: Mapping[str, Any], query_D: np.ndarray) -> Adaptation:
  """Returns the adaptation of one query under T; raises Refused where T leaves nothing of it."""
  if not np.linalg.norm(query_D) > 1e-6:
    raise invalid("nothing of the query is left in these aspects; search for something else, or ignore less")
  return Adaptation(jnp.asarray(unit(query_D, np.float32)[None]), **t)


def _padded(gate: float, left_DR: np.ndarray, right_DR: np.ndarray) -> dict[str, np.ndarray]:
  """Returns a map with zero columns up to one of few ranks."""
  rank = left_DR.shape[1]
  columns = next((size for size in RANKS if size >= rank), rank) - rank
  pad = lambda x_DR: np.pad(x_DR, ((0, 0), (0, columns))).astype(np.float32)[None]
  return {"gate": np.full((1, 1), gate, np.float32), "left": pad(left_DR), "right": pad(right_DR)}
