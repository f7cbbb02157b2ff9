import numpy as np
import pytest

from qat_jax.datasets.pictures import decode
from qat_jax.datasets.splits import sources
from qat_jax.datasets.toybox.intents import Queries, shared
from qat_jax.datasets.toybox.objects import Toy, families
from qat_jax.features.records import metadata_table


def toy(name, kind, colour, side_place="above", side_colour="red"):
  return Toy(name, "family", kind, colour, "plain", "star", side_colour, side_place, "dot", "white")


def test_light_ground_asks_for_the_shape_in_any_colours_and_dark_for_the_colours_in_any_shape():
  cup, blue, other = toy("cup", "circle", "red"), toy("blue", "circle", "blue"), toy("other", "square", "red")
  half = toy("half", "circle", "red", side_place="left", side_colour="blue")  # neither its shape nor its colours whole
  gallery = [(one, f"{one.name}_{view}") for one in (cup, blue, other, half) for view in range(2)]
  queries = Queries([cup], gallery)
  assert [queries[i]["intent"] for i in range(len(queries))] == ["shape", "colours"]
  assert queries[0]["relevant"] == ["cup_0", "cup_1", "blue_0", "blue_1"]
  assert queries[1]["relevant"] == ["cup_0", "cup_1", "other_0", "other_1"]


@pytest.mark.parametrize("number", [3, 40, 700])
def test_the_pictures_of_a_toy_differ_by_the_lightness_of_their_ground(number):
  queries = Queries([families()[number][0]], [])
  light, dark = (np.asarray(decode(queries[i]), float) for i in range(2))
  corners = lambda x: np.concatenate([x[:6, :6], x[:6, -6:], x[-6:, :6], x[-6:, -6:]]).mean()
  assert corners(light) > corners(dark) + 40
  np.testing.assert_array_equal(light, np.asarray(decode(queries[0]), float))


def test_the_set_has_the_toyboxs_gallery_and_every_query_finds_its_own_toy_there():
  found = sources("toybox", "tiny_intents", "")
  assert set(found) == {f"{part}{place}" for part in ("val", "test") for place in ("/gallery", "/image_queries")} | {
    "train",
    "train/image_queries",
  }
  for part in ("train", "val", "test"):
    gallery, _ = found["train" if part == "train" else f"{part}/gallery"]
    queries, _ = found[f"{part}/image_queries"]
    instance_of = {record["id"]: record["instance"] for record in (gallery[i] for i in range(len(gallery)))}
    ids = {queries[i]["id"] for i in range(len(queries))}
    assert len(ids) == len(queries) and not ids & set(instance_of)
    toys = {one.name: one for family in families()[:20] for one in family}
    for query in (queries[i] for i in range(len(queries))):
      right = shared(toys[query["instance"]], query["intent"])
      expected = [item for item, name in instance_of.items() if shared(toys[name], query["intent"]) == right]
      assert query["relevant"] == expected
      assert query["instance"] in {instance_of[item] for item in expected}
  queries, _ = found["val/image_queries"]
  rows = metadata_table([{**queries[i], "image": None} for i in range(2)])
  assert rows.column("relevant").to_pylist() == [queries[0]["relevant"], queries[1]["relevant"]]
