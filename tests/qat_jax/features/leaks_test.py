import numpy as np
import pytest

from qat_jax.features import leaks
from qat_jax.features.retrieval_set import RetrievalSet
from qat_jax.features.store import write_features


def rows(seed, count, dtype=np.float16):
  return np.random.default_rng(seed).normal(size=(count, 4)).astype(dtype)


def written(root, *, ids=("v0", "v1"), instances=("x", "x"), features=None, trained=None):
  """Writes a set whose training rows are p, q and r of the instances A, A and B."""
  trained = rows(0, 3) if trained is None else trained
  write_features(root / "train", {"img": trained, "text": rows(1, 3)}, {"id": list("pqr"), "instance": list("AAB")})
  for seed, split in enumerate(("val", "test"), 2):
    own = split == "val"
    there = {"id": list(ids if own else ("t0", "t1")), "instance": list(instances if own else ("y", "y"))}
    images = features if own and features is not None else rows(seed, 2)
    write_features(root / split / "gallery", {"img": images}, there)
    texts = {"id": ["c"], "instance": [there["instance"][0]]}
    write_features(
      root / split / "text_queries", {"text": rows(1, 3)[:1]}, texts
    )  # a caption that training has as well
  return RetrievalSet.open(root)


def test_a_set_split_by_instance_shares_nothing(tmp_path):
  assert leaks.check(written(tmp_path / "set"), allowed=False) == {}


@pytest.mark.parametrize(
  ("what", "told"),
  [
    ({"instances": ("A", "x")}, "1 instances of val ('A')"),
    ({"ids": ("q", "v1")}, "1 ids of val ('q')"),
    ({"features": np.concatenate([rows(9, 1), rows(0, 3)[1:2]])}, "1 features of val ('v1')"),
    ({"features": np.concatenate([rows(9, 1), rows(0, 3)[1:2]]).astype(np.float32)}, "1 features of val ('v1')"),
  ],
)
def test_what_is_shared_is_named_and_refused(tmp_path, what, told):
  data = written(tmp_path / "set", **what)
  with pytest.raises(ValueError, match="train/ holds") as error:
    leaks.check(data, allowed=False)
  assert told in str(error.value)
  assert "allow_shared_instances" in str(error.value)
  (counts,) = leaks.check(data, allowed=True).values()
  assert counts == {next(iter(what)): 1}


def test_a_text_query_of_a_training_instance_is_refused(tmp_path):
  data = written(tmp_path / "set", instances=("B", "B"))
  assert leaks.shared(data)["val"] == {"instances": ["B"]}


def test_row_numbers_are_no_names(tmp_path):
  root = tmp_path / "set"
  number = lambda count, instances: {"id": [str(i) for i in range(count)], "instance": list(instances)}
  write_features(root / "train", {"img": rows(0, 3), "text": rows(1, 3)}, number(3, "AAB"))
  for seed, split in enumerate(("val", "test"), 2):
    write_features(root / split / "gallery", {"img": rows(seed, 2)}, number(2, "xy"))
    write_features(root / split / "text_queries", {"text": rows(seed + 9, 1)}, {"id": ["c"], "instance": ["x"]})
  assert leaks.shared(RetrievalSet.open(root)) == {}


def test_rows_of_one_digest_are_compared(tmp_path, monkeypatch):
  monkeypatch.setattr(leaks, "_digests", lambda store: np.zeros(len(store), np.uint64))
  assert leaks.shared(written(tmp_path / "set")) == {}


@pytest.mark.parametrize(("change", "alike"), [(0.02, 1), (0.6, 0)])
def test_what_is_nearly_the_same_as_a_training_image_is_told_and_not_refused(tmp_path, caplog, change, alike):
  other = np.random.default_rng(9).normal(size=(2, 4))
  nearly = rows(0, 3)[1] * 3 + change * np.linalg.norm(rows(0, 3)[1] * 3) * other[1] / np.linalg.norm(other[1])
  data = written(tmp_path / "set", features=np.stack([other[0], nearly]).astype(np.float16))
  cosine = lambda x, y: float(x @ y / np.linalg.norm(x) / np.linalg.norm(y))
  assert (cosine(nearly, rows(0, 3)[1].astype(float)) >= leaks.THRESHOLD) == bool(alike)
  assert leaks.check(data, allowed=False) == {}
  assert leaks.near(data) == ({"val": (1, 2)} if alike else {})
  assert ("1 of 2 images of val that were looked at are nearly the same" in caplog.text) == bool(alike)
