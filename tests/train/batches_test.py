import jax
import numpy as np
import pytest

from qat_jax.fit.training import Training
from qat_jax.types import Relevance, SemiPositives
from train import batches

INSTANCE = np.array(["a", "b", "a", "c", "b", "a"])


def test_rows_of_a_batch_are_of_distinct_instances_and_pairs_of_the_same():
  pairs = batches.group(INSTANCE, "text")
  for step in range(20):
    query, image, instance = batches.draw_pairs(pairs, 3, seed=0, step=step)
    assert len(set(instance.tolist())) == 3
    np.testing.assert_array_equal(INSTANCE[query], INSTANCE[image])


def test_an_image_query_never_meets_itself_and_needs_a_second_image():
  pairs = batches.group(INSTANCE, "image")
  assert len(pairs) == 2
  drawn = [batches.draw_pairs(pairs, 2, seed=1, step=step) for step in range(50)]
  assert all((query != image).all() for query, image, _ in drawn)
  assert {int(i) for query, _, _ in drawn for i in query} == {0, 1, 2, 4, 5}


def test_a_batch_depends_on_seed_and_step_alone():
  pairs = batches.group(np.arange(100), "text")
  first = batches.draw_pairs(pairs, 10, seed=3, step=7)
  batches.draw_pairs(pairs, 10, seed=3, step=8)
  for one, again in zip(first, batches.draw_pairs(pairs, 10, seed=3, step=7), strict=True):
    np.testing.assert_array_equal(one, again)
  assert not np.array_equal(first[2], batches.draw_pairs(pairs, 10, seed=4, step=7)[2])
  assert not np.array_equal(first[2], batches.draw_pairs(pairs, 10, seed=3, step=8)[2])


def test_a_batch_larger_than_the_instances_is_refused():
  with pytest.raises(ValueError, match="batch_size is 4, but only 3 instances"):
    batches.draw_pairs(batches.group(INSTANCE, "text"), 4, seed=0, step=0)


def test_a_batch_is_read_unit_float32_and_split_over_devices():
  features = 3 * np.random.default_rng(0).normal(size=(6, 5)).astype(np.float16)
  semi = SemiPositives(np.array([[1, -1]] * 6, np.int32), np.array([[1.0, 0.0]] * 6, np.float32))
  rows = (np.array([0, 1, 2, 3]), np.array([2, 4, 5, 3]), np.arange(4))
  batch = batches.read_batch(rows, features, features, semi, devices=2)
  assert jax.tree.map(np.shape, batch) == batches.Batch((2, 2, 5), (2, 2, 5), (2, 2), (2, 2, 2, 5), (2, 2, 2))
  np.testing.assert_allclose(np.linalg.norm(batch.query, axis=-1), 1, atol=1e-5)
  np.testing.assert_allclose(batch.image[1, 0], features[5] / np.linalg.norm(features[5].astype(np.float32)), atol=1e-3)
  np.testing.assert_allclose(batch.semi[0, 0, 0], batch.query[0, 1], atol=1e-6)


LISTS = Relevance([np.array([0, 3]), np.array([], int), np.array([2, 3, 5]), np.array([1])], [np.array([], int)] * 4)


def listed():
  """Returns the pairs of four queries over six images; the second query has an empty list."""
  features = np.eye(6, dtype=np.float32)
  return batches.pairs_of(Training("image", features[:4], features, INSTANCE, LISTS))


def test_a_query_with_a_list_meets_the_images_of_its_list_and_no_query_comes_twice():
  seen = set()
  for step in range(60):
    query, image, _ = batches.draw_pairs(listed(), 3, seed=0, step=step)
    assert sorted(query.tolist()) == [0, 2, 3]
    seen |= set(zip(query.tolist(), image.tolist(), strict=True))
  assert seen == {(0, 0), (0, 3), (2, 2), (2, 3), (2, 5), (3, 1)}


def test_more_queries_than_have_a_list_are_refused():
  with pytest.raises(ValueError, match="batch_size is 4, but only 3 queries have a list"):
    batches.draw_pairs(listed(), 4, seed=0, step=0)


def test_images_in_a_querys_list_are_no_negatives_and_its_own_image_neither():
  features, own = np.eye(6, dtype=np.float32), LISTS.ignored[:3] + [np.array([0])]
  training = Training("image", features[:4], features, INSTANCE, Relevance(LISTS.positives, own))
  pairs = batches.pairs_of(training)
  rows = (np.array([0, 2, 3, 2]), np.array([3, 5, 1, 0]), np.arange(4))
  expected = [[1, 0, 0, 1], [1, 1, 0, 0], [0, 0, 1, 1], [1, 1, 0, 0]]
  assert batches.no_negatives(pairs, rows, 0, 1).astype(int).tolist() == expected
  assert batches.no_negatives(pairs, rows, 1, 2).astype(int).tolist() == expected[2:]
  assert batches.no_negatives(batches.group(INSTANCE, "image"), rows, 0, 1) is None
