import numpy as np

from eval import told
from qat_jax.datasets.toybox.objects import ATTRIBUTES, families


def rows(*toys):
  return told.seen(np.array([f"{toy.name}_{view}" for toy, view in toys]))


def test_another_toy_of_the_family_is_right_and_the_text_names_its_value():
  family = families()[0]
  queries, items = rows((family[0], 0)), rows(*((toy, view) for toy in family[:3] for view in (1, 2)))
  row_Q, texts, changed, right_QN = told.other_toys(queries, items)
  assert row_Q == [0, 0]
  (attribute,) = set(changed)
  for text, toy, row_N in zip(texts, family[1:3], right_QN, strict=True):
    assert told.captions.WORDS[getattr(toy, attribute)][0] in text
    assert [items[i]["name"] for i in np.flatnonzero(row_N)] == [toy.name] * 2


def test_the_same_toy_on_the_named_ground_is_right():
  toy, other = families()[0][0], families()[1][0]
  queries, items = rows((toy, 0)), rows(*((one, view) for one in (toy, other) for view in range(1, 9)))
  _, texts, changed, right_QN = told.other_grounds(queries, items)
  assert set(changed) == {"scene"}
  for text, row_N in zip(texts, right_QN, strict=True):
    assert row_N.any()
    for item in (items[i] for i in np.flatnonzero(row_N)):
      assert item["name"] == toy.name
      assert text == f"a shape, on {item['light']} {item['tint']} ground"
      assert (item["light"], item["tint"]) != (queries[0]["light"], queries[0]["tint"])


def test_aspects_have_phrases_for_every_value():
  book = told.toy_aspects()
  assert {*ATTRIBUTES, "light", "tint", "scene"} == set(book)
  assert [len(book[name]) for name in ("colour", "texture", "scene")] == [16, 10, 9]
