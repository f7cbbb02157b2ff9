import jax
import jax.numpy as jnp
import numpy as np
import pytest

import qat_jax
from qat_jax.adaptation import unit
from qat_jax.adapter import Adapter, Head, load
from qat_jax.models import forms as hypernetwork
from qat_jax.models import memory

WIDTH, PAIRS = 6, 5


def remembering(weight: float) -> tuple[Head, memory.Bank]:
  """Returns a head that remembers random pairs beside a random linear map of the query."""
  rng = np.random.default_rng(0)
  inner = hypernetwork.initialise(hypernetwork.static(WIDTH, maps_gallery=False), jax.random.key(0))
  inner["params"] = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), inner["params"])
  query_MD, image_MD = unit(rng.normal(size=(2, PAIRS, WIDTH))).astype(np.float16)
  numbers = {"temperature": 0.2, "scale": 0.7, "weight": weight}
  constants = {"queries": query_MD, "images": image_MD, **{n: jnp.float32(v) for n, v in numbers.items()}}
  variables = {
    "params": {"head": inner["params"]},
    "constants": constants | ({"head": inner["constants"]} if inner["constants"] else {}),
  }
  settings = {"form": "static", "settings": {"maps_gallery": False}, "pairs": PAIRS}
  return Head("remembering", settings, variables), memory.Bank(jnp.asarray(query_MD), jnp.asarray(image_MD))


def test_without_weight_it_is_the_other_form():
  head, _ = remembering(0.0)
  inner = hypernetwork.static(WIDTH, maps_gallery=False)
  query_QD = unit(np.random.default_rng(1).normal(size=(3, WIDTH))).astype(np.float32)
  own = {"params": head.variables["params"]["head"], "constants": head.variables["constants"].get("head", {})}
  expected, got = inner.apply(own, query_QD), head.module(WIDTH).apply(head.variables, query_QD)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), got, expected)
  assert not np.allclose(got.query, query_QD)


def test_the_query_is_the_sum_of_both():
  head, bank = remembering(0.5)
  query_QD = unit(np.random.default_rng(1).normal(size=(3, WIDTH))).astype(np.float32)
  alone = remembering(0.0)[0].module(WIDTH).apply(remembering(0.0)[0].variables, query_QD).query
  text_MD, image_MD = (np.asarray(x, np.float64) for x in bank)
  weight_QM = np.exp(query_QD @ text_MD.T / 0.2)
  weight_QM /= weight_QM.sum(axis=1, keepdims=True)
  expected_QD = unit(alone + 0.5 * unit(query_QD + 0.7 * weight_QM @ (image_MD - text_MD)))
  np.testing.assert_allclose(head.module(WIDTH).apply(head.variables, query_QD).query, expected_QD, atol=1e-5)


def test_an_adapter_that_remembers_is_saved_whole(tmp_path):
  head, _ = remembering(0.5)
  adapter = Adapter(WIDTH, {"text": head})
  adapter.save(tmp_path)
  query_QD = unit(np.random.default_rng(2).normal(size=(4, WIDTH)))
  again = load(tmp_path)
  np.testing.assert_array_equal(again(query_QD).query, adapter(query_QD).query)
  assert again.head("text").variables["constants"]["images"].dtype == np.float16
  assert again.head("text").space == "frozen"


def test_the_residual_by_hand():
  pairs = {"queries": jnp.eye(2), "images": jnp.array([[0.0, 1.0], [1.0, 0.0]])}
  constants = pairs | {"temperature": jnp.float32(0.5), "scale": jnp.float32(1.0)}
  head = Head("neighbours", {"pairs": 2}, {"params": {}, "constants": constants})
  moved_QD = head.module(2).apply(head.variables, jnp.array([[1.0, 0.0]])).query
  a = np.exp(2) / (np.exp(2) + 1)  # the weight of the first pair
  np.testing.assert_allclose(moved_QD[0], np.array([2 - 2 * a, 2 * a - 1]) / np.hypot(2 - 2 * a, 2 * a - 1), rtol=1e-5)


def test_an_image_stands_beside_the_mean_of_its_instances_others():
  image_ND = np.array([[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0], [1.0, 0, 0]])
  bank = memory.image_bank(image_ND, np.array(["a", "a", "a", "b"]))
  np.testing.assert_allclose(bank.query_MD, np.eye(3))
  np.testing.assert_allclose(bank.image_MD, [[0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])


TEMPERATURE, SHARE = 0.2, 0.4


def captioned(query_type: str, form: str = "plain", inner: dict | None = None, pairs: int = PAIRS):
  """Returns a head whose items carry captions, and its bank in float64: texts, images, the texts' mean."""
  rng = np.random.default_rng(5)
  text_MD, image_MD = unit(rng.normal(size=(2, pairs, WIDTH))).astype(np.float16)
  mean_D = text_MD.astype(np.float32).mean(axis=0)
  numbers = {"item_temperature": jnp.float32(TEMPERATURE), "share": jnp.float32(SHARE), "mean": mean_D}
  constants = {"queries": text_MD, "images": image_MD, **numbers}
  around = {name: {"head": tree} if tree else {} for name, tree in (inner or {"params": {}, "constants": {}}).items()}
  settings = {"form": form, "settings": {}, "pairs": pairs, "moves": False, "captions": query_type}
  head = Head("remembering", settings, around | {"constants": around["constants"] | constants})
  return head, *(x.astype(np.float64) for x in (text_MD, image_MD, mean_D))


def called(item_ND, text_MD, image_MD, mean_D, hidden_NM=False):
  """Returns the captions of items, in float64."""
  cosine_NM = np.where(hidden_NM, -np.inf, unit(item_ND) @ image_MD.T)
  kept_NM = np.where(
    cosine_NM >= np.sort(cosine_NM, axis=1)[:, [-min(memory.NEAREST, len(text_MD))]], cosine_NM, -np.inf
  )
  weight_NM = np.exp(kept_NM / TEMPERATURE)
  return unit(weight_NM / weight_NM.sum(axis=1, keepdims=True) @ text_MD - mean_D)


@pytest.mark.parametrize("query_type", ["text", "image"])
@pytest.mark.parametrize("pairs", [PAIRS, 40])  # fewer and more than are looked at
def test_the_score_with_captions_is_the_sum_of_both_cosines(query_type, pairs):
  head, *bank = captioned(query_type, pairs=pairs)
  rng = np.random.default_rng(6)
  query_QD, item_ND = unit(rng.normal(size=(3, WIDTH))), unit(rng.normal(size=(memory.ROWS + 3, WIDTH)))
  module = head.module(WIDTH)
  items = module.apply(head.variables, item_ND, method="prepare")
  assert items.shape == (len(item_ND), 2 * WIDTH)
  own_QD = unit(query_QD - bank[2]) if query_type == "text" else called(query_QD, *bank)
  expected_QN = (query_QD @ item_ND.T + SHARE * own_QD @ called(item_ND, *bank).T) / (1 + SHARE)
  adaptation = module.apply(head.variables, query_QD)
  np.testing.assert_allclose(qat_jax.score(adaptation, items), expected_QN, atol=1e-5)
  np.testing.assert_allclose(qat_jax.fold(adaptation) @ items.T, expected_QN, atol=1e-5)


def test_a_map_leaves_the_captions_alone():
  inner = hypernetwork.initialise(hypernetwork.gated(WIDTH, maps_gallery=True), jax.random.key(0))
  rng = np.random.default_rng(7)
  inner["params"] = jax.tree.map(lambda x: jnp.asarray(0.3 * rng.normal(size=x.shape), jnp.float32), inner["params"])
  head, *bank = captioned("text", "gated", inner)
  query_QD, item_ND = unit(rng.normal(size=(3, WIDTH))), unit(rng.normal(size=(20, WIDTH)))
  module = hypernetwork.gated(WIDTH, maps_gallery=True)
  alone, mapped_ND = module.apply(inner, query_QD), module.apply(inner, item_ND, method="prepare")
  called_ND, own_QD = called(item_ND, *bank), unit(query_QD - bank[2])
  image_QND = np.asarray(alone.gate)[:, None] * np.asarray(mapped_ND)[None]
  numerator_QN = np.einsum("QND,QD->QN", image_QND, alone.query) + SHARE * own_QD @ called_ND.T
  expected_QN = numerator_QN / np.sqrt((np.square(image_QND).sum(-1) + SHARE) * (1 + SHARE))
  adapter = Adapter(WIDTH, {"text": head})
  got_QN = qat_jax.score(adapter(query_QD), adapter.prepare(item_ND))
  np.testing.assert_allclose(got_QN, expected_QN, atol=1e-5)


def test_a_query_in_training_does_not_see_the_pairs_of_its_own_instance():
  head, *bank = captioned("image")
  instance_M = np.array([0, 0, 1, 2, 3])
  query_QD = bank[1][[1, 3]]
  hidden = {"instances": {"pairs": instance_M, "queries": instance_M[[1, 3]]}}
  got_QD = head.module(WIDTH).apply(head.variables | hidden, query_QD).query[:, WIDTH:]
  expected_QD = called(query_QD, *bank, instance_M[[1, 3], None] == instance_M[None])
  np.testing.assert_allclose(unit(got_QD), expected_QD, atol=1e-5)
  moves, pairs = remembering(0.5)
  hidden = {"instances": {"pairs": np.arange(PAIRS), "queries": np.array([2])}}
  left = np.array([0, 1, 3, 4])
  fewer = moves.variables["constants"] | {"queries": pairs.query_MD[left], "images": pairs.image_MD[left]}
  expected = Head("remembering", moves.settings | {"pairs": 4}, moves.variables | {"constants": fewer})
  query_1D = np.asarray(pairs.query_MD[2:3], np.float32)
  got_1D = moves.module(WIDTH).apply(moves.variables | hidden, query_1D).query
  np.testing.assert_allclose(got_1D, expected.module(WIDTH).apply(expected.variables, query_1D).query, atol=1e-6)


def test_what_the_captions_are_made_of_names_the_space_of_the_items():
  head, *_ = captioned("text")
  other = head.variables["constants"] | {"share": jnp.float32(0.1)}
  assert head.space not in ("frozen", Head(head.form, head.settings, head.variables | {"constants": other}).space)
  assert captioned("image")[0].items_wide(WIDTH) == 2 * WIDTH
