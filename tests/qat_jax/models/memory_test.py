import jax
import jax.numpy as jnp
import numpy as np

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
