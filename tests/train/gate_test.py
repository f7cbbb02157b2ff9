import numpy as np
import pytest

from qat_jax.adapter import Adapter
from qat_jax.fit.parts import ladder, part_of
from qat_jax.fit.training import PLAIN
from qat_jax.types import Relevance
from qat_jax.validation import Validator
from train.gate import choose
from train.plan import Fitted

QUERIES = 64


def gate(groups=QUERIES):
  """Returns a validator whose queries ask for so many instances in turn."""
  features_QD = np.eye(QUERIES, dtype=np.float32)
  return Validator(
    features_QD,
    features_QD,
    Relevance([np.array([q % groups]) for q in range(QUERIES)], [np.array([], int)] * QUERIES),
    0,
    0,
  )


def fitted(**gains):
  """Returns candidates, the simplest first, with a mean gain over plain and how much it varies over queries."""
  sign_Q = np.where(np.arange(QUERIES) % 2, 1.0, -1.0)
  return {
    name: Fitted(Adapter(4, {"text": PLAIN}), 0.3 + gain + spread * sign_Q) for name, (gain, spread) in gains.items()
  }


def test_the_best_on_validation_serves():
  chosen = choose("text", fitted(plain=(0, 0), static=(0.05, 0.1), adaptive=(0.08, 0.1)), gate())
  assert chosen["name"] == chosen["best"] == "adaptive"
  assert chosen["val_map"] == pytest.approx({"plain": 0.3, "static": 0.35, "adaptive": 0.38})
  assert chosen["queries"] == QUERIES


def test_a_simpler_one_within_the_error_serves_instead():
  error = 0.4 / np.sqrt(QUERIES - 1)  # of a difference of ±0.4
  for gain, served in ((0.9 * error, "static"), (1.1 * error, "adaptive")):
    chosen = choose("text", fitted(plain=(0, 0), static=(0.2, 0), adaptive=(0.2 + gain, 0.4)), gate())
    assert (chosen["name"], chosen["best"]) == (served, "adaptive")


def test_the_frozen_feature_stays_where_nothing_clearly_gains():
  assert choose("text", fitted(plain=(0, 0), static=(0.01, 0.2)), gate())["name"] == "plain"
  assert choose("text", fitted(plain=(0, 0), static=(-0.1, 0.01)), gate())["name"] == "plain"
  assert choose("text", fitted(plain=(0, 0), static=(0, 0)), gate())["name"] == "plain"


def test_queries_of_few_instances_prove_less():
  four = fitted(plain=(0, 0), static=(0.08, 0.4))
  assert choose("text", four, gate())["name"] == "static"
  assert choose("text", four, gate(groups=4))["name"] == "plain"


def test_the_account_says_what_each_part_adds():
  names = ("plain", "query_only", "query_only_mapped", "query_only_remembering", "query_only_remembering_levelled")
  candidates = fitted(**{name: (0.1 * i, 0) for i, name in enumerate(names)})
  chosen = choose("text", candidates, gate())
  steps = ["query_only", "query_only_remembering", "query_only_remembering_levelled"]
  assert [step["name"] for step in chosen["steps"]] == steps
  np.testing.assert_allclose([step["gain"] for step in chosen["steps"]], [0.1, 0.2, 0.1])
  told = chosen["account"]
  assert "text queries: query_only_remembering_levelled serves, the simplest that is within one standard error" in told
  assert (
    "From plain 30.0: the head query_only +10.0 ± 0.0; memory of the query +20.0 ± 0.0; levelled items +10.0" in told
  )


def test_a_map_is_no_part():
  names = ["plain", "gated", "gated_mapped", "gated_mapped_levelled"]
  assert ladder("gated_mapped_levelled", names) == ["gated_mapped", "gated_mapped_levelled"]
  assert part_of("gated_mapped") == "the head gated_mapped"
  assert choose("text", fitted(plain=(0, 0)), gate())["steps"] == []
