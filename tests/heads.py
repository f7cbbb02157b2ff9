"""Heads with random parameters, of which nothing is as it was before training."""

import jax
import numpy as np

from qat_jax.models import forms
from qat_jax.models.head import Head


def moved(form: str, width: int, settings: dict, by: float = 0.1, seed: int | np.random.Generator = 3) -> Head:
  """Returns a head whose parameters lie so far from their start, drawn with a seed, or by a generator that goes on."""
  rng = np.random.default_rng(seed)
  variables = forms.initialise(forms.FORMS[form](width, **settings), jax.random.key(0))
  away = lambda x: np.asarray(x) + by * rng.standard_normal(x.shape).astype(np.float32)
  return Head(form, settings, variables | {"params": jax.tree.map(away, variables["params"])})
