"""Told in words: alike in this, never mind that, this but blue. Maps made of words, with no training and no adapter.

An aspect is a set of words that differ in one thing: for the colour "a red thing", "a blue thing" and so on. Its rows
are the text features of such phrases. The differences of the rows from their mean, by a singular value decomposition
U S Vᵀ, are the directions along which the aspect varies, in pictures as in texts. Three maps follow:

    ignore    T = I − V Vᵀ, over S > 0.2 S₁
    alike     T = V diag(c) Vᵀ, c = (S/S₁)^½; of several aspects each is scaled by its mean size on the gallery
    change    T = I − m mᵀ, and the query trades its own part along the aspect for the text's

An encoder's texts and pictures lie apart. So `alike` and `change` take out the direction m of the gallery's mean.
"""

import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from qat_jax.adaptation import power_of_two, unit
from qat_jax.adapter import check_queries
from qat_jax.datasets.tables import decoded, once
from qat_jax.types import Adaptation, EncoderName, Gallery, as_gallery, check_encoders

ASPECTS = pathlib.Path(__file__).parent / "aspects.json"
IGNORED = 0.2  # of the first singular value, above which a direction of an ignored aspect is taken out
EVEN = 0.005  # root mean square distance of an aspect's rows from their mean, below which its words are all alike
CHANGED = 0.75  # how much the text counts beside the picture where something is changed
LEAST, SAMPLE = 100, 2048  # items that the gallery's mean needs, and that are looked at
RANKS = (8, 32, 128)  # columns that maps are padded to, and beyond a power of two: other aspects compile nothing anew
SMALL = 1e-6  # of the first singular value: what is smaller is rounding
LEFT = 0.3  # of the size of an aspect that is to be alike, which what is ignored must leave
NOTHING = 1e-4  # length, of a unit query or map, below which only rounding is left

Aspect = str | np.ndarray  # a name, or rows of text features (WD)


class Directions(NamedTuple):
  """What an aspect varies along: the first direction most."""

  name: str
  mean_D: np.ndarray
  size_R: np.ndarray  # singular values, falling
  direction_DR: np.ndarray  # orthonormal

  @property
  def main_DR(self) -> np.ndarray:
    """The directions that count where an aspect is ignored or changed."""
    return self.direction_DR[:, self.size_R > IGNORED * self.size_R[0]]


def by_words(
  query_QD: np.ndarray | Gallery,
  alike: Aspect | Sequence[Aspect] = (),
  ignore: Aspect | Sequence[Aspect] = (),
  change: str | np.ndarray | None = None,
  *,
  changed: str | Sequence[str] | None = None,
  aspects: Mapping[str, Any] | str | os.PathLike | None = None,
  encoder: Any = None,
  gallery: Any = None,
) -> Adaptation:
  """Returns the adaptation of Q queries told in words, for the frozen gallery: `rank`, `rerank` and `refine` take it.

  Args:
    query_QD: frozen features of pictures, or of texts.
    alike: what alone counts: aspects by name, or their rows (WD).
    ignore: what does not count, in the same way.
    change: what to put in place of the query's own, in words or as text features (D, or QD): "blue".
    changed: the aspect that `change` is about, or one for each query. None: the aspect that `named_aspect` gives.
    aspects: {name: phrases or rows}, or such a JSON file. None: the package's own, for photographs.
    encoder: of the queries; encodes what is given in words.
    gallery: 100 items or more of the frozen gallery: an array (ND), or all of it. `change` and several `alike` need it;
      one aspect alone is better with it where the encoder's texts and pictures lie apart.

  Raises ValueError, in one line, for aspects that are not there, empty, of one word, cut by the encoder or all alike,
  for requests that contradict each other, and for a query of which nothing is left.
  """
  encoder_name = getattr(query_QD, "encoder", None)  # of a FeatureStore
  if encoder is not None:
    check_encoders("the queries", encoder_name, "the encoder of the words", (encoder.name, encoder.revision))
  query = np.asarray(query_QD[:])
  check_queries(query, query.shape[-1])
  x_QD, book = unit(query), _Book(aspects, encoder, query.shape[1])
  likes, ignored = book.all_of("alike", alike), book.all_of("ignore", ignore)
  if not likes and not ignored and change is None:
    raise ValueError("nothing is told: give alike, ignore or change")
  if likes and change is not None:
    raise ValueError("alike and change contradict each other: alike counts one thing alone; use change with ignore")
  if gallery is None and (change is not None or len(likes) > 1):
    raise ValueError("change and several aspects need the gallery's mean and spread; give gallery=…, 100 items or more")
  maps = Maps(x_QD.shape[1], None if gallery is None else _sample(gallery, x_QD.shape[1]))
  told = maps.of(likes, ignored, centred=change is not None)
  target_QD = told(x_QD)
  if change is not None:
    kept_QD, new_QD = book.changed(x_QD, change, changed, ignored)
    target_QD = unit(_left(told(kept_QD), "kept")) + CHANGED * unit(_left(told(new_QD), "put in its place"))
  return told.adaptation(unit(_left(target_QD, "left")), encoder_name)


class Map(NamedTuple):
  """T = gate · I + left rightᵀ."""

  gate: float
  left_DR: np.ndarray
  right_DR: np.ndarray

  def __call__(self, x_QD: np.ndarray) -> np.ndarray:
    """Returns T x of rows (QD)."""
    return self.gate * x_QD + x_QD @ self.right_DR @ self.left_DR.T

  def adaptation(self, query_QD: np.ndarray, encoder: EncoderName | None = None) -> Adaptation:
    """Returns the adaptation of unit queries q' (QD) under this map, its factors padded to one of few sizes."""
    queries, (width, rank) = len(query_QD), self.left_DR.shape
    size = max(rank, min(width, next((size for size in RANKS if size >= rank), power_of_two(rank))))
    of_size = lambda x_DR: np.pad(x_DR, ((0, 0), (0, size - rank))).astype(np.float32)
    left, right = (jnp.broadcast_to(of_size(x_DR), (queries, width, size)) for x_DR in (self.left_DR, self.right_DR))
    gate_Q1 = jnp.full((queries, 1), self.gate, jnp.float32)
    return Adaptation(jnp.asarray(query_QD, jnp.float32), gate_Q1, left, right, encoder=encoder)


class Maps:
  """Maps of aspects' directions, for one gallery; without a sample of it, its mean stays in, and its spread unknown."""

  def __init__(self, width: int, sample_ND: np.ndarray | None = None) -> None:
    self.width, self.sample_ND = width, sample_ND
    self.middle_D1 = np.zeros((width, 0)) if sample_ND is None else unit(sample_ND.mean(axis=0))[:, None]

  def of(self, alike: Sequence[Directions], ignore: Sequence[Directions], centred: bool = False) -> Map:
    """Returns T; `centred`: the gallery's mean is taken out where nothing is to be alike, as `change` has it.

    Raises ValueError where both name one aspect, and where nothing is left to rank by.
    """
    if both := {one.name for one in alike} & {one.name for one in ignore}:
      raise ValueError(f"{min(both)!r} is both in alike and in ignore; leave it out of one of them")
    out_DR = np.concatenate([np.zeros((self.width, 0)), *(one.main_DR for one in ignore)], axis=1)
    if ignore:
      out_DR, size_R, _ = np.linalg.svd(out_DR, full_matrices=False)
      out_DR = out_DR[:, size_R > SMALL]
    if out_DR.shape[1] >= self.width:
      raise ValueError(f"what is ignored spans all {self.width} dimensions, so nothing is left; ignore less")
    if not alike:
      middle_D1 = self.middle_D1 if centred else self.middle_D1[:, :0]
      left_DR = np.concatenate([out_DR, middle_D1 - out_DR @ (out_DR.T @ middle_D1)], axis=1)
      return Map(1.0, -left_DR, np.concatenate([out_DR, middle_D1], axis=1))
    stacked = np.concatenate([self._coordinates(one, out_DR) for one in alike])
    _, size_R, direction_RD = np.linalg.svd(stacked, full_matrices=False)
    there_R = size_R > SMALL * size_R[0]
    return Map(0.0, direction_RD[there_R].T * (size_R[there_R] / size_R[0]), direction_RD[there_R].T)

  def _coordinates(self, one: Directions, out_DR: np.ndarray) -> np.ndarray:
    """Returns the rows (RD) that give an aspect's coordinates of an item, of mean size 1 on the gallery."""
    row_RD = np.sqrt(one.size_R / one.size_R[0])[:, None] * one.direction_DR.T
    row_RD = row_RD - row_RD @ self.middle_D1 @ self.middle_D1.T
    before = np.square(row_RD).sum()
    row_RD = row_RD - row_RD @ out_DR @ out_DR.T
    if np.square(row_RD).sum() < LEFT * before:
      raise ValueError(f"what is ignored leaves little of {one.name!r}, which is to be alike; ignore less")
    if self.sample_ND is None:
      return row_RD
    return row_RD / np.sqrt(np.square(self.sample_ND @ row_RD.T).sum(axis=1).mean())


def read_aspects(path: str | os.PathLike | None = None) -> dict[str, list]:
  """Returns {name: phrases} of a JSON file; None: the package's own. Raises ValueError for a file that is not such."""
  path = ASPECTS if path is None else pathlib.Path(path)
  try:
    book = json.loads(decoded(path.read_bytes(), path), object_pairs_hook=lambda pairs: once(pairs, path))
  except ValueError as error:
    raise ValueError(f'{path} is no JSON ({error}); write {{"colour": ["a red thing", …], …}}') from error
  fine = lambda value: isinstance(value, str) or (isinstance(value, list) and all(isinstance(x, str) for x in value))
  if not isinstance(book, dict) or not book:
    raise ValueError(f'{path} is no file of aspects; wanted {{"colour": ["a red thing", …], …}}')
  for name, phrases in book.items():
    if not isinstance(phrases, list) or not all(fine(value) for value in phrases):
      raise ValueError(f"{path}: the aspect {name!r} is no list of phrases, or of lists of phrases that say the same")
  return book


def encode(phrases: Sequence[str | Sequence[str]], encoder: Any, name: str = "given") -> np.ndarray:
  """Returns an aspect's rows (WD, float32, unit): of each value the mean of its phrases' features.

  Raises ValueError where the encoder reads no texts, or cuts one of them.
  """
  if encoder is None or not encoder.max_tokens:
    what = "there is no encoder" if encoder is None else f"the encoder {encoder.name} reads no texts"
    raise ValueError(f"{what}, so the words of {name!r} have no features; give a CLIP or a SigLIP, or rows of features")
  values = [[value] if isinstance(value, str) else list(value) for value in phrases]
  if blank := [value for value in values if not value or not all(phrase.strip() for phrase in value)]:
    raise ValueError(f"the aspect {name!r} has an empty phrase ({blank[0]}); leave it out")
  texts = [phrase for value in values for phrase in value]
  before, row_PD = encoder.truncated, encoder.texts(texts)
  if encoder.truncated > before:
    long = max(texts, key=len)
    raise ValueError(
      f"the encoder reads {encoder.max_tokens} tokens, and {name!r} has a longer phrase: {long!r}; cut it"
    )
  ends = np.cumsum([len(value) for value in values])[:-1]
  return np.stack([unit(unit(rows).mean(axis=0), np.float32) for rows in np.split(row_PD, ends)])


def named_aspect(text_QD: np.ndarray, aspects: Mapping[str, np.ndarray]) -> list[tuple[str, float]]:
  """Returns for each text the aspect that it names, by its rows, and how much of the text's difference lies in it."""
  found = [directions(row_WD, name) for name, row_WD in aspects.items()]
  text_QD = unit(text_QD)
  share_AQ = np.stack([np.linalg.norm((text_QD - one.mean_D) @ one.direction_DR, axis=1) for one in found])
  share_AQ /= np.stack([np.maximum(np.linalg.norm(text_QD - one.mean_D, axis=1), NOTHING) for one in found])
  best_Q = share_AQ.argmax(axis=0)
  return [(found[best].name, float(share_AQ[best, query])) for query, best in enumerate(best_Q)]


def directions(row_WD: np.ndarray, name: str = "given") -> Directions:
  """Returns what an aspect varies along, of its rows. Raises ValueError for fewer than two, and for rows all alike."""
  row_WD = np.asarray(row_WD)
  if len(row_WD) < 2:
    count = "is empty" if not len(row_WD) else "has one word"
    raise ValueError(f"the aspect {name!r} {count}; give at least 4 values that differ, better 16")
  if row_WD.ndim != 2 or not np.isfinite(row_WD.astype(np.float64)).all():
    raise ValueError(f"the aspect {name!r} is {row_WD.dtype} {row_WD.shape}; wanted finite rows of text features, W×D")
  row_WD = unit(row_WD)
  mean_D = row_WD.mean(axis=0)
  _, size_R, direction_RD = np.linalg.svd(row_WD - mean_D, full_matrices=False)
  if size_R[0] < EVEN * np.sqrt(len(row_WD)):
    raise ValueError(f"to the encoder the words of the aspect {name!r} are all alike; give words that differ more")
  there_R = size_R > SMALL * size_R[0]
  return Directions(name, mean_D, size_R[there_R], direction_RD[there_R].T)


class _Book:
  """The aspects of a call, by name; each is encoded when it is used."""

  def __init__(self, aspects: Any, encoder: Any, width: int) -> None:
    self.aspects = aspects if isinstance(aspects, Mapping) else read_aspects(aspects)
    self.encoder, self.width = encoder, width

  def all_of(self, role: str, given: Aspect | Sequence[Aspect]) -> list[Directions]:
    """Returns the directions of one aspect or several, each once."""
    several: list[Any] = [given] if isinstance(given, str | np.ndarray) else list(given)
    names = dict.fromkeys(one for one in several if isinstance(one, str))
    rows = [(np.asarray(one), f"{role} {place}") for place, one in enumerate(several) if not isinstance(one, str)]
    return [self._of_rows(row_WD, name) for row_WD, name in [*((self.rows(name), name) for name in names), *rows]]

  def rows(self, name: str) -> np.ndarray:
    """Returns the rows (WD) of an aspect by its name."""
    if name not in self.aspects:
      raise ValueError(f"there is no aspect {name!r}; there are {', '.join(self.aspects)}")
    there = self.aspects[name]
    return np.asarray(there) if isinstance(there, np.ndarray) or not len(there) else encode(there, self.encoder, name)

  def changed(
    self, x_QD: np.ndarray, change: str | np.ndarray, changed: str | Sequence[str] | None, ignored: list[Directions]
  ) -> tuple[np.ndarray, np.ndarray]:
    """Returns of each query what it keeps, and of the text what is put in place of the rest (two QD)."""
    text = encode([change], self.encoder, change) if isinstance(change, str) else np.atleast_2d(np.asarray(change))
    check_queries(text, self.width)
    if changed is None:
      changed = [name for name, _ in named_aspect(text, {name: self.rows(name) for name in self.aspects})]
    names = [changed] if isinstance(changed, str) else list(changed)
    for count, what in ((len(text), "changes"), (len(names), "changed aspects")):
      if count not in (1, len(x_QD)):
        raise ValueError(f"there are {count} {what} for {len(x_QD)} queries; give one, or one for each")
    text_QD = unit(np.broadcast_to(text, x_QD.shape))
    if both := set(names) & {one.name for one in ignored}:
      raise ValueError(f"{sorted(both)[0]} is both changed and ignored; leave it out of ignore")
    name_Q = names * (len(x_QD) // len(names))
    kept_QD, new_QD = np.empty_like(x_QD), np.empty_like(x_QD)
    for name in dict.fromkeys(name_Q):
      one, theirs = self._of_rows(self.rows(name), name), np.array([other == name for other in name_Q])
      kept_QD[theirs] = x_QD[theirs] - x_QD[theirs] @ one.main_DR @ one.main_DR.T
      new_QD[theirs] = (text_QD[theirs] - one.mean_D) @ one.main_DR @ one.main_DR.T
    return kept_QD, new_QD

  def _of_rows(self, row_WD: np.ndarray, name: str) -> Directions:
    if np.ndim(row_WD) == 2 and row_WD.shape[1] != self.width:
      raise ValueError(f"the aspect {name!r} is {row_WD.shape[1]} wide, the queries {self.width}; use one encoder")
    return directions(row_WD, name)


def _sample(gallery: Gallery | np.ndarray, width: int) -> np.ndarray:
  """Returns some unit items of a gallery (ND), evenly spaced. Raises ValueError for fewer than LEAST."""
  rows = as_gallery(gallery)
  if len(rows) < LEAST or rows.width != width or rows.space not in (None, "frozen"):
    got = f"{len(rows)} items, {rows.width} wide, in the space {rows.space or 'frozen'}"
    raise ValueError(f"the gallery for words has {got}; wanted {LEAST} frozen items or more, {width} wide")
  return unit(np.asarray(rows[np.linspace(0, len(rows) - 1, min(len(rows), SAMPLE)).astype(int)]))


def _left(x_QD: np.ndarray, what: str) -> np.ndarray:
  """Returns the rows; raises ValueError where nothing is left of one."""
  length_Q = np.linalg.norm(x_QD, axis=1)
  if (length_Q < NOTHING).any():
    raise ValueError(f"of query {length_Q.argmin()} nothing is {what} by these words; ask with others")
  return x_QD
