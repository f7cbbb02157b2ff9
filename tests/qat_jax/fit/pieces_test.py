"""What is fitted and validated reads features in pieces: a training set and a gallery may be larger than memory."""

import numpy as np
import pytest

from qat_jax import validation
from qat_jax.fit import clusters, discriminant, experts, levels, linear, memory, training, whitening
from qat_jax.fit.training import PLAIN, Training
from qat_jax.types import Relevance
from qat_jax.validation import Validator

ROWS, WIDTH, PIECE = 240, 6, 32


class Store:
  """Rows that are read like those of a FeatureStore, and the most that were asked for at once."""

  def __init__(self, array_ND):
    self.array_ND, self.most = array_ND, 0

  def __len__(self):
    return len(self.array_ND)

  def __getitem__(self, rows):
    found_ND = self.array_ND[rows]
    self.most = max(self.most, len(found_ND))
    return found_ND


@pytest.fixture
def small(monkeypatch):
  """Has pieces be of few rows everywhere."""
  monkeypatch.setattr(validation, "RESIDENT", 0)
  monkeypatch.setattr(validation, "PIECE", 4 * PIECE * ROWS // 4)  # a fourth of the rows are queries
  monkeypatch.setattr(training, "CHUNK_ROWS", PIECE)
  monkeypatch.setattr(discriminant, "LENGTH_ROWS", PIECE)
  monkeypatch.setattr(linear, "BATCH", PIECE // 4)
  monkeypatch.setattr(linear, "READ", 4)
  monkeypatch.setattr(clusters, "CHUNK", PIECE)
  monkeypatch.setattr(experts, "FREEDOM", 10)
  monkeypatch.setattr(levels, "BLOCK", PIECE)
  monkeypatch.setattr(levels, "CENTRE_ROWS", PIECE)
  monkeypatch.setattr(levels, "FEW_ITEMS", PIECE)
  for function in (discriminant.within_covariance, discriminant.within_scatter):
    monkeypatch.setattr(function, "__defaults__", (PIECE,))
  monkeypatch.setattr(memory.neighbours, "__defaults__", (PIECE,))


def rows(seed):
  rng = np.random.default_rng(seed)
  return (np.repeat(rng.normal(size=(ROWS // 3, WIDTH)), 3, axis=0) + rng.normal(size=(ROWS, WIDTH))).astype(np.float32)


def relevance():
  instance_N = np.arange(ROWS) // 3
  own = [np.array([i]) for i in range(0, ROWS, 4)]
  return Relevance([np.flatnonzero(instance_N == instance_N[i[0]]) for i in own], own)


@pytest.mark.parametrize(
  "fit",
  [
    discriminant.both_sides,
    discriminant.query_alone,
    discriminant.probabilistic,
    whitening.fit_whitening,
    linear.fit_linear,
    memory.neighbours,
    lambda training, validator: memory.fit_memory(training, validator, PLAIN, PIECE),
    lambda training, validator: memory.captioned(training, validator, PLAIN, training.images, PIECE),
    lambda training, validator: levels.fit_levels(training, validator, PLAIN, PIECE),
    experts.fit_experts,
  ],
  ids=["both", "query", "plda", "whitening", "linear", "neighbours", "remembering", "captioned", "levelled", "experts"],
)
def test_a_fit_reads_features_in_pieces(small, fit):
  images, gallery = Store(rows(0)), Store(rows(1))
  validator = Validator(rows(1)[::4], gallery, relevance(), 0, 0)
  assert fit(Training("image", images, images, np.arange(ROWS) // 3), validator) is not None
  assert 0 < images.most <= PIECE and 0 < gallery.most <= PIECE


def test_a_gallery_in_pieces_gives_the_precisions_of_the_whole(small, monkeypatch):
  gallery_ND = rows(1).round(1)
  gallery_ND[100:160] = gallery_ND[40:100]  # equal scores, in other pieces
  pieces = Validator(gallery_ND[::4], Store(gallery_ND), relevance(), 0, 0)
  monkeypatch.setattr(validation, "RESIDENT", 1 << 30)
  whole = Validator(gallery_ND[::4], gallery_ND, relevance(), 0, 0)
  assert whole.resident and not pieces.resident
  np.testing.assert_array_equal(pieces.precisions(PLAIN), whole.precisions(PLAIN))
  np.testing.assert_array_equal(pieces.subset(5).precisions(PLAIN), whole.subset(5).precisions(PLAIN))
  np.testing.assert_array_equal(pieces.gallery_ND, whole.gallery_ND)


def test_a_linear_layer_does_not_depend_on_how_much_is_read_at_once(monkeypatch):
  images = rows(0)
  monkeypatch.setattr(linear, "BATCH", 16)
  monkeypatch.setattr(linear, "EPOCHS", 2)
  fitted = []
  for read in (1000, 4):
    monkeypatch.setattr(linear, "READ", read)
    validator = Validator(rows(1)[::4], rows(1), relevance(), 0, 0)
    fitted.append(
      linear.fit_linear(Training("image", images, images, np.arange(ROWS) // 3), validator).variables["params"]
    )
  for name in ("map", "bias"):
    np.testing.assert_allclose(fitted[0]["gallery_map"][name], fitted[1]["gallery_map"][name], atol=1e-6)
