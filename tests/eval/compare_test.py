import numpy as np
import pytest

from eval.compare import Step, chain, cut_set, plot, serves, table_of_forms, table_of_parts
from qat_jax.adapter import load
from qat_jax.features.retrieval_set import RetrievalSet
from qat_jax.features.store import write_features
from qat_jax.metrics import paired_interval
from qat_jax.validation import Validator

FORMS = ("static", "query_only")


@pytest.fixture
def root(tmp_path):
  rng = np.random.default_rng(0)
  rows = lambda count: rng.normal(size=(count, 4)).astype(np.float16)
  columns = {"id": [f"r{i}" for i in range(60)], "instance": [f"i{i // 2}" for i in range(60)]}
  write_features(tmp_path / "set/train", {"img": rows(60), "text": rows(60)}, columns)
  for split in ("val", "test"):
    about = {"id": [f"{split}0"], "instance": [split]}
    write_features(tmp_path / "set" / split / "gallery", {"img": rows(1)}, about)
    write_features(tmp_path / "set" / split / "text_queries", {"text": rows(1)}, {**about, "id": ["q"]})
  return tmp_path / "set"


def test_a_cut_keeps_whole_instances_and_all_that_is_asked(root, tmp_path):
  whole = RetrievalSet.open(root)
  third, tenth = (cut_set(root, tmp_path / str(share), share) for share in (1 / 3, 0.1))
  assert (len(third.train_images), len(tenth.train_images)) == (20, 6)
  assert set(tenth.train_images.ids) < set(third.train_images.ids) < set(whole.train_images.ids)
  position = int(np.flatnonzero(whole.train_images.ids == third.train_images.ids[3])[0])
  np.testing.assert_array_equal(third.train_texts[3], whole.train_texts[position])
  assert third.split("test").fingerprint == whole.split("test").fingerprint
  assert len(cut_set(root, tmp_path / "all", 1).train_images) == 60
  with pytest.raises(ValueError, match=r"share is 0.0; give a number above 0"):
    cut_set(root, tmp_path / "none", 0.0)


def test_forms_are_told_with_their_spread_over_runs_and_paired_with_the_static_map(trained):
  root, workdir = trained
  validator = Validator.of(RetrievalSet.open(root).split("test"), "text", limit=0, seed=0)
  lines = {line.split(" | ")[0]: line for line in table_of_forms([workdir, workdir], "text", validator).splitlines()}
  static, query_only = (validator.precisions(load(workdir / "candidates/text" / name).head("text")) for name in FORMS)
  mean, low, high = (100 * x for x in paired_interval(query_only, static))
  gain = f"{mean:+.1f} [{low:.1f}, {high:.1f}]"
  told = f"| query_only | 0.02M | 2 | 10.0 | {100 * query_only.mean():.1f} ± 0.0 (2) | {gain} | – |"
  assert lines["| query_only"] == told
  assert lines["| static"].split(" | ")[5] == "–"
  with pytest.raises(ValueError, match="no candidates for image queries in "):
    table_of_forms([root], "image", validator)


def test_the_chain_goes_from_the_best_head_part_by_part():
  names = ("plain", "static", "head", "head_remembering", "head_remembering_captioned", "head_levelled")
  names += ("head_remembering_levelled", "head_remembering_captioned_levelled", "head_mapped", "head_mapped_levelled")
  val_map = dict.fromkeys(names, 0.1) | {"head": 0.3, "head_mapped": 0.2}
  parts = ["head_remembering", "head_remembering_captioned", "head_remembering_captioned_levelled"]
  assert chain(val_map) == ["head", *parts]
  assert chain(val_map | {"head_mapped": 0.4}) == ["head_mapped", "head_mapped_levelled"]
  assert chain({"plain": 1.0}) == []  # nothing was left to gain


def test_a_part_is_served_where_it_stands_beside_the_head_that_serves():
  rungs = ["head_mapped", "head_mapped_remembering", "head_mapped_remembering_levelled"]
  assert [serves("head_mapped_levelled", name) for name in rungs] == [True, False, True]
  assert [serves("head_mapped", name) for name in rungs] == [True, False, False]
  assert not any(serves("head_levelled", name) for name in rungs)


def test_the_table_and_the_plot_say_what_each_part_added():
  steps = [
    Step(2000, "text", "the head query_only", (0.1, 0.01), (0.08, 0.02), 0.12, True),
    Step(2000, "text", "levelled items", (-0.005, 0.004), (-0.01, 0.005), 0.11, False),
    Step(200, "image", "the head closed_form", (0.02, 0.01), (0.01, 0.01), 0.31, True),
  ]
  lines = table_of_parts(steps).splitlines()
  assert lines[2] == "| text | 2,000 | the head query_only | +10.0 ± 1.0 | +8.0 ± 2.0 | 12.0 | yes |"
  assert lines[3] == "| text | 2,000 | levelled items | -0.5 ± 0.4 | -1.0 ± 0.5 | 11.0 |  |"
  assert len(lines) == 5
  picture = plot(steps, "text")
  assert "2,000 rows" in picture
  assert "levelled items" in picture
  assert "200 rows" not in picture.replace("2,000 rows", "")
