import jax
import pytest

from eval.speed import hypernetwork as latency_hypernetwork
from qat_jax.models.quari import Released


def test_half_the_tokens_cost_half_the_operations_and_the_table_says_the_rate():
  settings = latency_hypernetwork.RELEASED | {"hidden": 64, "rank": 16, "layers": 1, "steps": 1}
  short, full = (
    latency_hypernetwork.network_way(Released(32, **settings, shared_tokens=shared), 2) for shared in (True, False)
  )
  assert short.run().query.shape == (2, 32)
  assert 1.5 < full.flops / short.flops < 2.1
  row = {"name": "short", "queries": 2, "ms_per_query": 4.0, "gflop": 0.016, "product_gflop_s": 8.0}
  assert "| short | 2 | 4.00 | 1.00 | 2.0 | 25% |" in latency_hypernetwork.table([row])


@pytest.mark.parametrize("shared", [True, False])
def test_the_count_of_operations_is_that_of_the_encoder(shared):
  settings = latency_hypernetwork.RELEASED | {"hidden": 64, "rank": 63, "layers": 4, "steps": 4}
  way = latency_hypernetwork.network_way(Released(8, **settings, shared_tokens=shared), 1)
  length = 64 if shared else 127
  encoder = 16 * (24 * length * 64**2 + 4 * length**2 * 64)
  assert encoder < way.flops < 1.3 * encoder  # the rest: norms, softmax, decoders


def test_the_released_size_is_the_one_that_is_published():
  module = Released(768, **latency_hypernetwork.RELEASED)
  adaptation = jax.eval_shape(lambda: module.init_with_output(jax.random.key(0), jax.numpy.ones((16, 768)))[0])
  assert adaptation.left.shape == (16, 768, 64)
