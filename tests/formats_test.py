"""What was ever written keeps loading, or is refused with what to do; what a later version wrote is refused by name."""

import pathlib
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import qat_jax
from eval import measure
from qat_jax.features import mining, splitting, writer
from qat_jax.features.shards import VERSION
from qat_jax.fit.candidates import read_candidate
from qat_jax.models import head_files
from qat_jax.models.checkpoints import Checkpoints
from qat_jax.sealed import read_record, write_record
from qat_jax.search import index
from qat_jax.serve import batch
from tests import formats
from train import plan

DATA = pathlib.Path(__file__).parent / "data/formats"
ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture
def kept(tmp_path):
  """A copy of what was written."""
  return pathlib.Path(shutil.copytree(DATA, tmp_path / "formats"))


def test_every_format_that_is_written_has_its_fixture_and_its_line_in_the_documents(tmp_path):
  formats.write(tmp_path)
  written = {path.name for path in tmp_path.iterdir()}
  assert not written - {path.name for path in DATA.iterdir()}, (
    "a format's number has risen: add what tests.formats wrote"
  )
  page = (ROOT / "docs/formats.md").read_text()
  assert not [name for name in written if f"`{name.split('-')[0]}" not in page]


@pytest.mark.parametrize("name", ["features-1", "features-1-unsealed"])
def test_features_open(name, kept):
  for kind in ("img", "text"):
    store = qat_jax.FeatureStore.open(kept / name, kind)
    store.verify()
    assert store.encoder == ("toy", None)
    assert store.ids[:3].tolist() == ["a", "b", "c"]


def test_features_without_a_description_open_too(kept):
  (kept / "features-1/meta.json").unlink()
  assert len(qat_jax.FeatureStore.open(kept / "features-1", "img")) == 12


def test_a_copy_beside_features_is_read_and_a_later_one_left_out(kept, caplog):
  store = qat_jax.FeatureStore.open(kept / "eight-bits-1")
  store.verify()
  assert store.eight_bits is not None and store.eight_bits[:].values.shape == store[:].shape
  path = kept / "eight-bits-1/img_emb/eight_bits.json"
  write_record(path, read_record(path) | {"format": 2})
  assert qat_jax.FeatureStore.open(kept / "eight-bits-1").eight_bits is None
  assert "is of format 2, and this version reads 1: upgrade qat-jax" in caplog.text


def test_features_that_were_begun_are_gone_on_with(kept):
  begun = writer.FeatureWriter(kept / "features-begun-1", {"rows": 12}, 2)
  assert begun.missing() == [1]


def test_a_set_is_not_made_again(kept):
  rows = splitting.split(kept / "features-1", kept / "split-1", val=0.3, test=0.3)
  assert sum(rows[name] for name in ("train", "val/gallery", "test/gallery")) == 12
  qat_jax.FeatureStore.open(kept / "split-1/test/text_queries", "text").verify()


@pytest.mark.parametrize("name", ["adapter-1", "adapter-2", "exported-1"])
def test_adapters_load(name, kept):
  query_QD = np.eye(2, 4, dtype=np.float32)
  fold_QD = qat_jax.fold(qat_jax.load(kept / name)(query_QD, "text"))
  np.testing.assert_allclose(fold_QD, query_QD, atol=1e-6)  # untrained: a head begins as no change


def test_a_prepared_gallery_is_known_as_its_adapters(kept):
  gallery = qat_jax.FeatureStore.open(kept / "gallery-1")
  gallery.verify()
  adapter = formats.adapter("static")
  assert gallery.space == adapter.head("text").space
  assert qat_jax.rank(adapter(gallery[:2], "text"), gallery, 1).ids[:, 0].tolist() == [0, 1]


def test_candidates_and_checkpoints_are_used_again(kept):
  adapter, precision_Q = read_candidate(kept / "candidate-5")
  assert precision_Q.tolist() == [0.5, 1.0]
  assert adapter.head("text").form == "query_only"
  assert plan.claimed(kept / "candidate-5", {"format": 5, "settings": {}})
  checkpoints = Checkpoints(kept / "checkpoints-1")
  restored = checkpoints.restore({"x": jnp.zeros(3)})
  assert checkpoints.note() == {"step": 3}
  checkpoints.close()
  assert jax.device_get(restored["x"]).tolist() == [0, 1, 2]


@pytest.mark.parametrize("earlier", [3, 4])
def test_a_candidate_of_an_earlier_format_is_refused_with_what_to_do(earlier, kept):
  with pytest.raises(ValueError, match=f"format was {earlier}, is 5. Use another --workdir"):
    plan.claimed(kept / f"candidate-{earlier}", {"format": 5, "settings": {}})


def test_results_semi_positives_and_indexes_are_read(kept):
  results, made_from = measure.read_results(kept / "results-3.npz")
  assert results[0].ap_Q.tolist() == [0.5, 1.0] and made_from == {"format": 3}
  semi, about = mining.load_semi_positives(kept / "semi-1.npz")
  assert semi.ids.tolist() == [[1], [0]] and about == {"format": 1}
  assert qat_jax.ExactIndex.load(kept / "index-1").search(np.eye(1, 4), 2).ids.shape == (1, 2)
  assert read_record(kept / "ranked-1.parts/plan.json") == {"format": 1, "k": 3}


@pytest.mark.parametrize(
  ("path", "entry", "read"),
  [
    ("features-1/meta.json", "version", lambda kept: qat_jax.FeatureStore.open(kept / "features-1", "img")),
    ("gallery-1/meta.json", "version", lambda kept: qat_jax.FeatureStore.open(kept / "gallery-1")),
    (
      "features-begun-1/incomplete/plan.json",
      "format",
      lambda kept: writer.FeatureWriter(kept / "features-begun-1", {"rows": 12}, 2),
    ),
    (
      "split-1/split.json",
      "format",
      lambda kept: splitting.split(kept / "features-1", kept / "split-1", val=0.3, test=0.3),
    ),
    ("adapter-2/adapter.json", "format", lambda kept: qat_jax.load(kept / "adapter-2")),
    ("exported-1/adapter.json", "format", lambda kept: qat_jax.load(kept / "exported-1")),
    ("candidate-5/adapter.json", "format", lambda kept: read_candidate(kept / "candidate-5")),
    ("checkpoints-1/3/checksums.json", "version", lambda kept: Checkpoints(kept / "checkpoints-1")),
    ("index-1/index.json", "format", lambda kept: qat_jax.ExactIndex.load(kept / "index-1")),
  ],
)
def test_what_a_later_version_wrote_is_refused_by_name_and_left_as_it_is(path, entry, read, kept):
  about = read_record(kept / path)
  write_record(kept / path, about | {entry: about[entry] + 1})
  written = (kept / path).read_bytes()
  with pytest.raises(ValueError, match=rf"is of (format|version) {about[entry] + 1}, and this .* upgrade qat-jax"):
    read(kept)
  assert (kept / path).read_bytes() == written


@pytest.mark.parametrize(
  ("path", "compare"),
  [
    ("candidate-5/made_from.json", lambda kept: plan.claimed(kept / "candidate-5", {"format": 5, "settings": {}})),
    ("ranked-1.parts/plan.json", lambda kept: batch._begin(kept / "ranked-1.parts", {"format": 1, "k": 3})),
  ],
)
def test_work_of_a_later_version_is_not_gone_on_with(path, compare, kept):
  about = read_record(kept / path)
  write_record(kept / path, about | {"format": about["format"] + 1})
  with pytest.raises(ValueError, match=f"format was {about['format'] + 1}, is {about['format']}"):
    compare(kept)


def test_the_numbers_in_the_documents_are_those_of_the_code():
  page = (ROOT / "docs/formats.md").read_text()
  numbers = {
    "features": VERSION,
    "adapter": head_files.FORMAT,
    "candidate": plan.FORMAT,
    "results": measure.FORMAT,
    "index": index.FORMAT,
    "split": splitting.FORMAT,
    "semi": mining.FORMAT,
    "ranked": batch.FORMAT,
  }
  for name, number in numbers.items():
    assert re.search(rf"\| `{name}[^|]*\| {number} \|", page), (name, number)
