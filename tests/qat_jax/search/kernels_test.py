import types

import jax.numpy as jnp
import numpy as np
import pytest

from qat_jax.search import kernels


@pytest.mark.parametrize("shape", [(1, 1), (50, 4), (128, 1), (1000, 8)])
@pytest.mark.parametrize("share", [0.0, 0.02, 1.0])
def test_what_reaches_a_threshold_is_counted_and_found_row_by_row(shape, share):
  upper_NQ = np.random.default_rng(0).uniform(size=shape).astype(np.float32)
  least_Q = np.full(shape[1], 1 - share, np.float32)
  rows = np.array([shape[0] // 5, shape[0]], np.int32)
  reached_NQ = (upper_NQ >= least_Q) & (np.arange(shape[0])[:, None] >= rows[0])
  wanted = np.flatnonzero(reached_NQ)
  for most in (max(1, len(wanted) // 2), len(wanted) + 3):
    count, place_P, value_P = kernels._reaching(jnp.asarray(upper_NQ), least_Q, rows, most)
    assert int(count) == len(wanted)
    some = wanted[:most]  # where there are more, the caller asks again
    np.testing.assert_array_equal(place_P[: len(some)], some)
    np.testing.assert_array_equal(value_P[: len(some)], upper_NQ.ravel()[some])


@pytest.mark.parametrize(
  ("platform", "dtype", "columns", "rows"),
  [
    ("cpu", "float32", 1, 1024),
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
