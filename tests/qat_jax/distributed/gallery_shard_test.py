"""What shards have to have in common, and where their actors are; without a cluster."""

import pathlib
import shutil

import numpy as np
import pytest

from qat_jax.cluster.nodes import Slot
from qat_jax.distributed.gallery_shard import GalleryShard, check_names, check_shards_alike, rooms
from qat_jax.features.store import write_features


@pytest.fixture
def shard(tmp_path):
  """Returns a function that writes a folder and gives the shard of it."""

  def written(name, width=8, ids=("a", "b", "c"), **meta):
    write_features(tmp_path / name, {"img": np.eye(len(ids), width, dtype=np.float32)}, {"id": ids}, meta)
    return GalleryShard(str(tmp_path / name), None, None, False)

  return written


@pytest.mark.parametrize(
  ("other", "message"),
  [
    ({"width": 9}, "differ in width: .*one has 8, .*two has 9"),
    ({"space": "mapped-1"}, "differ in space: .*one has 'frozen', .*two has 'mapped-1'"),
    ({"encoder": "f"}, "shard .*one is of the encoder e, shard .*two of f"),
  ],
)
def test_shards_that_differ_are_named(shard, other, message):
  shards = shard("one", encoder="e"), shard("none"), shard("two", **{"encoder": "e", **other})
  paths, about = [one.path for one in shards], [one.about() for one in shards]
  check_shards_alike(paths[:2], about[:2])
  with pytest.raises(ValueError, match=message):
    check_shards_alike(paths, about)


def test_an_id_in_two_shards_is_named_and_rows_that_are_only_numbered_have_none(shard):
  shards = shard("one"), shard("two", ids=("d", "b", "e")), shard("three", ids=("f",)), shard("four", ids=("g",))
  for one in shards[2:]:
    shutil.rmtree(f"{one.path}/metadata")
    pathlib.Path(one.path, "meta.json").unlink()
  shards = [GalleryShard(one.path, None, None, False) for one in shards]
  paths, names = [one.path for one in shards], [one.names() for one in shards]
  ids_of = lambda places: [shards[place].ids() for place in sorted(places)]
  check_names(paths[1:], names[1:], ids_of)
  with pytest.raises(ValueError, match=r"the id 'b' occurs more than once in .*one and .*two \(1 such ids"):
    check_names(paths, names, ids_of)
  equal_by_chance = [np.array([5], np.uint64), np.array([5], np.uint64)]
  check_names(paths[1:3], equal_by_chance, lambda places: [shards[place + 1].ids() for place in sorted(places)])


def test_a_folder_that_is_another_on_this_node_is_refused(shard):
  one = shard("one")
  assert one("about", None) == one("about", one.state)
  with pytest.raises(OSError, match="is not what the other nodes have"):
    one("about", shard("two", ids=("d",)).state)


def test_replicas_are_on_nodes_of_their_own_and_actors_share_accelerators():
  slots = [Slot(node, {"CPU": 1, "GPU": 1}, "gpu") for node in "AABB"]
  found = rooms(slots, 3, 2)
  assert all(len({slot.node for slot in room}) == 2 for room in found)
  assert {slot.resources["GPU"] for room in found for slot in room} == {0.5}
  assert {slot.resources["GPU"] for room in rooms(slots, 2, 2) for slot in room} == {1.0}
  with pytest.raises(ValueError, match="3 actors for 2 TPU hosts, which take one each"):
    rooms([Slot(node, {"CPU": 1, "TPU": 4}, "tpu") for node in "AB"], 3, 1)
