"""What one search asks, and what it found."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, Self

import numpy as np

from qat_jax.marks import WEIGHT
from qat_jax.serve.aspects import Words
from qat_jax.serve.summands import Summand
from qat_jax.serve.variety import Variety
from qat_jax.types import Ranking

Mode = Literal["plain", "adapted", "both"]


@dataclasses.dataclass(frozen=True)
class Part:
  """A part of a query: one of text, pixels (what `Encoding.pixels` made), an item's position, a vector (D)."""

  text: str | None = None
  pixels: Any = None
  position: int | None = None
  vector: np.ndarray | None = None
  weight: float = 1.0
  query_type: str | None = None
  mark: bool = False  # whether it is an item that was marked as right

  @property
  def kind(self) -> str:
    """What the part is: text, picture, item or vector."""
    kinds = {"text": self.text, "picture": self.pixels, "vector": self.vector}
    return next((name for name, value in kinds.items() if value is not None), "item")

  @property
  def type(self) -> str | None:
    """The query type that the part is of; None for a vector that does not say."""
    return self.query_type or ("text" if self.text is not None else None if self.vector is not None else "image")


@dataclasses.dataclass(frozen=True)
class Search:
  """One search: parts of a query, and what it may find."""

  parts: tuple[Part, ...]
  k: int = 20
  mode: Mode = "adapted"
  query_type: str | None = None
  exclude: np.ndarray | None = None  # positions
  allowed: np.ndarray | None = None  # positions, or bool N; searches with the same array go together
  group: np.ndarray | None = None  # N, of each item: the best groups are ranked, as `qat_jax.rank` has it
  variety: Variety = dataclasses.field(default_factory=Variety)
  words: Words = dataclasses.field(
    default_factory=Words
  )  # where it names aspects, adapted search goes by them, on the frozen gallery

  def with_right(self, positions: Sequence[int] | np.ndarray, weight: float = WEIGHT) -> Self:
    """Returns the search refined by marks: s = s_query + weight · mean of s_image(mark). No mark changes nothing.

    Each mark is an image query through its own head.
    """
    if not len(positions):
      return self
    each = weight * sum(abs(part.weight) for part in self.parts) / len(positions)
    marks = tuple(Part(position=int(position), weight=each, mark=True) for position in positions)
    return dataclasses.replace(self, parts=(*self.parts, *marks))


@dataclasses.dataclass
class Found:
  """What a search found; the rankings are of one query each."""

  query_type: str
  feature: np.ndarray  # D, unit: the weighted sum of the parts' features, what plain search looks for
  parts: list[tuple[Part, str, np.ndarray]]  # each with the query type that it goes by and its unit feature
  notes: list[str] = dataclasses.field(default_factory=list)
  terms: dict[str, list[Summand]] = dataclasses.field(default_factory=dict)  # of each side
  mixed: bool = False  # whether parts go through several heads, so that each score is scaled to its plain spread
  plain: Ranking | None = None
  adapted: Ranking | None = None
  alike: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)  # side → items that each result stands for
  seconds: dict[str, float] = dataclasses.field(default_factory=dict)  # of the batch, by stage


def ragged(lists: Sequence[np.ndarray | None], rows: int) -> np.ndarray:
  """Returns lists of positions as one array, −1 as padding; the last stands for rows beyond them."""
  arrays = [np.zeros(0, np.int64) if one is None else np.asarray(one, np.int64) for one in lists]
  filled = np.full((rows, max(map(len, arrays))), -1, np.int64)
  for row in range(rows):
    array = arrays[min(row, len(arrays) - 1)]
    filled[row, : len(array)] = array
  return filled
