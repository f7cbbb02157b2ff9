"""Maps in float64 on the host: made about as large as 1, cut down to a low rank, and their spectra.

A map T = diag(gate) + left @ rightᵀ is cut down to rank 8, or taken whole where that would lose too much (`cut_down`):
|T z| differs from the cut map's length by at most δ, the spectral norm of what was cut off. The cut map's TᵀT is
diag(gate²) and a matrix whose eigenvectors and eigenvalues are those of a small eigenproblem (`spectrum`).
docs/proof.md has the lemmas. float64 holds every scale that float32 factors can have; what goes to the device is scaled
by a power of two, so that a map's size does not matter, nor how it is shared out between left and right.
"""

from __future__ import annotations

import functools
import hashlib
from typing import Any, NamedTuple

import numpy as np

from qat_jax.search.cores import cores, on_cores
from qat_jax.types import Adaptation

MAPS = 8  # that a core decomposes at once, at most: a cache holds them in float64
RANK = 8  # that maps are cut down to; twice as many directions are a small eigenproblem
# Maps whose singular values hardly fall, as those of words do, lose their length in such a cut. They are taken whole up
# to a rank of WIDE where all queries have one map, whose directions they share; of EACH_WIDE, where each has its own.
WIDE, EACH_WIDE = 64, 32
REMEMBERED = 16  # maps of all queries that were used last, such as those of words
LOST = 0.3  # of an item's usual length: a cut that may lose more is too deep
# Of the subspace iteration that cuts: it decides how good the bounds are, never if they hold.
ROUNDS, STEPS, SPARE = 3, 2, 4
SPARE_PART = 1e-6  # of a cut: more than float64 rounds off `norm`'s powers, and float32 off √square − cut


class ExactMaps(NamedTuple):
  """Q maps in float64, and what they come to."""

  query: np.ndarray  # QD
  gate: np.ndarray  # QD, or Q1
  gram_left: np.ndarray  # QRR, leftᵀleft
  gram_right: np.ndarray  # QRR, rightᵀright
  folded: np.ndarray  # QD: w = Tᵀq'
  cut: np.ndarray  # Q: δ
  values: np.ndarray  # QE, rising
  directions: np.ndarray  # QDE
  wide: bool = False  # whether more than RANK of it was left
  key: str = ""  # what tells the one map of all queries from others

  @property
  def one(self) -> bool:
    """Says whether one map serves all queries, and maybe later ones: a single query's that is cut down is its own."""
    return bool(self.key) and (self.wide or len(self.query) > 1)

  @property
  def first(self) -> ExactMaps:
    """Returns the first query's."""
    rest: dict[str, Any] = {name: x[:1] for name, x in self._asdict().items() if isinstance(x, np.ndarray)}
    return self._replace(**rest)

  @property
  def strength(self) -> np.ndarray:
    """Returns |l_r||r_r| (QR)."""
    left_QR, right_QR = (np.sqrt(x.diagonal(axis1=1, axis2=2)) for x in (self.gram_left, self.gram_right))
    return left_QR * right_QR

  @property
  def terms(self) -> np.ndarray:
    """Returns what the sizes of all terms add up to (Q): max|gate| + Σ|l_r||r_r|."""
    return np.abs(self.gate).max(axis=1) + self.strength.sum(axis=1)

  @property
  def rounding(self) -> float:
    """Returns the proof's a: what float64 rounds off at most, as a part of `terms`; more where maps are wide."""
    return rounding(self.folded.shape[1], self.gram_left.shape[1]) * ((WIDE / RANK) ** 2 if self.wide else 1)

  @property
  def loses(self) -> bool:
    """Says whether the cut may take much of the length of an item that lies along no direction more than others."""
    mean_Q = np.square(self.gate).mean(axis=1) + self.values.sum(axis=1) / self.folded.shape[1]
    return bool((self.cut > LOST * np.sqrt(np.maximum(mean_Q, 0))).any())

  def uncut(self) -> np.ndarray:
    """Returns |left rightᵀ| at most (Q), for where much was cut off."""
    return norm(self.gram_left, self.gram_right, self.gram_right, self.folded.shape[1])


_remembered: dict[str, ExactMaps] = {}


def remember(known: dict[str, Any], key: str, value: object) -> None:
  """Keeps what was found for a map, and forgets the map that was longest unused, as REMEMBERED are held."""
  known.pop(key, None)
  known[key] = value
  while len(known) > REMEMBERED:
    known.pop(next(iter(known.copy())), None)  # a copy: other threads remember too


def decomposed(adaptation: Adaptation) -> ExactMaps:
  """Returns what is needed of an adaptation's maps; a map that all queries have is decomposed once, and remembered."""
  query_QD, gate_QD, left_QDR, right_QDR = (
    np.asarray(getattr(adaptation, name)) for name in ("query", "gate", "left", "right")
  )
  alive_R = (left_QDR != 0).any(axis=(0, 1)) & (right_QDR != 0).any(axis=(0, 1))
  rank = int(np.flatnonzero(alive_R)[-1]) + 1 if alive_R.any() else 0
  left_QDR, right_QDR = left_QDR[:, :, :rank], right_QDR[:, :, :rank]  # what is left out pads maps of words
  one = rank > 0 and all((x[at] == x[0]).all() for at in (-1, ...) for x in (gate_QD, left_QDR, right_QDR))
  if not one:
    return _cut_or_wide([query_QD, gate_QD, left_QDR, right_QDR], EACH_WIDE)
  arrays = [np.ascontiguousarray(x[:1]) for x in (query_QD, gate_QD, left_QDR, right_QDR)]
  key = hashlib.blake2b(b"".join((str(x.shape).encode() + x.tobytes()) for x in arrays[1:]), digest_size=16).hexdigest()
  maps = _remembered.get(key) or _cut_or_wide(arrays, WIDE)._replace(key=key)
  remember(_remembered, key, maps)
  _, gate_1D, left_1DR, right_1DR = (x.astype(np.float64) for x in arrays)
  of_each = lambda x: np.broadcast_to(x, (len(query_QD), *x.shape[1:]))
  query_QD = query_QD.astype(np.float64)
  folded_QD = gate_1D * query_QD + (query_QD @ left_1DR[0]) @ right_1DR[0].T
  rest: dict[str, Any] = {name: of_each(x) for name, x in maps._asdict().items() if isinstance(x, np.ndarray)}
  return maps._replace(**rest | {"query": query_QD, "folded": folded_QD})


def _cut_or_wide(arrays: list[np.ndarray], most: int) -> ExactMaps:
  """Returns what is needed of maps: cut down to RANK, or whole up to `most` where the cut would lose too much."""
  maps = of_rank(arrays, RANK)
  return of_rank(arrays, WIDE)._replace(wide=True) if arrays[3].shape[2] <= most and maps.loses else maps


def of_rank(arrays: list[np.ndarray], most: int) -> ExactMaps:
  """Returns what is needed of maps, cut down to a rank of `most`; some of them on each core."""
  queries = len(arrays[0])
  each = min(MAPS, -(-queries // cores())) if arrays[2].shape[2] else queries  # a gate alone costs nothing
  starts = range(0, queries, max(1, each))
  pieces = [tuple(x[i : i + starts.step] for x in arrays) for i in starts]
  found = [piece[:-2] for piece in on_cores(functools.partial(_decomposed, most), pieces)]
  joined: list[Any] = [np.concatenate(x) for x in zip(*found, strict=True)]
  return ExactMaps(*joined)


def _decomposed(most: int, maps: tuple[np.ndarray, ...]) -> ExactMaps:
  """Returns what is needed of some queries' maps: query, gate, left and right."""
  query_QD, gate_QD, left_QDR, right_QDR = (np.asarray(x, np.float64) for x in maps)
  gram_left_QRR, gram_right_QRR = (_across(x) @ x for x in (left_QDR, right_QDR))
  folded_QD = gate_QD * query_QD
  if left_QDR.shape[2]:
    folded_QD = folded_QD + (right_QDR @ (_across(left_QDR) @ query_QD[:, :, None]))[:, :, 0]
  narrow_QDC, basis_QDC, cut_Q = cut_down(left_QDR, right_QDR, gram_left_QRR, gram_right_QRR, most)
  values_QE, directions_QDE = spectrum(gate_QD, narrow_QDC, basis_QDC)
  return ExactMaps(query_QD, gate_QD, gram_left_QRR, gram_right_QRR, folded_QD, cut_Q, values_QE, directions_QDE)


def rounding(width: int, rank: int) -> float:
  """Returns the proof's a: what float64 rounds off at most, as a part of max|gate| + Σ|l_r||r_r|, or of a trace."""
  return 16 * (width + rank + 16) * float(np.finfo(float).eps)


def scaled(adaptation: Adaptation) -> Adaptation:
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


def cut_down(
  left_QDR: np.ndarray, right_QDR: np.ndarray, gram_left_QRR: np.ndarray, gram_right_QRR: np.ndarray, most: int = RANK
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns U, V (QDC, V orthonormal), and |left rightᵀ − U Vᵀ| at most (Q; the spectral norm).

  Lemma 1: V is right's basis where its rank is at most `most`, else nearly its RANK leading singular directions.
  """
  queries, width, rank = right_QDR.shape
  if min(width, rank) <= most:
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
  # what V leaves of rightᵀright; float64 rounds some of a difference off, which `norm` allows for
  rest_QRR = gram_right_QRR - along_QRC @ _across(along_QRC)
  return (
    left_QDR @ along_QRC,
    basis_QDB @ rotation_QBC,
    norm(gram_left_QRR, rest_QRR, gram_right_QRR, width),
  )


def norm(gram_left_QRR: np.ndarray, gram_right_QRR: np.ndarray, whole_QRR: np.ndarray, width: int) -> np.ndarray:
  """Returns a bound (Q) of |left rightᵀ|, tight to a few percent, from leftᵀleft and rightᵀright.

  With leftᵀleft ≤ K Kᵀ, the norm's square is at most the largest eigenvalue of H = Kᵀ rightᵀright K, and that is at
  most the Frobenius norm of H³² to the power 1/32: a sum of squares, in which nothing cancels. What float64 may have
  rounded off the matrices is added (lemma 2), `whole_QRR` being what the right one is a difference of.
  """
  rank, tiny, symmetric = gram_left_QRR.shape[1], np.finfo(float).tiny, lambda x: (x + _across(x)) / 2
  trace_left_Q, trace_right_Q = (np.trace(x, axis1=1, axis2=2) for x in (gram_left_QRR, whole_QRR))
  lift_Q = rounding(width, rank) * trace_left_Q + tiny
  half_QRR = np.linalg.cholesky(gram_left_QRR + lift_Q[:, None, None] * np.eye(rank))
  power_QRR = symmetric(_across(half_QRR) @ symmetric(gram_right_QRR) @ half_QRR)
  logarithm_Q = np.zeros(len(power_QRR))
  for i in range(6):
    size_Q = np.maximum(np.linalg.norm(power_QRR, axis=(1, 2)), tiny)
    logarithm_Q += np.log(size_Q) / 2**i
    power_QRR = power_QRR / size_Q[:, None, None]
    power_QRR = power_QRR @ power_QRR
  rounded_Q = 2 * rounding(width, rank) * trace_left_Q * trace_right_Q
  return np.sqrt(np.exp(logarithm_Q) * (1 + SPARE_PART) + rounded_Q)


def spectrum(gate_QD: np.ndarray, left_QDC: np.ndarray, basis_QDC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
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
