import contextlib

import jax
import jax.numpy as jnp
import numpy as np

from qat_jax.adaptation import Adaptation
from qat_jax.search.rank import rank, rerank
from qat_jax.search.warming import warm
from qat_jax.types import as_gallery
from tests.vectors import unit

ITEMS, WIDTH, QUERIES, LOW = 300, 6, 2, 1
FILTERS, GATHERS = 2 * (1 + 2 * LOW), 2  # a gate of every width, directions; 600 pairs are gathered in 256 or 1024 rows


@contextlib.contextmanager
def compiling():
  """Yields the names of what is compiled."""
  compiled = []
  listen = lambda name, seconds, **about: compiled.append(name) if "backend_compile" in name else None
  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    yield compiled
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)


def adaptation(rng: np.random.Generator, size: float) -> Adaptation:
  query_QD = rng.normal(size=(QUERIES, WIDTH)).astype(np.float32)
  left_QDR, right_QDR = (size * rng.normal(size=(QUERIES, WIDTH, LOW)).astype(np.float32) for _ in range(2))
  gate_QD = (1 + size * rng.normal(size=(QUERIES, WIDTH))).astype(np.float32)
  return Adaptation(query_QD / np.linalg.norm(query_QD, axis=1, keepdims=True), gate_QD, left_QDR, right_QDR)


def test_warming_compiles_as_many_programs_as_documented_and_searches_none():
  rng = np.random.default_rng(0)
  gallery_ND = rng.normal(size=(ITEMS, WIDTH)).astype(np.float32)
  gallery_ND /= np.linalg.norm(gallery_ND, axis=1, keepdims=True)
  with compiling() as compiled:
    warm(adaptation(rng, 0.1), as_gallery(gallery_ND))
    most = FILTERS + GATHERS + 3  # scores, the gallery's lengths, and where the default device is
    assert len(compiled) <= most
    warmed = len(compiled)
    for k in range(1, 60):
      one = adaptation(rng, float(np.exp(rng.uniform(-6, 2))))
      rank(one, gallery_ND, k, exclude=rng.integers(0, ITEMS, (QUERIES, 3)))
      rerank(one, gallery_ND, rng.integers(0, ITEMS, (QUERIES, 5 * k)), k)
    assert len(compiled) == warmed


def test_maps_of_words_compile_nothing_after_warming_whatever_the_words():
  rng, width, rank_R = np.random.default_rng(1), 24, 12
  gallery_ND = jnp.asarray(unit(rng.normal(size=(ITEMS, width))), jnp.float32)

  def told(directions: int, sign: float, queries: int) -> Adaptation:
    basis_DR = np.linalg.qr(rng.normal(size=(width, directions)))[0]
    padded = np.tile(np.pad(basis_DR, ((0, 0), (0, rank_R - directions))), (queries, 1, 1)).astype(np.float32)
    gate_Q1 = np.full((queries, 1), 1.0 if sign < 0 else 0.1, np.float32)
    return Adaptation(np.float32(unit(rng.normal(size=(queries, width)))), gate_Q1, sign * padded, padded)

  for queries in (1, 4):
    warm(told(rank_R, -1, queries), as_gallery(gallery_ND))
  with compiling() as compiled:
    for directions in range(1, rank_R + 1):
      for sign in (-1, 1):
        for queries in (1, 4):
          rank(told(directions, sign, queries), gallery_ND, 5)
  assert not compiled
