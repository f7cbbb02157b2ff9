"""Random vectors of unit length, which most tests search, and another one in a feature folder."""

import pathlib

import numpy as np


def unit(x: np.ndarray) -> np.ndarray:
  """Returns x (…D) over its length, as float32."""
  return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def features(rows: int, width: int = 16, seed: int | np.random.Generator = 0) -> np.ndarray:
  """Returns unit rows (ND, float32) drawn with a seed, or by a generator that goes on."""
  x = np.random.default_rng(seed).standard_normal((rows, width)).astype(np.float32)
  return x / np.linalg.norm(x, axis=1, keepdims=True)


def change_a_feature(folder: pathlib.Path, kind: str = "img") -> None:
  """Makes a row of a feature folder that of another item, as if the folder had been written so."""
  path = folder / f"{kind}_emb/{kind}_emb_0000.npy"
  array = np.load(path)
  array[3] = array[4]
  np.save(path, array)
  (folder / "meta.json").unlink()  # else it is damage
