import importlib.util
import math

import jax
import jax.numpy as jnp
import pytest

from eval.speed import compiled
from eval.speed.compiled import TARGETS, Program, main_memory, row, shape


def test_a_product_costs_what_it_costs_by_hand():
  product = Program("product", jnp.matmul, (shape(64, 32), shape(32, 16)), 64)
  cost = compiled.compiled(product, jax.devices()[0])
  assert cost.operations == 2 * 64 * 32 * 16
  assert cost.held >= 4 * (64 * 32 + 32 * 16 + 64 * 16)
  cells = row(product, TARGETS["v5e:2x2"], jax.devices()[0]).split("|")
  least = max(cost.operations / 197e12, cost.moved / 819e9)
  assert float(cells[6]) == pytest.approx(least / 64 * 1e6, rel=0.01)


def test_what_does_not_compile_says_so():
  wrong = Program("callback", lambda x: jax.lax.optimization_barrier(missing(x)), (shape(3),), 1)

  def missing(x):
    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: ran out of memory in hbm\nand more")

  said = row(wrong, TARGETS["h100"], jax.devices()[0])
  assert "does not compile: RESOURCE_EXHAUSTED: ran out of memory in hbm |" in said


def test_main_memory_is_what_is_not_on_the_chip():
  # Copied in (64 bytes), doubled on the chip, written back (64); the fused body is inside of its fusion.
  program = """
HloModule jit_f

%fused (p: f32[16]) -> f32[16] {
  %p = f32[16]{0:T(128)} parameter(0)
  ROOT %add = f32[16]{0:T(128)} add(%p, %p)
}

ENTRY %main (x: f32[16]) -> f32[16] {
  %x = f32[16]{0:T(128)} parameter(0)
  %start = (f32[16]{0:T(128)S(1)}, f32[16]{0:T(128)}, u32[]{:S(2)}) copy-start(%x), cross=0
  %done = f32[16]{0:T(128)S(1)} copy-done(%start)
  %twice = f32[16]{0:T(128)S(1)} fusion(%done), kind=kLoop, calls=%fused
  ROOT %out = f32[16]{0:T(128)} copy(%twice)
}
"""
  assert main_memory(program) == 64 + 64


@pytest.mark.parametrize("make", [compiled.searches, compiled.networks, compiled.encoders])
def test_programs_have_names_and_take_the_shapes_that_they_are_given(make):
  programs = list(make())
  assert len({program.name for program in programs}) == len(programs)
  assert jax.tree.leaves(jax.eval_shape(programs[0].function, *programs[0].arguments))


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="no compiler for TPUs: pip install 'jax[tpu]'")
def test_a_tpu_reads_the_gallery_once_to_bound_every_score():
  target = TARGETS["v5e:2x2"]
  bounds = list(compiled.searches())[3]
  read = math.prod((16384, 768, 2))
  assert 1 <= compiled.compiled(bounds, compiled.device_of(target)).moved / read <= 1.1
