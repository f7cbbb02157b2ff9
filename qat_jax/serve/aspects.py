"""What a search says about aspects: what it shall be alike in, what it shall ignore, what its text changes.

`qat_jax.words` makes the maps. Here are the names and phrases, which a search carries until its batch is encoded.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence

from qat_jax.words import read_aspects

PHRASES = (2, 256)  # of an aspect: least and most


@dataclasses.dataclass(frozen=True)
class Aspect:
  """A name and its values, each told by one phrase or several."""

  name: str
  values: tuple[tuple[str, ...], ...]

  @classmethod
  def of(cls, name: str, phrases: Sequence[str | Sequence[str]]) -> Aspect:
    """Returns an aspect of phrases as JSON has them: one for each value, or a list for each."""
    return cls(name, tuple((value,) if isinstance(value, str) else tuple(value) for value in phrases))


@dataclasses.dataclass(frozen=True)
class Words:
  """What a search says about aspects. `guess`: the aspect that the text changes is the one of these that it names."""

  alike: tuple[Aspect, ...] = ()
  ignore: tuple[Aspect, ...] = ()
  change: Aspect | None = None
  guess: tuple[Aspect, ...] = ()

  def __bool__(self) -> bool:
    return bool(self.alike or self.ignore or self.change or self.guess)

  @property
  def names(self) -> list[str]:
    """The aspects that are named."""
    return [aspect.name for aspect in (*self.alike, *self.ignore, *filter(None, [self.change]))]

  def without(self, name: str) -> Words:
    """Returns the same without one aspect."""
    keep = lambda aspects: tuple(aspect for aspect in aspects if aspect.name != name)
    return Words(keep(self.alike), keep(self.ignore), None if self.change and self.change.name == name else self.change)


def read(path: str | os.PathLike | None) -> dict[str, Aspect]:
  """Returns the aspects of a JSON file, of the package for None; raises ValueError that says what is wrong in it."""
  aspects = {name: Aspect.of(name, phrases) for name, phrases in read_aspects(path).items()}
  least, most = PHRASES
  for name, aspect in aspects.items():
    if not least <= len(aspect.values) <= most:
      count = len(aspect.values)
      raise ValueError(f"{path}: the aspect {name!r} has {count} values; give {least} to {most}, about 16 do best")
  return aspects
