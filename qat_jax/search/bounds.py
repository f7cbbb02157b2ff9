"""What bounds a query's scores: a few directions of its map's spectrum, in float64 on the host.

A map T = diag(gate) + left @ rightᵀ is first cut down to rank 8 (`_cut`; exact up to there): |T z| differs from the cut
map's length by at most δ, the spectral norm of what was cut off. The cut map's TᵀT is diag(gate²) and a matrix whose
eigenvectors e_i and eigenvalues λ_i are those of a small eigenproblem. With m of them kept (the most negative, which
make items short, and the greatest), and λ* the least of the rest or 0,

    |T z| ≥ sqrt( |gate ∘ z|² + Σ_kept (λ_i − λ*) (e_i·z)² + λ* |z|² ) − δ |z| ,

and the numerator is w·z, w = Tᵀq'. So 1 + m columns a query bound every score; docs/proof.md has the proof, rounding
included. float64 holds every scale that float32 factors can have; what goes to the device is scaled by a power of two,
so that a map's size does not matter, nor how it is shared out between left and right.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from flax import struct

from qat_jax.search.cores import cores, on_cores
from qat_jax.types import Adaptation

MAPS = 8  # that a core decomposes at once, at most: a cache holds them in float64
RANK = 8  # that maps are cut down to; twice as many directions are a small eigenproblem
WORTH = 0.7  # of an item's usual length: a bound that reaches it rules nearly everything out
ALIKE = 10.0  # how much better than a random item, in squared cosine to w, those items are that nearly win
ROUNDS, STEPS, SPARE = (
  3,
  2,
  4,
)  # of the subspace iteration that cuts: it decides how good the bounds are, never if they hold
Array = jax.Array | np.ndarray  # on the host when it is made, on a device when it is used

UNIT = 2.0**-24  # the relative rounding of float32
LENGTHS = 1.02  # |z| of a unit item, at most
SPARE_PART = 1e-6  # of a cut: more than float64 rounds off _norm's powers, and float32 off √square − cut


class Factors(NamedTuple):
  """The maps themselves, for exact scores: scaled by a power of two, factors of equal length (float32)."""

  query: Array  # QD
  gate: Array  # QD, or Q1
  left: Array  # QDR
  right: Array  # QDR
  size: Array  # Q: how large the terms are that an item's map is a sum of; over its length, what rounding costs


@struct.dataclass
class Bounds:
  """What the filter needs of Q maps (float32): the terms of the module's formula, and the rounding of each."""

  columns: Array  # DC, C = Q (1 + m): every query's w, then every query's first direction, …
  weight: Array  # MQ: λ_i − λ*
  floor: Array  # Q: λ*, with gate² added where `square` is None
  square: Array | None  # DQ: gate∘gate, where |gate ∘ z|² is asked for
  cut: Array  # Q: δ
  longest: Array  # Q: |T z| / |z| at most
  slack: Array  # Q: rounding of the squared length
  numerator_slack: Array  # Q: rounding of w·z
  most: Array  # Q: no score is greater, |q'| and rounding


class Prepared(NamedTuple):
  """All that a search needs of Q adaptations, on the host."""

  bounds: Bounds
  factors: Factors
  tight: Bounds | None  # `each_query`, all directions of the cut maps: where cheaper than scores, and nearly as good


def prepare(adaptation: Adaptation) -> Prepared:
  """Returns bounds and factors of Q adaptations (finite; any scale that float32 holds)."""
  adaptation = _scaled(adaptation)
  query, gate, left, right = (np.asarray(getattr(adaptation, name)) for name in ("query", "gate", "left", "right"))
  queries, (width, rank) = len(query), left.shape[1:]
  starts = range(0, queries, max(1, min(MAPS, -(-queries // cores()))))
  maps = [tuple(x[i : i + starts.step] for x in (query, gate, left, right)) for i in starts]
  own = [np.concatenate(x) for x in zip(*on_cores(_decomposed, maps), strict=True)]
  gram_left_QRR, gram_right_QRR, folded_QD, cut_Q, value_QE, direction_QDE = own
  query_QD, gate_QD = (np.asarray(x, np.float64) for x in (query, gate))
  length_left_QR, length_right_QR = (np.sqrt(x.diagonal(axis1=1, axis2=2)) for x in (gram_left_QRR, gram_right_QRR))
  strength_QR = length_left_QR * length_right_QR
  size_Q = np.abs(gate_QD).max(axis=1) + np.linalg.norm(strength_QR, axis=1)
  terms_Q = np.abs(gate_QD).max(axis=1) + strength_QR.sum(axis=1)

  whole = functools.partial(_norm, gram_left_QRR, gram_right_QRR, gram_right_QRR, width)
  most_Q = np.linalg.norm(query_QD, axis=1)
  bounds, tight = _bounds(most_Q, folded_QD, gate_QD, value_QE, direction_QDE, cut_Q, terms_Q, rank, whole)
  return Prepared(bounds, Factors(query, gate, left, right, np.asarray(size_Q, np.float32)), tight)


def _decomposed(maps: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
  """Returns, in float64, what is needed of some queries' maps: query, gate, left and right.

  These are leftᵀleft and rightᵀright (QRR), w (QD), the cut's δ (Q), and what `_spectrum` returns.
  """
  query_QD, gate_QD, left_QDR, right_QDR = (np.asarray(x, np.float64) for x in maps)
  gram_left_QRR, gram_right_QRR = (_across(x) @ x for x in (left_QDR, right_QDR))
  folded_QD = gate_QD * query_QD
  if left_QDR.shape[2]:
    folded_QD = folded_QD + (right_QDR @ (_across(left_QDR) @ query_QD[:, :, None]))[:, :, 0]
  narrow_QDC, basis_QDC, cut_Q = _cut(left_QDR, right_QDR, gram_left_QRR, gram_right_QRR)
  return gram_left_QRR, gram_right_QRR, folded_QD, cut_Q, *_spectrum(gate_QD, narrow_QDC, basis_QDC)


def _rounding(width: int, rank: int) -> float:
  """Returns the proof's a: what float64 rounds off at most, as a part of max|gate| + Σ|l_r||r_r|, or of a trace."""
  return 16 * (width + rank + 16) * float(np.finfo(float).eps)


def _scaled(adaptation: Adaptation) -> Adaptation:
  """Returns maps about as large as 1, pairs of factors about equally long: moved by powers of two, nothing is rounded.

  Where they are within a factor of 2⁸ of it already, as nearly always, they come back as they are.
  """
  gate_QD, left_QDR, right_QDR = (np.asarray(x) for x in (adaptation.gate, adaptation.left, adaptation.right))
  left_QR, right_QR = (np.abs(x).max(axis=1, initial=0).astype(np.float64) for x in (left_QDR, right_QDR))
  dead_QR = (left_QR == 0) | (right_QR == 0)
  left_QR, right_QR = np.where(dead_QR, 1, left_QR), np.where(dead_QR, 1, right_QR)
  balance_QR = np.rint(np.log2(right_QR / left_QR) / 2)
  strength_QR = np.where(dead_QR, 0, left_QR * right_QR * right_QDR.shape[1])
  largest_Q = np.maximum(np.abs(gate_QD).max(axis=1), strength_QR.max(axis=1, initial=0))
  half_Q = np.rint(np.log2(np.where(largest_Q > 0, largest_Q, 1)) / 2)
  if max(np.abs(balance_QR).max(initial=0), np.abs(half_Q).max()) <= 4:
    return adaptation
  alive_QR = np.where(dead_QR, 0.0, 1.0)
  scale_left_QR, scale_right_QR = (alive_QR * np.exp2(sign * balance_QR - half_Q[:, None]) for sign in (1, -1))
  single = lambda x: np.asarray(x, np.float32)
  return adaptation.replace(
    gate=single(np.exp2(-2 * half_Q)[:, None] * gate_QD),
    left=single(scale_left_QR[:, None] * left_QDR),
    right=single(scale_right_QR[:, None] * right_QDR),
  )


def _across(matrix_QDR: np.ndarray) -> np.ndarray:
  return matrix_QDR.transpose(0, 2, 1)


def _cut(
  left_QDR: np.ndarray, right_QDR: np.ndarray, gram_left_QRR: np.ndarray, gram_right_QRR: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns U, V (QDC, V orthonormal), and |left rightᵀ − U Vᵀ| at most (Q; the spectral norm).

  Lemma 1: V is right's basis where its rank is at most RANK, else nearly its leading singular directions.
  """
  queries, width, rank = right_QDR.shape
  if min(width, rank) <= RANK:
    basis_QDC = np.linalg.qr(right_QDR).Q if rank else right_QDR
    return left_QDR @ (_across(right_QDR) @ basis_QDC), basis_QDC, np.zeros(queries)
  step_QRR = gram_left_QRR @ gram_right_QRR
  step_QRR /= np.maximum(np.linalg.norm(step_QRR, axis=(1, 2)), np.finfo(float).tiny)[:, None, None]
  start_RB = np.random.default_rng(0).standard_normal((rank, min(RANK + SPARE, rank)))
  guess_QRB = np.broadcast_to(start_RB, (queries, *start_RB.shape))
  for _ in range(ROUNDS):
    for _ in range(STEPS):
      guess_QRB = step_QRR @ guess_QRB
    guess_QRB = np.linalg.qr(guess_QRB).Q
  basis_QDB = np.linalg.qr(right_QDR @ guess_QRB).Q
  along_QRB = _across(right_QDR) @ basis_QDB
  rotation_QBC = np.linalg.eigh(_across(along_QRB) @ gram_left_QRR @ along_QRB)[1][:, :, -RANK:]
  along_QRC = along_QRB @ rotation_QBC
  # what V leaves of rightᵀright; float64 rounds some of a difference off, which _norm allows for
  rest_QRR = gram_right_QRR - along_QRC @ _across(along_QRC)
  return (
    left_QDR @ along_QRC,
    basis_QDB @ rotation_QBC,
    _norm(gram_left_QRR, rest_QRR, gram_right_QRR, width),
  )


def _norm(gram_left_QRR: np.ndarray, gram_right_QRR: np.ndarray, whole_QRR: np.ndarray, width: int) -> np.ndarray:
  """Returns a bound (Q) of |left rightᵀ|, tight to a few percent, from leftᵀleft and rightᵀright.

  With leftᵀleft ≤ K Kᵀ, the norm's square is at most the largest eigenvalue of H = Kᵀ rightᵀright K, and that is at
  most the Frobenius norm of H³² to the power 1/32: a sum of squares, in which nothing cancels. What float64 may have
  rounded off the matrices is added (lemma 2), `whole_QRR` being what the right one is a difference of.
  """
  rank, tiny, symmetric = gram_left_QRR.shape[1], np.finfo(float).tiny, lambda x: (x + _across(x)) / 2
  trace_left_Q, trace_right_Q = (np.trace(x, axis1=1, axis2=2) for x in (gram_left_QRR, whole_QRR))
  lift_Q = _rounding(width, rank) * trace_left_Q + tiny
  half_QRR = np.linalg.cholesky(gram_left_QRR + lift_Q[:, None, None] * np.eye(rank))
  power_QRR = symmetric(_across(half_QRR) @ symmetric(gram_right_QRR) @ half_QRR)
  logarithm_Q = np.zeros(len(power_QRR))
  for i in range(6):
    size_Q = np.maximum(np.linalg.norm(power_QRR, axis=(1, 2)), tiny)
    logarithm_Q += np.log(size_Q) / 2**i
    power_QRR = power_QRR / size_Q[:, None, None]
    power_QRR = power_QRR @ power_QRR
  rounded_Q = 2 * _rounding(width, rank) * trace_left_Q * trace_right_Q
  return np.sqrt(np.exp(logarithm_Q) * (1 + SPARE_PART) + rounded_Q)


def _spectrum(gate_QD: np.ndarray, left_QDC: np.ndarray, basis_QDC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns eigenvalues (QE, rising) and orthonormal directions (QDE) of TᵀT − diag(gate²), E = min(2C, D).

  |T z|² = |gate ∘ z|² + Σ λ_i (e_i·z)². The low-rank part of TᵀT is P S Pᵀ with P = [right, gate∘left] and
  S = [[leftᵀleft, I], [I, 0]] (lemma 3); P = Q C by a QR leaves the eigenproblem of C S Cᵀ.
  """
  queries, width, rank = left_QDC.shape
  if not rank:
    return np.zeros((queries, 0)), np.zeros((queries, width, 0))
  eye_QCC = np.broadcast_to(np.eye(rank), (queries, rank, rank))
  core_QSS = np.block([[left_QDC.transpose(0, 2, 1) @ left_QDC, eye_QCC], [eye_QCC, np.zeros_like(eye_QCC)]])
  basis_QDE, inner_QES = np.linalg.qr(np.concatenate([basis_QDC, gate_QD[:, :, None] * left_QDC], axis=2))
  matrix_QEE = inner_QES @ core_QSS @ inner_QES.transpose(0, 2, 1)
  value_QE, rotation_QEE = np.linalg.eigh((matrix_QEE + matrix_QEE.transpose(0, 2, 1)) / 2)
  return value_QE, basis_QDE @ rotation_QEE


def _bounds(
  most_Q: np.ndarray,
  folded_QD: np.ndarray,
  gate_QD: np.ndarray,
  value_QE: np.ndarray,
  direction_QDE: np.ndarray,
  cut_Q: np.ndarray,
  terms_Q: np.ndarray,
  rank: int,
  whole: Callable[[], np.ndarray],
) -> tuple[Bounds, Bounds | None]:
  """Returns the bounds with as few directions as are worth it; and with all, for each query, where these bound well.

  What is computed is a sum of `terms_Q`; `whole` computes |left rightᵀ| at most (Q), for where much was cut off.
  """
  queries, width = folded_QD.shape
  rounding = _rounding(width, rank)
  tiny = np.finfo(float).tiny
  square_QD = np.square(np.broadcast_to(gate_QD, (queries, width)))
  least_Q, mean_Q = square_QD.min(axis=1), square_QD.mean(axis=1)
  # how much of an item that the query would like lies along each direction
  aligned_QE = np.square((folded_QD[:, None] @ direction_QDE)[:, 0]) / np.maximum(
    np.square(folded_QD).sum(axis=1, keepdims=True), tiny
  )
  energy_QE = (1 + ALIKE * aligned_QE) / width
  usual_Q = np.sqrt(np.maximum(mean_Q + (value_QE * energy_QE).sum(axis=1), tiny))
  kept, rest_CQ, expected_CQ = _choices(value_QE, energy_QE)
  reach_CQ = lambda start_Q: np.sqrt(np.maximum(start_Q + expected_CQ, 0)) - cut_Q
  share_C = lambda start_Q: (reach_CQ(start_Q) / usual_Q).min(axis=1)
  shares_C, scalar = share_C(least_Q), True
  if gate_QD.shape[1] > 1 and shares_C.max() < WORTH:
    shares_C, scalar = share_C(mean_Q), False
  # the fewest that reach WORTH, else those that reach furthest
  place = int(np.argmax(np.minimum(shares_C, WORTH)))
  rest_Q, places = rest_CQ[place], np.flatnonzero(kept[place])
  own_cut_Q = cut_Q
  if shares_C[place] < WORTH and cut_Q.any():
    whole_Q = whole()
    if ((np.sqrt(least_Q) - whole_Q) / usual_Q).min() > shares_C[place]:
      # no directions: the gate alone, with all of left rightᵀ cut off
      places, rest_Q, own_cut_Q, scalar = places[:0], np.zeros(queries), whole_Q, True
  square_doubt_Q = 16 * rounding * np.square(terms_Q)
  longest_Q = np.sqrt(square_QD.max(axis=1) + np.maximum(value_QE.max(axis=1, initial=0), 0) + square_doubt_Q)
  in_single = (width + 16) * UNIT
  single = lambda x: np.asarray(x, np.float32)

  def keeping(places: np.ndarray, rest_Q: np.ndarray, cut_Q: np.ndarray, scalar: bool) -> Bounds:
    weight_QM, cut_Q = value_QE[:, places] - rest_Q[:, None], cut_Q + rounding * terms_Q
    floor_Q = rest_Q + (least_Q if scalar else 0)
    squares_Q = np.abs(weight_QM).sum(axis=1) + np.abs(floor_Q) + (0 if scalar else square_QD.max(axis=1))
    return Bounds(
      columns=single(np.concatenate([folded_QD.T, *(direction_QDE[:, :, i].T for i in places)], axis=1)),
      weight=single(weight_QM.T),
      floor=single(floor_Q),
      square=None if scalar else single(square_QD.T),
      cut=single(LENGTHS * cut_Q * (1 + SPARE_PART)),
      longest=single(LENGTHS * (longest_Q + cut_Q) * (1 + SPARE_PART)),
      slack=single(6 * in_single * squares_Q + square_doubt_Q),
      numerator_slack=single(4 * in_single * np.linalg.norm(folded_QD, axis=1) + rounding * terms_Q * most_Q),
      most=single(most_Q * (1 + 1e-5)),
    )

  tight = None
  if rank > 2 * RANK and (cut_Q <= (1 - WORTH) * usual_Q).all():
    tight = each_query(keeping(np.arange(value_QE.shape[1]), np.zeros(queries), cut_Q, gate_QD.shape[1] == 1))
  return keeping(places, rest_Q, own_cut_Q, scalar), tight


def each_query(bounds: Bounds) -> Bounds:
  """Returns bounds of Q queries as Q bounds of one query, stacked along a new first axis."""
  width, queries = len(bounds.columns), len(bounds.floor)
  stacked = jax.tree.map(lambda x: x.T[..., None], bounds)
  return stacked.replace(columns=bounds.columns.reshape(width, -1, queries).transpose(2, 0, 1))


def _choices(value_QE: np.ndarray, energy_QE: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns the sets of directions that may be kept (CE, bool), fewest first, and what each of the C comes to.

  A set is the lowest and the highest so many of them, at most RANK in all. With it come λ* (CQ), and what is to be
  expected of the bound beyond the gate's term (CQ).
  """
  size = value_QE.shape[1]
  counts = [(low, count - low) for count in range(min(size, RANK) + 1) for low in range(count + 1)]
  place_E = np.arange(size)
  kept_CE = np.stack([(place_E < low) | (place_E >= size - high) for low, high in counts])
  least_QE = np.minimum(np.pad(value_QE, ((0, 0), (0, 1))), 0)  # in rising order, and 0 where nothing is left
  rest_CQ = least_QE.T[[low if low + high < size else size for low, high in counts]]
  expected_CQ = rest_CQ + kept_CE @ (value_QE * energy_QE).T - rest_CQ * (kept_CE @ energy_QE.T)
  return kept_CE, rest_CQ, expected_CQ
