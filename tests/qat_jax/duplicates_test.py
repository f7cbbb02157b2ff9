import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qat_jax import duplicates
from qat_jax.features.store import write_features


def gallery(items, width, seed, noise):
  """Returns items of which some are copies of others, with noise, and some are zero."""
  rng = np.random.default_rng(seed)
  base = rng.standard_normal((max(1, items // 3), width)) * np.linspace(2, 0.1, width)
  rows = base[rng.integers(0, len(base), items)]
  rows = rows * rng.uniform(0.5, 2, (items, 1)) + noise * rng.standard_normal((items, width))
  rows[rng.random(items) < 0.02] = 0
  return rows.astype(np.float32)


def slow(item_ND, threshold):
  """Returns all pairs in float64."""
  item_ND = item_ND.astype(np.float64)
  length_N1 = np.linalg.norm(item_ND, axis=1, keepdims=True)
  unit_ND = item_ND / np.where(length_N1 > 0, length_N1, 1)
  cosine_NN = unit_ND @ unit_ND.T
  first, second = np.nonzero(np.triu(cosine_NN >= threshold, 1))
  return dict(zip(zip(first.tolist(), second.tolist(), strict=True), cosine_NN[first, second], strict=True))


@pytest.mark.long
@pytest.mark.compile
@settings(max_examples=40, deadline=None)
@given(
  items=st.sampled_from([1, 2, 300, 500]),
  width=st.sampled_from([2, 8, 33]),
  threshold=st.sampled_from([0.5, 0.9, 0.97, 0.999]),
  noise=st.sampled_from([0.0, 0.05, 0.3]),
  centres=st.sampled_from([1, 7, 64]),
  half=st.booleans(),
  again=st.sampled_from([0.0, duplicates.AGAIN]),
  seed=st.integers(0, 2**31),
)
def test_pairs_are_all_that_float64_has(items, width, threshold, noise, centres, half, again, seed):
  item_ND = gallery(items, width, seed, noise)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(duplicates, "TILE", 64)
    patch.setattr(duplicates, "AGAIN", again)  # 0: the fewest directions
    patch.setattr(duplicates, "multiplies_faster", lambda *_: half)
    patch.setattr(duplicates, "HEADS", (4, 16))
    patch.setattr(duplicates, "EACH", max(1, items // centres))
    found = duplicates.pairs(item_ND, threshold)
  got = list(zip(found.first.tolist(), found.second.tolist(), strict=True))
  assert got == sorted(set(got)) and (found.first < found.second).all()
  near = slow(item_ND, threshold - 2e-6)
  sure = {pair for pair, cosine in near.items() if cosine >= threshold + 2e-6}
  assert sure <= set(got) <= set(near)
  np.testing.assert_allclose(found.cosine, [near[pair] for pair in got], atol=2e-6)


def test_groups_are_joined_through_any_number_of_pairs():
  rng = np.random.default_rng(0)
  chain = rng.permutation(200)
  first, second = chain[:-1], chain[1:]
  low, high = np.minimum(first, second), np.maximum(first, second)
  assert set(duplicates.groups(202, duplicates.Pairs(low, high, low)).tolist()) == {0, 200, 201}
  none = np.zeros(0, np.int64)
  assert duplicates.groups(3, duplicates.Pairs(none, none, none)).tolist() == [0, 1, 2]


def test_a_folder_of_features_is_read_and_a_threshold_out_of_range_refused(tmp_path):
  item_ND = gallery(50, 8, 0, 0.0) + 1e-3
  store = write_features(tmp_path / "g", {"img": item_ND}, {"id": [str(i) for i in range(50)]})
  np.testing.assert_array_equal(duplicates.pairs(store).first, duplicates.pairs(item_ND).first)
  for wrong in (0.2, 1.1, float("nan")):
    with pytest.raises(ValueError, match=r"give a cosine from 0\.5 to 1"):
      duplicates.pairs(item_ND, wrong)


def test_bfloat16_rounds_two_factors_by_no_more_than_its_slack():
  item_D = np.full(64, (1 + 2.0**-8) / 8, np.float32)  # halfway between two numbers of bfloat16: the most it rounds off
  half_D = np.asarray(jnp.asarray(item_D, jnp.bfloat16), np.float64)
  lost = 1 - half_D @ half_D / np.square(item_D, dtype=np.float64).sum()
  assert 2.0**-8 < lost <= duplicates.HALF_SLACK


def test_an_item_that_is_not_finite_is_named():
  item_ND = gallery(50, 8, 0, 0.0) + 1e-3
  item_ND[7, 3] = np.nan
  with pytest.raises(ValueError, match="item 7 has NaN or infinity"):
    duplicates.pairs(item_ND)
