"""Items of another encoder are placed by the best of several maps, which says what it reaches."""

import numpy as np
import pyarrow as pa
import pytest

from qat_jax.adaptation import unit
from qat_jax.serve.collection.blocks import ADDED, PLACED
from qat_jax.serve.collection.collection import Collection, Item
from qat_jax.serve.collection.migrating import is_placed, maps, migrate, precision, told

OLD, NEW, ITEMS = 32, 48, 4000


@pytest.fixture(scope="module")
def drawn():
  """Two encoders of other seeds and widths, of the same pictures: features, and which show one thing."""
  rng = np.random.default_rng(0)
  instance_N = np.arange(ITEMS) // 4
  latent_NL = rng.standard_normal((ITEMS // 4, 24))[instance_N] + 0.55 * rng.standard_normal((ITEMS, 24))

  def encoder(width):
    first, second = rng.standard_normal((24, 96)) / 5, rng.standard_normal((96, width)) / 10
    return unit(np.tanh(latent_NL @ first) @ second, np.float32)

  return encoder(OLD), encoder(NEW), instance_N


def measured(query_ND, gallery_ND, instance_N):
  some = np.arange(0, ITEMS, 2)
  relevant = (instance_N[some][:, None] == instance_N[some]) & ~np.eye(len(some), dtype=bool)
  return precision(query_ND[some] @ gallery_ND[some].T, relevant)


@pytest.mark.long
@pytest.mark.parametrize("labelled", [True, False])
def test_a_map_learnt_from_a_sample_places_the_others(drawn, tmp_path, labelled):
  old_ND, new_NE, instance_N = drawn
  old, new = (Collection(tmp_path / name, (name, "1"), w) for name, w in (("old", OLD), ("new", NEW)))
  metadata = lambda i: {"instance": f"thing{instance_N[i]}"} if labelled else {}
  items = [Item(f"i{i}", metadata(i), old_ND[i].astype(np.float16), f"{i:032x}", "stamp") for i in range(ITEMS)]
  old.change(items, types={"instance": pa.string()})
  old.change([Item("mine", {}, old_ND[7], "", ADDED), Item("vector", {}, old_ND[7], "", ADDED)])
  asked = []

  def encode(ids):
    asked.extend(ids)
    row = {f"i{i}": new_NE[i] for i in range(ITEMS)} | {"mine": new_NE[7]}
    return {name: row[name] for name in ids if name in row}

  found = migrate(old, new, encode, 0.4 if labelled else 0.05)
  assert found.best in maps() and found.measure == ("mAP" if labelled else "of the 10 nearest")
  features, placed, stamps = {}, {}, {}
  for block in new.snapshot()[1]:
    for row_E, row, by_map in zip(block.rows, block.table.to_pylist(), is_placed(block), strict=True):
      features[row["id"]], placed[row["id"]], stamps[row["id"]] = row_E, by_map, row[".stamp"]
  assert set(features) == {*(f"i{i}" for i in range(ITEMS)), "mine"}
  assert {name for name in features if not placed[name]} == set(asked) - {"vector"}
  assert stamps["mine"] == ADDED and {stamps[name] for name, by_map in placed.items() if by_map} == {PLACED}
  gallery_NE = np.stack([features[f"i{i}"] for i in range(ITEMS)]).astype(np.float32)
  share = measured(new_NE, gallery_NE, instance_N) / measured(new_NE, new_NE, instance_N)
  assert share > (0.9 if labelled else 0.75)
  about = told(new.folder)
  assert about["from"] == ["old", "1"] and about["share"] == found.shares[found.best] == max(found.shares.values())
  assert told(old.folder) is None
  if labelled:
    assert abs(about["share"] - share) < 0.06  # the gate's word holds on the whole
  again = migrate(old, new, encode, 0.05)
  assert len(new) == ITEMS + 1 and again.shares
  for one in (old, new):
    one.close()


def test_too_few_items_are_refused(tmp_path):
  old, new = (Collection(tmp_path / name, (name, "1"), 4) for name in ("old", "new"))
  with pytest.raises(ValueError, match="too few"):
    migrate(old, new, lambda ids: {}, 0.05)
  for one in (old, new):
    one.close()
