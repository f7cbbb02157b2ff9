import json
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import qat_jax
from qat_jax.adapter import Adapter, Checkpoints, Head
from qat_jax.features.store import write_features
from qat_jax.models import forms as hypernetwork

WIDTH = 8


def head(form: str, **settings) -> Head:
  module = hypernetwork.FORMS[form](WIDTH, **settings)
  variables = hypernetwork.initialise(module, jax.random.key(0))
  variables["params"] = jax.tree.map(
    lambda x: x + 0.1 * jax.random.normal(jax.random.key(3), x.shape), variables["params"]
  )
  return Head(form, settings, variables)


@pytest.fixture
def adapter():
  text = head("adaptive", hidden=8, rank=2, token_hidden=8)
  return Adapter(WIDTH, {"text": text, "image": head("static", maps_gallery=True)}, {"trained": "here"})


@pytest.fixture
def features():
  return np.random.default_rng(0).normal(size=(5, WIDTH)).astype(np.float32)


@pytest.mark.parametrize("query_type", ["text", "image"])
def test_a_saved_adapter_is_the_same_adapter(adapter, features, query_type, tmp_path):
  adapter.save(tmp_path / "adapter")
  again = qat_jax.load(tmp_path)  # a run's folder
  chex.assert_trees_all_equal(again(features, query_type), adapter(features, query_type))
  assert again.info == {"trained": "here"}
  assert again.heads[query_type].space == adapter.heads[query_type].space


def test_saving_again_replaces_the_adapter(adapter, features, tmp_path):
  Adapter(WIDTH, {"text": head("plain")}).save(tmp_path / "a")
  adapter.save(tmp_path / "a")
  assert set(qat_jax.load(tmp_path / "a").heads) == {"text", "image"}
  assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_any_number_of_queries_gives_the_same_rows_without_compiling_for_each(adapter):
  query_QD = np.random.default_rng(1).normal(size=(9, WIDTH)).astype(np.float32)
  whole = adapter(query_QD)
  compiled = adapter._calls["text"]._cache_size()
  for count in (5, 6, 7, 8):
    chex.assert_trees_all_close(adapter(query_QD[:count]), whole[:count], atol=1e-6)
  assert adapter._calls["text"]._cache_size() <= compiled + 1


def test_the_text_head_answers_where_no_type_is_named(adapter, features):
  chex.assert_trees_all_equal(adapter(features), adapter(features, "text"))
  with pytest.raises(ValueError, match="'audio'.*image"):
    adapter(features, "audio")


@pytest.mark.parametrize(
  ("query_QD", "message"),
  [
    (np.ones((2, 5), np.float32), r"\(2, 5\).*\(Q, 8\)"),
    (np.ones((2, WIDTH), np.int32), "int32.*floats"),
    (np.ones((0, WIDTH), np.float32), "no queries"),
    (np.array([[1.0] * WIDTH, [np.nan] * WIDTH]), "query 1 is NaN"),
    (np.zeros((1, WIDTH)), "query 0 is NaN, infinite or zero"),
  ],
)
def test_bad_queries_are_refused_with_what_was_got_and_wanted(adapter, query_QD, message):
  with pytest.raises(ValueError, match=message):
    adapter(query_QD)


def test_a_prepared_store_remembers_who_prepared_it(adapter, features, tmp_path):
  columns = {"id": list("abcde"), "instance": list("aabbc")}
  unit = features / np.linalg.norm(features, axis=1, keepdims=True)
  frozen = write_features(tmp_path / "frozen", {"img": unit.astype(np.float16)}, columns)
  assert adapter.prepare(frozen, "text") is frozen
  with pytest.raises(ValueError, match="folder="):
    adapter.prepare(frozen, "image")
  mapped = adapter.prepare(frozen, "image", tmp_path / "mapped")
  assert mapped.space == adapter(features, "image").space != "frozen"
  np.testing.assert_allclose(mapped[:], adapter.prepare(frozen[:], "image"), atol=1e-3)
  assert mapped.ids.tolist() == list("abcde")
  assert adapter.prepare(mapped, "image") is mapped
  with pytest.raises(ValueError, match="another adapter"):
    Adapter(WIDTH, {"image": head("static", maps_gallery=False)}).prepare(mapped)


def test_a_store_that_is_not_normalised_is_written_anew(adapter, features, tmp_path):
  long = write_features(tmp_path / "long", {"img": 3 * features}, {"id": list("abcde")})
  with pytest.raises(ValueError, match=r"not of unit length.*folder="):
    adapter.prepare(long, "text")
  unit = adapter.prepare(long, "text", tmp_path / "unit")
  np.testing.assert_allclose(np.linalg.norm(unit[:], axis=1), 1, atol=1e-5)


def test_a_folder_without_an_adapter_is_named(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"no adapter in .*train\.main"):
    qat_jax.load(tmp_path)


def test_parameters_of_another_shape_are_refused(adapter, tmp_path):
  adapter.save(tmp_path / "a")
  about = json.loads((tmp_path / "a" / "adapter.json").read_text())
  about["heads"]["text"]["settings"]["hidden"] = 9
  (tmp_path / "a" / "adapter.json").write_text(json.dumps(about))
  with pytest.raises(ValueError, match=r"text/params/.*another model's"):
    qat_jax.load(tmp_path / "a")


def test_a_checkpoint_comes_back_whole_and_another_shape_is_refused(tmp_path):
  checkpoints = Checkpoints(tmp_path / "checkpoints")
  state = {"a": jnp.arange(3.0), "b": {"c": jnp.ones((2, 2))}}
  start = jax.tree.map(jnp.zeros_like, state)
  chex.assert_trees_all_equal(checkpoints.restore(start), start)
  checkpoints.save(5, state)
  assert checkpoints.latest().name == "5"
  chex.assert_trees_all_equal(checkpoints.restore(start), state)
  with pytest.raises(ValueError, match=r"\(2, 2\) for b/c, the model wants \(2, 3\)"):
    checkpoints.restore({"a": jnp.zeros(3), "b": {"c": jnp.zeros((2, 3))}})
  checkpoints.close()


def test_a_checkpoint_that_a_kill_left_unfinished_is_not_taken(tmp_path):
  checkpoints = Checkpoints(tmp_path / "checkpoints")
  checkpoints.save(1, {"a": jnp.ones(2)})
  checkpoints.close()
  shutil.copytree(tmp_path / "checkpoints" / "1", tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp")
  again = Checkpoints(tmp_path / "checkpoints")
  assert again.latest().name == "1"
  again.close()


def test_saving_leaves_the_other_files_of_the_folder(tmp_path):
  (tmp_path / "run").mkdir()
  (tmp_path / "run/metrics.jsonl").write_text("{}\n")
  for _ in range(2):
    adapter = Adapter(4, {"text": Head("plain", {}, {"params": {}, "constants": {}})})
    adapter.save(tmp_path / "run")
  assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["adapter.json", "metrics.jsonl"]
