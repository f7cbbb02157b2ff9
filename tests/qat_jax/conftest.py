"""A small adapter with random heads, and features for it."""

import jax
import numpy as np
import pytest

from qat_jax.adapter import Adapter
from qat_jax.models import forms
from qat_jax.models.head import Head

WIDTH = 8


@pytest.fixture(scope="session")
def head():
  """Returns a function that makes a head of a form and its settings, with random parameters."""

  def made(form: str, **settings) -> Head:
    variables = forms.initialise(forms.FORMS[form](WIDTH, **settings), jax.random.key(0))
    moved = lambda x: x + 0.1 * jax.random.normal(jax.random.key(3), x.shape)
    return Head(form, settings, variables | {"params": jax.tree.map(moved, variables["params"])})

  return made


@pytest.fixture(scope="module")
def adapter(head):
  text = head("adaptive", hidden=8, rank=2, token_hidden=8)
  return Adapter(WIDTH, {"text": text, "image": head("static", maps_gallery=True)}, {"trained": "here"})


@pytest.fixture
def features():
  return np.random.default_rng(0).normal(size=(5, WIDTH)).astype(np.float32)
