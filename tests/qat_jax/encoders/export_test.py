"""What the encoders compute lowers for accelerators, which this machine does not have."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from qat_jax.encoders.settings import Layers, Rope, Text, Vision
from qat_jax.encoders.tower import TextTower, VisionTower, in_parts

BLOCKS = Layers(16, 2, 2, 32, "gelu_pytorch_tanh", 1e-6)
TOWERS = {
  "siglip images": VisionTower(Vision(BLOCKS, 4, 2, "attention")),
  "clip images": VisionTower(Vision(BLOCKS, 4, 2, "class", 8, patch_bias=False, pre_norm=True)),
  "dinov2 images": VisionTower(
    Vision(
      Layers(16, 1, 2, 24, "silu", 1e-6, layer_scale=True, gated=True),
      4,
      5,
      "class",
      registers=2,
      resampling="cubic smooth",
    )
  ),
  "dinov3 images": VisionTower(
    Vision(
      Layers(16, 1, 2, 24, "silu", 1e-5, gated=True, rope=Rope(100.0, 0.5, 12.6, -6.3)), 4, 2, "class", table=False
    )
  ),
  "pe images": VisionTower(
    Vision(
      Layers(16, 1, 2, 32, "gelu", 1e-5, rope=Rope(1e4, 1.0, 2.0, columns_first=True, neighbours=True)),
      *(4, 2, "attention", 8),
      class_token=True,
      probe=(4, 16),
    )
  ),
  "naflex images": VisionTower(Vision(BLOCKS, 4, 3, "attention", resampling="linear smooth", patches=6)),
  "siglip texts": TextTower(Text(BLOCKS, 50, 6, "last", 16, projection_bias=True)),
  "clip texts": TextTower(Text(Layers(16, 2, 2, 32, "quick_gelu", 1e-5, causal=True), 50, 6, "end", 16, end=49)),
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", TOWERS)
def test_a_tower_lowers_for_tpu_and_cuda(name, dtype):
  tower = TOWERS[name].clone(dtype=jnp.dtype(dtype))
  example = jnp.ones((2, 6), jnp.int32) if "texts" in name else jnp.ones((2, 8, 8, 3), jnp.float32)
  if name == "naflex images":
    example = jnp.ones((2, 6, 48)), jnp.array([[2, 3], [1, 4]])
  params = jax.eval_shape(tower.init, jax.random.key(0), example)["params"]
  features = jax.jit(lambda params, items: in_parts(tower, params, items, 6))
  lowered = export.export(features, platforms=["tpu", "cuda"])(params, example)
  assert lowered.platforms == ("tpu", "cuda")
  assert lowered.out_avals[0].dtype == np.float32
  assert ("bf16" in lowered.mlir_module()) == (dtype == "bfloat16")
