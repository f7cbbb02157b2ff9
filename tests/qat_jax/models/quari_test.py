import math
import pathlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import qat_jax
from qat_jax.adaptation import fold
from qat_jax.models import quari as released
from qat_jax.models import quari_files as released_files

VECTORS = pathlib.Path(__file__).parents[2] / "data" / "reference_vectors"
NAMES = ("anchored", "unnormalised")


def reference(name):
  with np.load(VECTORS / name / "vectors.npz") as file:
    return qat_jax.load(VECTORS / name), dict(file)


def network(name, **changes):
  adapter, vectors = reference(name)
  head = adapter.head("text")
  return released.Released(adapter.width, **(head.settings | changes)), head.variables, vectors


def assert_near(got, want, tolerance=1e-5):
  want = np.asarray(want)
  assert got.shape == want.shape
  assert np.abs(np.asarray(got) - want).max() <= tolerance * np.abs(want).max()


def maps(adaptation):
  """Returns W of the row convention, x → x W (QDE)."""
  eye_DE = np.eye(adaptation.left.shape[1])
  return eye_DE + np.einsum("QDR,QER->QED", adaptation.left, adaptation.right)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shared", [True, False], ids=["R+1 tokens", "2R+1 tokens"])
@pytest.mark.parametrize("run", [lambda f: f, jax.jit], ids=["eager", "jitted"])
def test_the_network_computes_what_the_released_program_does(name, shared, run):
  module, variables, vectors = network(name, shared_tokens=shared)
  adaptation = run(module.apply)(variables, jnp.asarray(vectors["query"]))
  assert_near(adaptation.query, vectors["refined_query"])
  assert_near(maps(adaptation), vectors["W_image"])
  steps_SQD = run(lambda v, q: module.apply(v, q, method="step_queries"))(variables, jnp.asarray(vectors["query"]))
  assert_near(steps_SQD, vectors["step_queries"])


@pytest.mark.parametrize("name", NAMES)
def test_one_query_gets_what_it_gets_among_many(name):
  adapter, vectors = reference(name)
  for i, query_D in enumerate(vectors["query"]):
    one = adapter(query_D[None])
    assert_near(one.query[0], vectors["refined_query"][i])
    assert_near(maps(one)[0], vectors["W_image"][i])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("query_type", ["text", "image"])
def test_scores_and_rankings_agree_with_those_of_the_whole_map(name, query_type):
  adapter, vectors = reference(name)
  adaptation = adapter(vectors["query"], query_type)
  for i, gallery_ND in enumerate(vectors["gallery"]):
    gallery_ND = adapter.prepare(gallery_ND, query_type)
    assert_near(qat_jax.score(adaptation[i : i + 1], gallery_ND)[0], vectors["scores"][i])
    ranking = qat_jax.rank(adaptation[i : i + 1], gallery_ND, k=len(gallery_ND))
    np.testing.assert_array_equal(ranking.ids[0], np.argsort(-vectors["scores"][i]))


def test_bfloat16_products_stay_near_float32_ones_and_take_bfloat16():
  module, variables, vectors = network("anchored", dtype="bfloat16")
  adaptation = module.apply(variables, jnp.asarray(vectors["query"]))
  chex.assert_type([adaptation.query, adaptation.left], jnp.float32)
  assert_near(adaptation.query, vectors["refined_query"], 0.03)
  assert not np.allclose(adaptation.query, vectors["refined_query"], atol=1e-6)


@pytest.mark.long
def test_training_runs_the_same_network_and_rematerialising_gives_the_same_gradient():
  module, variables, vectors = network("anchored")
  query_QD = jnp.asarray(vectors["query"])

  def total(params, module, train):
    adaptation = module.apply({**variables, "params": params}, query_QD, train=train)
    return jnp.sum(fold(adaptation) * query_QD)

  value, gradient = jax.value_and_grad(total)(variables["params"], module, True)
  lean = module.clone(remat=True)
  again, lean_gradient = jax.value_and_grad(total)(variables["params"], lean, True)
  np.testing.assert_allclose([value, again], 2 * [total(variables["params"], module, False)], rtol=1e-5)
  chex.assert_trees_all_close(lean_gradient, gradient, rtol=1e-3, atol=1e-5)
  assert any(np.abs(x).max() > 1e-4 for x in jax.tree.leaves(gradient))


def test_the_position_table_in_the_file_is_the_formula():
  _, variables, _ = network("anchored")
  chex.assert_trees_all_close(variables["constants"]["place"], released.position_codes(4, 64), atol=1e-6)


def test_any_number_of_queries_up_to_a_power_of_two_compiles_once():
  adapter, vectors = reference("unnormalised")
  call = adapter._calls["text"]
  for queries in (3, 4):
    adapter(vectors["query"][:queries])
  assert call._cache_size() == 1
  adapter(vectors["query"])  # 5 queries run as 8
  assert call._cache_size() == 2


def gelu(x):
  return x * (1 + math.erf(x / math.sqrt(2))) / 2


def layer_norm(a, b):
  """Of two numbers: (−1, 1) or (1, −1), nearly; eps 1e-5 makes them a little shorter."""
  half = (a - b) / 2
  short = half / math.sqrt(half * half + 1e-5)
  return short, -short


def test_a_tiny_step_by_hand():
  """D = 2, R = 1, hidden 2, one head, one layer, one step. All matrices I; all biases zero but two, so that

  step MLP's last bias b = (0.5, 0) with its last matrix zero: the step code is b whatever the step;
  the attention: zero queries and keys, so all three tokens weigh 1/3; value and output matrices I.
  The feed-forward part is off (its last matrix is zero). U's last bias is (0.1, 0).
  """
  config = released_files.ReleasedConfig("none", 0.5, 0.0, 2, 2, 1, 1, 1, 1, 0.25, False)
  tensors = {name: np.zeros(shape, np.float32) for name, shape in released.shapes(config).items()}
  eye_22 = np.eye(2, dtype=np.float32)
  layer = "transformer.layers.0"
  identities = ["query_encoder.0", "query_encoder.4", "step_proj.0", f"{layer}.self_attn.out_proj"]
  identities += [f"{name}.{i}" for name in ("query_decoder", "dec_u_img", "dec_v_img") for i in (0, 3)]
  for name in identities:
    tensors[f"{name}.weight"] = eye_22
  for name in ("query_encoder.1", "query_encoder.5", f"{layer}.norm1", f"{layer}.norm2"):
    tensors[f"{name}.weight"] = np.ones(2, np.float32)
  tensors[f"{layer}.self_attn.in_proj_weight"] = np.concatenate([0 * eye_22, 0 * eye_22, eye_22])
  tensors["step_proj.2.bias"] = np.asarray([0.5, 0], np.float32)
  tensors["dec_u_img.3.bias"] = np.asarray([0.1, 0], np.float32)
  tensors["pos_scale"] = np.ones(1, np.float32)
  tensors["pos_emb"][:, 1] = 1  # position 0: sin 0 = 0, cos 0 = 1

  c1, c2 = layer_norm(0.6, 0.8)  # (−0.9995, 0.9995)
  c1, c2 = layer_norm(gelu(c1), gelu(c2))  # the control token, (−1, 1) nearly
  s1, s2 = layer_norm(c1 + 0.5, c2)  # the attention's values: of control + step code,
  t1, t2 = layer_norm(0, 1)  # and of either factor's token
  m1, m2 = (s1 + 2 * t1) / 3, (s2 + 2 * t2) / 3
  k1, k2 = c1 + (c1 + 0.5 + m1), c2 + (c2 + m2)  # the encoder's output is added: c counts twice
  token1, token2 = 0 + (0 + m1), 0 + (1 + m2)
  q1, q2 = 0.75 * gelu(k1) + 0.25 * 0.6, 0.75 * gelu(k2) + 0.25 * 0.8
  length = math.hypot(q1, q2)
  assert (k1, k2) == pytest.approx((-2.5, 3), abs=1e-3)

  for shared in (True, False):
    module = released.Released(2, **released.settings(config), shared_tokens=shared)
    adaptation = module.apply(released.variables(tensors, config), jnp.asarray([[0.6, 0.8]]))
    np.testing.assert_allclose(adaptation.query[0], [q1 / length, q2 / length], atol=1e-5)
    np.testing.assert_allclose(adaptation.right[0, :, 0], [gelu(token1) + 0.1, gelu(token2)], atol=1e-5)  # U
    np.testing.assert_allclose(adaptation.left[0, :, 0], [0.5 * gelu(token1), 0.5 * gelu(token2)], atol=1e-5)  # 0.5 V
    np.testing.assert_allclose(adaptation.gate, [[1]])


def test_step_codes_are_cosines_then_sines():
  np.testing.assert_allclose(
    released.step_codes(2, 4)[1], [np.cos(1), np.cos(0.01), np.sin(1), np.sin(0.01)], rtol=1e-6
  )
