"""What the hot paths compute lowers for TPUs and GPUs, which this machine does not have; what it moves and sorts."""

import functools
import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from qat_jax import adaptation
from qat_jax.adaptation import plain
from qat_jax.fit import linear
from qat_jax.models import forms
from qat_jax.search import kernels, scores, uppers
from qat_jax.search.bounds import Bounds, prepare
from qat_jax.search.gallery import squares
from qat_jax.types import Adaptation
from train import batches
from train.step import LossSettings, first_state, make_optimiser, make_step

WIDTH, QUERIES, ROWS = 256, 4, 512
TOKENS = {"rank": 2, "token_hidden": 8, "layers": 1, "steps": 1}
FORMS = {
  "static": {},
  "query_only": {"hidden": 8},
  "adaptive": {"hidden": 8, **TOKENS, "maps_gallery": True},
  "gated": {"hidden": 8},
  "paper": {**TOKENS, "heads": 2},
  "plain": {},
  "affine": {"dimensions": 8, "bias": True},
  "closed_form": {},
  "plda": {},
  "neighbours": {"pairs": 5},
  "remembering": {"form": "query_only", "settings": {"hidden": 8}, "pairs": 5, "captions": "image"},
  "marked": {"form": "static", "settings": {}, "pairs": 5, "items": WIDTH},
  "projected": {"form": "adaptive", "settings": {"hidden": 8, **TOKENS}, "items": WIDTH, "narrow": 5},
  "ensemble": {"form": "adaptive", "settings": {"hidden": 8, **TOKENS}, "members": 2},
  "levelled": {"form": "static", "settings": {}, "queries": 5, "items": WIDTH, "nearest": 2},
  "experts": {"form": "static", "settings": {}, "experts": 3},
  "released": {
    **{"hidden": 8, "rank": 2, "layers": 1, "steps": 1, "heads": 2},
    **{"anchor_scale": 0.8, "query_residual": 0.5, "frobenius_norm": True},
  },
}


def lowered(function, *args, platforms=("tpu", "cuda")) -> str:
  """Returns the program (StableHLO) that a function lowers to for accelerators."""
  abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jnp.asarray(x).dtype), args)
  return export.export(jax.jit(function), platforms=platforms)(*abstract).mlir_module()


@pytest.mark.parametrize("form", FORMS)
def test_a_form_lowers(form):
  module = forms.FORMS[form](WIDTH, **FORMS[form])
  variables = forms.initialise(module, jax.random.key(0))
  any_number = jax.ShapeDtypeStruct((*export.symbolic_shape("queries"), WIDTH), jnp.float32)
  folded = jax.jit(lambda variables, query_QD: adaptation.fold(module.apply(variables, query_QD)))
  export.export(folded, platforms=("cpu", "tpu", "cuda"))(variables, any_number)
  lowered(functools.partial(module.apply, method="prepare"), variables, jnp.ones((QUERIES, WIDTH)))


@pytest.mark.parametrize(
  ("form", "settings"), [("adaptive", LossSettings()), ("gated", LossSettings("published", 0.1, 0.3))]
)
def test_the_training_step_lowers_with_its_collectives(form, settings):
  module, devices = forms.FORMS[form](WIDTH, **FORMS[form]), 4
  variables = forms.initialise(module, jax.random.key(0))
  optimiser = make_optimiser(10, 1e-3, 1e-5, 2, 1e-2)
  step = make_step(module, variables["constants"], optimiser, settings, 0, "device")
  batch = batches.Batch(
    query=np.zeros((8, WIDTH), np.float32),
    image=np.zeros((8, WIDTH), np.float32),
    instance=np.zeros(8, np.int32),
    semi=np.zeros((8, 2, WIDTH), np.float32),
    semi_weight=np.zeros((8, 2), np.float32),
  )
  mesh = jax.make_mesh((devices,), ("device",), axis_types=(jax.sharding.AxisType.Auto,))
  over = jax.sharding.PartitionSpec
  parallel = jax.shard_map(step, mesh=mesh, in_specs=(over(), over("device")), out_specs=over(), check_vma=False)
  program = lowered(parallel, first_state(variables["params"], 0.07, optimiser), batch)
  assert "all_gather" in program and "all_reduce" in program


def shape(*sizes, dtype="float32"):
  return jax.ShapeDtypeStruct(sizes, jnp.dtype(dtype))


def search_arguments(rank: int, gate: int, dtype) -> tuple:
  rng = np.random.default_rng(0)
  left, right = 0.3 * rng.standard_normal((2, QUERIES, WIDTH, rank)).astype(np.float32)
  query_QD = np.eye(QUERIES, WIDTH, dtype=np.float32)
  own = Adaptation(query_QD, np.ones((QUERIES, gate), np.float32), left, right)
  return prepare(own), jnp.zeros((ROWS, WIDTH), dtype)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize(("rank", "gate"), [(0, WIDTH), (4, 1), (24, WIDTH)])
def test_search_lowers_and_reads_the_gallery_as_it_lies(rank, gate, dtype):
  prepared, gallery_ND = search_arguments(rank, gate, dtype)
  start_, lengths, new = np.int32(0), np.ones(2, np.float32), np.array([0, ROWS], np.int32)
  filter_ = functools.partial(kernels._upper_bounds.__wrapped__, rows=ROWS, block=128)
  program = lowered(filter_, prepared.bounds, gallery_ND, start_, lengths, new, np.ones(ROWS, bool))
  kind = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}[jnp.dtype(dtype).name]
  assert re.search(rf"dot_general.*tensor<128x{WIDTH}x{kind}>.*-> tensor", program)
  assert not re.search(r"\bstablehlo\.sort|top_k", program)
  chunks = (np.zeros(64, np.int32), np.zeros((64, scores.ITEMS), np.int32))
  scored = functools.partial(scores._by_chunks.__wrapped__, scores._scores, count=None)
  lowered(lambda factors, *rest: scored(factors, *rest), prepared.factors, gallery_ND, *chunks)
  everything = functools.partial(scores._all_scores.__wrapped__, rows=ROWS, block=128)
  lowered(everything, prepared.factors, gallery_ND, start_)
  if prepared.tight is not None:
    tree = (prepared.tight, np.ones((QUERIES, 2), np.float32))
    refined = functools.partial(scores._by_chunks.__wrapped__, scores._refined, count=None)
    lowered(lambda tree, *rest: refined(tree, *rest), tree, gallery_ND, *chunks)
  lowered(squares.__wrapped__, gallery_ND)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("gate", [1, WIDTH])
def test_the_lengths_that_one_map_gives_lower_too(gate, dtype):
  rng = np.random.default_rng(0)
  left, right = (np.tile(x, (QUERIES, 1, 1)) for x in 0.3 * rng.standard_normal((2, 1, WIDTH, 4)).astype(np.float32))
  own = Adaptation(np.eye(QUERIES, WIDTH, dtype=np.float32), np.ones((QUERIES, gate), np.float32), left, right)
  one, gallery_ND = prepare(own).one_map, jnp.zeros((ROWS, WIDTH), dtype)
  rest = np.int32(0), np.ones(2, np.float32), np.array([0, ROWS], np.int32), None
  filter_ = functools.partial(kernels._upper_bounds.__wrapped__, rows=ROWS, block=128)
  lowered(functools.partial(filter_, lengths_only=True), one.map, gallery_ND, *rest)
  lowered(lambda square_N, *some: filter_(*some, square_N=square_N), np.ones(ROWS), one.numerators, gallery_ND, *rest)


def test_a_device_sorts_no_more_than_a_few_thousand_numbers_a_query():
  upper_NQ, least_Q = jnp.zeros((1 << 20, 8)), np.zeros(8, np.float32)
  sorted_ = lowered(functools.partial(uppers._kth.__wrapped__, count=128), upper_NQ)
  widths = [int(n) for n in re.findall(r"top_k.*?tensor<8x(\d+)xf32>", sorted_)]
  widths += [int(n) for n in re.findall(r"stablehlo\.sort.*?tensor<8x(\d+)xf32>", sorted_)]
  assert widths and max(widths) <= uppers.SORTED
  found = lowered(functools.partial(uppers._reaching.__wrapped__, most=1 << 14), upper_NQ, least_Q)
  assert not re.search(r"\bstablehlo\.sort|top_k", found)
  # what goes back to the host is what was found, not a bound an item
  result = re.search(r"@main\(.*\) -> \((.*)\)", found).group(1)
  assert all(int(n) <= 1 << 14 for n in re.findall(r"tensor<(\d+)x", result))


def test_the_threshold_is_reached_by_as_many_as_are_asked_for():
  value_NQ = jax.random.normal(jax.random.key(0), (70_001, 3))
  least_Q = uppers._kth(value_NQ, 128)
  reached_Q = np.asarray((value_NQ >= least_Q[None]).sum(axis=0))
  assert (reached_Q >= 128).all() and (reached_Q <= 140).all()


@pytest.mark.parametrize(
  ("dtype", "directions", "most"),
  [("float32", 0, 1.1), ("float32", 4, 1.2), ("bfloat16", 0, 1.25), ("bfloat16", 4, 1.75)],
)
def test_the_filter_moves_little_more_than_the_gallery(dtype, directions, most, monkeypatch):
  """By XLA's own count, for the code path of accelerators compiled for this machine."""
  width, queries, rows = 768, 8, kernels.BLOCK_ROWS_ELSEWHERE
  bounds = Bounds(
    columns=shape(width, queries * (1 + directions)),
    weight=shape(directions, queries),
    square=None,
    **dict.fromkeys(("floor", "cut", "longest", "slack", "numerator_slack", "most"), shape(queries)),
  )
  arguments = (bounds, shape(rows, width, dtype=dtype), shape(dtype="int32"), shape(2), shape(2, dtype="int32"))
  filter_ = functools.partial(inspect.unwrap(kernels._upper_bounds), wanted_N=None, rows=rows, block=rows)
  monkeypatch.setattr(jax.lax, "platform_dependent", lambda *args, default, **_: default(*args))
  cost = jax.jit(filter_).lower(*arguments).compile().cost_analysis()
  assert 1 <= cost["bytes accessed"] / (rows * width * jnp.dtype(dtype).itemsize) <= most


def test_other_hot_functions_lower():
  gallery_ND = jnp.zeros((ROWS, WIDTH))
  lowered(adaptation.score.__wrapped__, plain(jnp.ones((QUERIES, WIDTH))), gallery_ND)
  params = linear.first_parameters(jax.random.key(0), WIDTH, 5)
  state = linear.OPTIMISER.init(params)
  rows_SB = jnp.zeros((2, 8), jnp.int32)
  lowered(linear.train_epoch.__wrapped__, params, state, gallery_ND, jnp.zeros(ROWS, jnp.int32), rows_SB)
