import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qat_jax.search import coarse, kernels, uppers
from qat_jax.search.bounds import prepare
from qat_jax.search.gallery import Part
from qat_jax.types import Adaptation


@pytest.mark.parametrize("shape", [(1, 1), (50, 4), (128, 1), (1000, 8)])
@pytest.mark.parametrize("share", [0.0, 0.02, 1.0])
def test_what_reaches_a_threshold_is_counted_and_found_row_by_row(shape, share):
  upper_NQ = np.random.default_rng(0).uniform(size=shape).astype(np.float32)
  least_Q = np.full(shape[1], 1 - share, np.float32)
  wanted = np.flatnonzero(upper_NQ >= least_Q)
  for most in (max(1, len(wanted) // 2), len(wanted) + 3):
    count, place_P, value_P = uppers._reaching(jnp.asarray(upper_NQ), least_Q, most)
    assert int(count) == len(wanted)
    some = wanted[:most]  # where there are more, the caller asks again
    np.testing.assert_array_equal(place_P[: len(some)], some)
    np.testing.assert_array_equal(value_P[: len(some)], upper_NQ.ravel()[some])


@pytest.mark.parametrize(
  ("platform", "dtype", "columns", "rows"),
  [
    ("cpu", "float32", 1, 128),
    ("tpu", "float32", 1, 1 << 14),
    ("gpu", "float32", 1, 1 << 17),
    ("gpu", "float32", 60, 1 << 15),  # over 60 · 4 bytes: 34,952
    ("gpu", "bfloat16", 15, 1 << 15),  # 8 MB over 15 · 12 bytes are 46,603 rows
    ("gpu", "bfloat16", 320, 1 << 14),
  ],
)
def test_blocks_are_longer_on_a_gpu_while_its_cache_holds_their_products(platform, dtype, columns, rows):
  part = types.SimpleNamespace(platform=platform, features=types.SimpleNamespace(dtype=jnp.dtype(dtype)))
  assert kernels.block_rows(part, columns) == rows


def with_peaks(looked: uppers.Uppers) -> uppers.Uppers:
  """Returns bounds whose peaks are taken again."""
  return looked._replace(
    pieces=[piece._replace(peaks=uppers.peaks(np.asarray(piece.upper))) for piece in looked.pieces]
  )


def by_pair(looked: uppers.Uppers, least_Q: np.ndarray) -> dict[tuple[int, int], float]:
  query_P, item_P, upper_P = (x.tolist() for x in looked.reaching(least_Q))
  assert query_P == sorted(query_P)
  found = dict(zip(zip(query_P, item_P, strict=True), upper_P, strict=True))
  assert len(found) == len(query_P)
  return found


@pytest.mark.parametrize("rank", [0, 6])
@pytest.mark.parametrize(
  ("offset", "items", "window"), [(0, 300, 300), (200, 100, 150), (0, 130, 160), (140, 160, 160)]
)
@pytest.mark.parametrize("masked", [False, True])
def test_each_item_is_bounded_once_in_however_many_pieces(monkeypatch, rank, offset, items, window, masked):
  rng = np.random.default_rng(0)
  unit = lambda x: (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
  left, right = 0.2 * rng.standard_normal((2, 4, 16, rank)).astype(np.float32)
  query_QD, gallery_ND = unit(rng.standard_normal((4, 16))), unit(rng.standard_normal((300, 16)))
  prepared = prepare(Adaptation(query_QD, 1 + rng.random((4, 16), np.float32), left, right))
  wanted_N = rng.random(items) < 0.6 if masked else np.ones(items, bool)
  lengths = np.array([0.9999, 1.0001], np.float32)
  part = Part(1000, items, jnp.asarray(gallery_ND), offset, window, lengths, wanted_N if masked else None)

  def bounded(cores: int) -> uppers.Uppers:
    monkeypatch.setattr(kernels, "cores", lambda: cores)
    found = kernels.upper_bounds(prepared.bounds, part, 3)
    assert len(found.pieces) == cores
    return found

  monkeypatch.setattr(kernels, "PIECE_ROWS", 32)
  monkeypatch.setattr(kernels, "BLOCK_ROWS", {"cpu": 32})  # the last one goes over rows of the one before again
  whole, pieces = bounded(1), bounded(4)
  everything = by_pair(pieces, np.full(3, -np.inf))
  monkeypatch.setattr(uppers, "PEAKS", 1)
  pieces = with_peaks(pieces)
  assert everything.keys() == {(query, item) for query in range(3) for item in np.flatnonzero(wanted_N)}
  assert everything == pytest.approx(by_pair(whole, np.full(3, -np.inf)), rel=1e-5)
  least_Q = pieces.greatest(20)
  some = by_pair(pieces, least_Q)
  assert some == {pair: upper for pair, upper in everything.items() if upper >= least_Q[pair[0]]}
  grouped = [pieces.greatest(count) for count in range(1, 21)]
  monkeypatch.setattr(uppers, "PEAKS", 1 << 20)
  pieces = with_peaks(pieces)
  for query in range(3):
    upper_P = np.sort([upper for (own, _), upper in everything.items() if own == query])[::-1]
    for count in range(1, 21):
      assert grouped[count - 1][query] <= upper_P[count - 1]  # no fewer reach it
      assert pieces.greatest(count)[query] == np.float32(upper_P[count - 1])


def test_groups_are_sixteen_rows_each_without_what_is_over():
  upper_NQ = np.random.default_rng(0).permutation(2 * (256 * 16 + 5)).reshape(-1, 2).astype(np.float32)
  looked = uppers.Uppers([uppers.Piece(0, upper_NQ, uppers.peaks(upper_NQ))], 2, True, False)
  np.testing.assert_array_equal(jax.jit(uppers.peaks)(upper_NQ), looked.pieces[0].peaks)
  least_first = np.sort(upper_NQ[: 256 * 16].reshape(16, 256, 2).max(axis=0), axis=0)
  for count in (1, 100, 255):
    np.testing.assert_array_equal(looked.greatest(count), least_first[-count])
  assert (looked.greatest(256) == -np.inf).all()


@pytest.mark.parametrize("share", [0.0, 0.001, 0.005, 0.01, 0.5, 1.0])
def test_the_host_finds_all_that_reaches_in_groups_and_among_the_rows_that_are_over(share):
  upper_NQ = np.random.default_rng(0).uniform(size=(256 * 16 + 5, 4)).astype(np.float32)
  upper_NQ[-2:] = 2
  upper_NQ[7] = -np.inf
  looked = uppers.Uppers([uppers.Piece(100, upper_NQ, uppers.peaks(upper_NQ))], 3, True, False)
  wanted = np.argwhere(1 - share <= upper_NQ[:, :3].T)
  found = by_pair(looked, np.full(3, 1 - share))
  assert found == {(query, row + 100): upper_NQ[row, query] for query, row in wanted.tolist()}


@pytest.mark.parametrize(("offset", "items", "window"), [(0, 300, 300), (200, 100, 150), (140, 160, 160)])
@pytest.mark.parametrize("one_map", [False, True])
def test_calls_that_are_given_rows_of_their_own_bound_as_one_call_does(monkeypatch, offset, items, window, one_map):
  rng = np.random.default_rng(0)
  unit = lambda x: (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
  left, right = 0.2 * rng.standard_normal((2, 1 if one_map else 6, 64, 4)).astype(np.float32)
  query_QD, device = unit(rng.standard_normal((6, 64))), jax.devices()[-1]
  gallery_ND = jax.device_put(unit(rng.standard_normal((300, 64))), device)
  each = (6, 64, 4)
  prepared = prepare(
    Adaptation(query_QD, np.ones((6, 1), np.float32), np.broadcast_to(left, each), np.broadcast_to(right, each))
  )
  assert (prepared.one_map is not None) == one_map
  lengths, wanted_N = np.array([0.9999, 1.0001], np.float32), rng.random(items) < 0.6
  copy = jax.device_put(coarse.copied(gallery_ND), device)
  part = Part(0, items, gallery_ND, offset, window, lengths, wanted_N, copy, squares={})
  monkeypatch.setattr(kernels, "quicker_kind", lambda: "int8")

  def bounded(results: int) -> uppers.Uppers:
    monkeypatch.setattr(kernels, "RESULTS", results)
    return kernels.filtered(prepared, part, 5)

  whole, pieces = bounded(1 << 22), bounded(1)
  assert (len(whole.pieces), len(pieces.pieces)) == (1, -(-window // kernels.EVEN))
  assert all(piece.upper.devices() == {device} for piece in pieces.pieces)
  everything = by_pair(pieces, np.full(5, -np.inf))
  assert everything.keys() == {(query, item) for query in range(5) for item in np.flatnonzero(wanted_N)}
  assert everything == pytest.approx(by_pair(whole, np.full(5, -np.inf)), rel=1e-5)
