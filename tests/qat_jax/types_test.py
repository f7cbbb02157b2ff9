import jax.numpy as jnp
import numpy as np
import pytest

from qat_jax.features.store import write_features
from qat_jax.types import Gallery, Relevance, as_gallery, check_encoders


def test_taking_some_queries_keeps_each_with_its_own_lists():
  relevance = Relevance([np.array([1, 2]), np.array([3]), np.array([])], [np.array([]), np.array([4]), np.array([5])])
  taken = relevance.take([2, 1])
  assert len(taken) == 2
  assert [x.tolist() for x in taken.positives] == [[], [3]]
  assert [x.tolist() for x in taken.ignored] == [[5], [4]]


def test_lists_for_different_numbers_of_queries_are_refused():
  with pytest.raises(ValueError, match=r"positives for 1 queries, ignored for 2"):
    Relevance([np.array([1])], [np.array([]), np.array([])])


@pytest.mark.parametrize("array", [np.eye(3, dtype=np.float16), jnp.eye(3, dtype=jnp.bfloat16), np.eye(3)])
def test_an_array_is_a_gallery_that_does_not_know_its_space(array):
  gallery = as_gallery(array)
  assert isinstance(gallery, Gallery)
  assert (len(gallery), gallery.width, gallery.dtype, gallery.space) == (3, 3, array.dtype, None)
  assert type(gallery[1:]) is type(array)
  np.testing.assert_array_equal(np.asarray(gallery[np.array([2, 0])]), np.asarray(array)[[2, 0]])
  assert as_gallery(gallery) is gallery


def test_a_store_is_a_gallery_as_it_is(tmp_path):
  store = write_features(tmp_path / "s", {"img": np.eye(2, dtype=np.float32)}, {"id": ["a", "b"]})
  assert as_gallery(store) is store
  assert isinstance(store, Gallery)


@pytest.mark.parametrize(
  ("thing", "error", "message"),
  [
    ([[1.0, 0.0]], TypeError, "the gallery is a list; give an array"),
    ("features", TypeError, "is a str"),
    (None, TypeError, "is a NoneType"),
    (np.ones(3), ValueError, r"shape \(3,\); wanted"),
    (np.ones((2, 3), int), ValueError, "int64; wanted floats"),
    (np.ones((2, 3), ">f4"), ValueError, "another byte order"),
  ],
)
def test_what_is_no_gallery_is_refused(thing, error, message):
  with pytest.raises(error, match=message):
    as_gallery(thing)


@pytest.mark.parametrize(
  ("one", "other", "same"),
  [
    (("clip", "1"), ("clip", "1"), True),
    (("clip", "1"), ("clip", "2"), False),
    (("clip", "1"), ("siglip", None), False),
    (("clip", "1"), ("clip", None), True),
    (("clip", "ab" * 16), ("/models/clip", "ab" * 16), True),  # the same files in another place
    (("clip", "main"), ("siglip", "main"), False),
    (("clip", "1"), None, True),
  ],
)
def test_encoders_are_told_apart_as_far_as_they_are_known(one, other, same):
  for given in ((one, other), (other, one)):
    if same:
      check_encoders("a", given[0], "b", given[1])
    else:
      with pytest.raises(
        ValueError, match=r"^a is of the encoder \w+(@\w+)?, b of \w+(@\w+)?; use one encoder for both$"
      ):
        check_encoders("a", given[0], "b", given[1])
