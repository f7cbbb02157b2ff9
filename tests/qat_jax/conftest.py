"""A small adapter with random heads, and features for it."""

import numpy as np
import pytest

from qat_jax.adapter import Adapter
from tests.heads import moved

WIDTH = 8


@pytest.fixture(scope="session")
def head():
  """Returns a function that makes a head of a form and its settings, with random parameters."""

  return lambda form, /, **settings: moved(form, WIDTH, settings)


@pytest.fixture(scope="module")
def adapter(head):
  text = head("adaptive", hidden=8, rank=2, token_hidden=8)
  return Adapter(WIDTH, {"text": text, "image": head("static", maps_gallery=True)}, {"trained": "here"})


@pytest.fixture
def features():
  return np.random.default_rng(0).normal(size=(5, WIDTH)).astype(np.float32)
