import numpy as np
import pytest

from qat_jax import adaptation as algebra
from qat_jax.types import Adaptation


def make(rank: int, gate: str = "one", degenerate: str = "no", width: int = 40) -> Adaptation:
  rng = np.random.default_rng(rank)
  left, right = 0.7 * rng.standard_normal((2, 3, width, rank)) / (width * rank) ** 0.25
  gates = {"one": np.ones((3, 1)), "zero": np.zeros((3, 1)), "each": 1 + 0.3 * rng.standard_normal((3, width))}
  if degenerate == "zero":
    left *= 0
  elif degenerate == "repeated":
    left[..., 1:] = left[..., :1]
    right[..., 1:] = right[..., :1]
  query_QD = rng.standard_normal((3, width))
  return Adaptation(*(x.astype(np.float32) for x in (query_QD, gates[gate], left, right)))


def low_rank_part(adaptation: Adaptation) -> np.ndarray:
  """TᵀT − diag(g∘g), dense, in float64."""
  gate, left, right = (np.asarray(x, np.float64) for x in (adaptation.gate, adaptation.left, adaptation.right))
  width = left.shape[1]
  diagonal = np.stack([np.diag(np.broadcast_to(g, width)) for g in gate])
  map_QDE = diagonal + left @ right.transpose(0, 2, 1)
  return map_QDE.transpose(0, 2, 1) @ map_QDE - diagonal**2


CASES = pytest.mark.parametrize(
  ("rank", "gate", "degenerate"),
  [
    (4, "one", "no"),
    (4, "each", "no"),
    (4, "zero", "no"),
    (4, "one", "zero"),
    (4, "one", "repeated"),
    (30, "each", "no"),
  ],
)


@CASES
def test_the_spectrum_is_that_of_the_dense_map(rank, gate, degenerate):
  adaptation = make(rank, gate, degenerate)
  direction_QDE, value_QE = (np.asarray(x, np.float64) for x in algebra.spectrum(adaptation))
  assert value_QE.shape == (3, min(2 * rank, 40))
  again_QDD = direction_QDE * value_QE[:, None] @ direction_QDE.transpose(0, 2, 1)
  np.testing.assert_allclose(again_QDD, low_rank_part(adaptation), atol=5e-6)
  np.testing.assert_allclose(
    direction_QDE.transpose(0, 2, 1) @ direction_QDE,
    np.broadcast_to(np.eye(value_QE.shape[1]), (3, *[value_QE.shape[1]] * 2)),
    atol=1e-5,
  )
  assert (np.diff(np.abs(value_QE), axis=1) <= 0).all()


@CASES
@pytest.mark.parametrize("kept", [1, 4])
def test_lengths_lie_between_their_bounds(rank, gate, degenerate, kept):
  adaptation = make(rank, gate, degenerate)
  rng = np.random.default_rng(0)
  item_ND = rng.standard_normal((500, 40)).astype(np.float32)
  item_ND[:3] = algebra.spectrum(adaptation)[0][:, :, 0]
  item_ND /= np.linalg.norm(item_ND, axis=1, keepdims=True)
  part_QDD = low_rank_part(adaptation)
  gated_NQ = np.square(item_ND) @ np.broadcast_to(np.square(adaptation.gate), (3, 40)).T
  exact_NQ = gated_NQ + np.einsum("ND,QDE,NE->NQ", item_ND, part_QDD, item_ND)
  lead = algebra.leading(adaptation, kept)
  along = [item_ND @ lead.directions[:, :, i].T for i in range(kept)]
  low_NQ, high_NQ = algebra.bounds(lead, along, gated_NQ, np.ones((500, 1), np.float32))
  assert (low_NQ <= exact_NQ).all()
  assert (exact_NQ <= high_NQ).all()
  widest = np.abs(np.linalg.eigvalsh(part_QDD)).max()
  assert (high_NQ - low_NQ).mean() <= 2.2 * widest + 1e-3


@pytest.mark.parametrize("degenerate", ["no", "zero", "repeated"])
@pytest.mark.parametrize("decay", [1.0, 0.6])
@pytest.mark.parametrize("rank", [4, 12, 30])
def test_a_map_cut_down_differs_by_no_more_than_it_says(rank, decay, degenerate):
  adaptation = make(rank, "each", degenerate)
  adaptation = adaptation.replace(left=adaptation.left * decay ** np.arange(rank, dtype=np.float32))
  cut, error_Q = algebra.truncated(adaptation, 5)
  assert cut.left.shape[2] == min(rank, 5)
  low_rank = lambda a: np.einsum("QDR,QER->QDE", np.asarray(a.left, np.float64), np.asarray(a.right, np.float64))
  off_Q = np.linalg.norm(low_rank(adaptation) - low_rank(cut), ord=2, axis=(1, 2))
  singular_QD = np.linalg.svd(low_rank(adaptation), compute_uv=False)
  assert (off_Q <= error_Q + 1e-7).all()
  assert (error_Q <= 1.4 * off_Q + 0.02 * singular_QD[:, 0] + 1e-6).all()
  assert (off_Q <= 1.3 * singular_QD[:, 5] + 1e-4).all()
