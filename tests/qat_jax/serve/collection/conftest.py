import numpy as np
import pytest

from qat_jax.serve.collection import blocks
from qat_jax.serve.collection.collection import Collection, Item

WIDTH = 8


@pytest.fixture
def small_blocks(monkeypatch):
  """Blocks of few items, so that few changes merge them."""
  monkeypatch.setattr(blocks, "SIZES", (4, 16, 64))


@pytest.fixture
def opened(tmp_path):
  """Opens the collection of a folder; all are closed in the end."""
  there = []

  def again():
    for one in there:
      one.close()
    there[:] = [Collection(tmp_path / "data", ("maker", "1"), WIDTH)]
    return there[0]

  yield again
  for one in there:
    one.close()


def item(name, rng, metadata=None, **more):
  feature_D = rng.standard_normal(WIDTH)
  return Item(name, metadata or {}, (feature_D / np.linalg.norm(feature_D)).astype(np.float16), **more)


def content(collection):
  """Returns id → feature's bytes and metadata, in the collection's order; fails where an id is there twice."""
  found = {}
  for block in collection.snapshot()[1]:
    rows, table = block.living()
    for row_D, about in zip(rows, table.to_pylist(), strict=True):
      name = about.pop("id")
      assert name not in found
      found[name] = row_D.tobytes(), {k: v for k, v in about.items() if v is not None}
  return found
