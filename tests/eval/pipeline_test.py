"""An evaluation, from a working folder to metrics.json: its rows, what is kept, and what is refused."""

import functools
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eval import methods
from eval.pipeline import evaluate
from eval.ranking import Method
from qat_jax.adapter import Adapter, load
from qat_jax.fit.training import PLAIN
from qat_jax.sharing.share import report_of
from tests.eval.tiny import WIDTH, plain_ranking, run, values
from tests.vectors import change_a_feature


def untuned(run, problem):
  return Method(lambda gallery: lambda query_QD, k: plain_ranking(query_QD, gallery[:]), "", 7, 3.0)


def test_every_method_has_a_row_or_a_reason_and_its_costs(config, workdir, monkeypatch):
  for name in ("whitening", "ilias_linear", "query_expansion", "diffusion", "diffusion_shortlist"):  # slow to tune
    monkeypatch.setitem(methods.METHODS, name, methods.METHODS[name]._replace(make=untuned))
  cannot = functools.partial(methods.fitted, lambda training, validator: None)
  monkeypatch.setitem(methods.METHODS, "lda", methods.METHODS["lda"]._replace(make=cannot))
  config.eval.methods = ("all",)
  metrics = run(config, workdir)
  rows = {(r["query"], r["method"]) for r in metrics["results"]}
  left_out = {(s["query"], s["method"]) for s in metrics["skipped"]}
  assert rows | left_out == {(q, m) for q in ("text", "image") for m in methods.METHODS}
  assert not rows & left_out
  for cost in metrics["costs"]:
    assert cost["ms_per_query"] > 0
    assert cost["offline_seconds"] is not None
    assert cost["extra_bytes_per_item"] is not None
    assert cost["parameters"] is not None
  without = {"lda", "head_alone", "head_with_memory", "head_with_captions"}  # this run's adapter has no parts
  without |= {"published_linear", "trained_form"}
  assert left_out == {(q, m) for q in ("text", "image") for m in {*without, "experts"}} | {("text", "plda")}
  costs = {c["method"]: c for c in metrics["costs"]}
  assert (costs["whitening"]["parameters"], costs["whitening"]["extra_bytes_per_item"]) == (7, 3.0)
  assert costs["plain"]["parameters"] == 0
  assert costs["static"]["offline_seconds"] >= 1.5  # its training, and the gallery's map
  assert costs["adapted_shortlist"]["extra_bytes_per_item"] == 4 * WIDTH


def test_the_trained_form_has_a_row_where_another_head_serves(config, workdir):
  for name, value in (("paper", 0.3), ("paper_mapped", 0.2)):
    info = {"name": name, "val_map": value, "offline_seconds": 2.0}
    Adapter(WIDTH, {"image": PLAIN}, info).save(workdir / "candidates/image" / name)
  config.eval.methods = ("plain", "trained_form")
  metrics = run(config, workdir)
  assert values(metrics, "map", "trained_form") == {("image", ""): values(metrics, "map")["image", ""]}
  assert [c["note"] for c in metrics["costs"] if c["method"] == "trained_form"] == ["paper"]


def test_a_killed_evaluation_goes_on_with_the_methods_that_are_missing(config, workdir, tmp_path, monkeypatch):
  shutil.copytree(workdir, tmp_path / "undisturbed")
  expected = run(config, tmp_path / "undisturbed")
  called = []
  whole = methods.method

  def method(name, run, problem):
    called.append((problem.name, name))
    if called.count(("image", "adapted")) == 1 and called[-1] == ("image", "adapted"):
      raise KeyboardInterrupt
    return whole(name, run, problem)

  monkeypatch.setattr(methods, "method", method)
  with pytest.raises(KeyboardInterrupt):
    run(config, workdir)
  assert not (workdir / "eval" / "metrics.json").exists()
  called.append("again")
  metrics = run(config, workdir)
  assert called[called.index("again") + 1 :] == [("image", "adapted")]
  for part in ("results", "differences"):
    assert metrics[part] == expected[part]
  before = (workdir / "eval" / "metrics.json").read_text()
  assert report_of(workdir, load(workdir)) == metrics  # which a model card of this very adapter may tell
  called.clear()
  run(config, workdir)
  assert called == []
  assert (workdir / "eval" / "metrics.json").read_text() == before


def edit_the_metadata(folder):
  path = folder / "metadata/metadata_0000.parquet"
  table = pq.read_table(path)
  pq.write_table(table.append_column("caption", pa.array(["a toy"] * len(table))), path)
  (folder / "meta.json").unlink()


@pytest.mark.parametrize(
  ("change", "words"),
  [
    (lambda config, root, workdir: config.eval.update({"shortlist": 11}), "config.shortlist was 10, is 11"),
    (lambda config, root, workdir: config.eval.update({"queries": 15}), "config.queries was 0, is 15"),
    (lambda config, root, workdir: config.validation.update({"queries": 9}), "config.validation was 1000, is 9"),
    (lambda config, root, workdir: config.update({"seed": 4}), "config.seed was 0, is 4"),
    (lambda c, r, workdir: Adapter(WIDTH, {"text": PLAIN, "image": PLAIN}).save(workdir / "adapter"), "is 'plain'"),
    (lambda config, root, workdir: shutil.rmtree(workdir / "candidates/text/static"), "candidates.static was "),
    (lambda config, root, workdir: change_a_feature(root / "train"), "tuned_on.train.images.features was "),
    (lambda config, root, workdir: edit_the_metadata(root / "train"), "tuned_on.train.images.metadata was "),
    (lambda config, root, workdir: change_a_feature(root / "val/gallery"), "tuned_on.val.gallery.features was "),
    (lambda config, root, workdir: change_a_feature(root / "test/gallery"), "problem.gallery.features was "),
    (lambda config, root, workdir: None, "code was "),
  ],
  ids=[
    "shortlist",
    "queries",
    "validation",
    "seed",
    "adapter",
    "candidate",
    "train",
    "captions",
    "val",
    "test",
    "code",
  ],
)
def test_results_made_from_anything_else_are_made_anew_and_it_is_said(
  change, words, config, workdir, tmp_path, monkeypatch, caplog
):
  root = tmp_path / "set"
  shutil.copytree(config.data.root, root)
  config.data.root, config.eval.methods = str(root), ("plain",)
  run(config, workdir)
  called = []
  whole = methods.method
  monkeypatch.setattr(methods, "method", lambda name, *rest: called.append(name) or whole(name, *rest))
  change(config, root, workdir)
  if words.startswith("code"):
    monkeypatch.setattr("eval.measure.of_code", lambda: "other")
  caplog.clear()
  run(config, workdir)
  assert called and set(called) == {"plain"}
  assert "text: plain score is made anew: " in caplog.text
  assert words in caplog.text


def test_a_damaged_file_of_results_is_made_anew(config, workdir, monkeypatch):
  config.eval.methods = ("plain",)
  before = run(config, workdir)
  for path in (workdir / "eval" / "methods").rglob("*.npz"):
    path.write_bytes(path.read_bytes()[:100])
  assert run(config, workdir)["results"] == before["results"]


def test_another_set_of_the_same_encoder_is_measured_for_the_queries_that_it_has(config, workdir, tmp_path):
  root = tmp_path / "set"
  shutil.copytree(config.data.root, root)
  for split in ("val", "test"):
    shutil.rmtree(root / split / "text_queries")
  config.data.root = str(root)
  assert {row["query"] for row in run(config, workdir)["results"]} == {"image"}


def test_a_set_whose_queries_the_adapter_does_not_serve_is_refused_in_a_line(config, workdir, tmp_path):
  root = tmp_path / "set"
  shutil.copytree(config.data.root, root)
  for split in ("val", "test"):
    shutil.rmtree(root / split / "image_queries")
  Adapter(WIDTH, {"image": PLAIN}).save(workdir / "adapter")
  config.data.root = str(root)
  with pytest.raises(ValueError, match=r"set asks text queries, the adapter serves image queries alone"):
    run(config, workdir)


def test_a_set_of_another_width_is_refused_in_a_line(config, workdir):
  Adapter(5, {"text": PLAIN}).save(workdir / "adapter")
  with pytest.raises(ValueError, match=r"set is 8 wide, the adapter 5: give the set that it was trained on"):
    run(config, workdir)


def test_an_unknown_method_is_named_before_any_work(config, tmp_path):
  config.eval.methods = ("plain", "adaptd")
  with pytest.raises(ValueError, match=r"has 'adaptd'; use some of plain, static, .*adapted_shortlist"):
    evaluate(config, tmp_path)


def test_a_gallery_too_large_for_a_method_is_said_and_the_others_run_streamed(config, workdir, monkeypatch):
  monkeypatch.setattr("eval.galleries.RESIDENT", 0)
  monkeypatch.setattr(methods, "HELD", 1e-9)
  monkeypatch.setattr(methods, "GRAPH_ITEMS", 39)
  config.eval.methods = ("static", "adapted", "neighbours", "query_expansion", "diffusion")
  streamed = run(config, workdir)
  reasons = {s["method"]: s["reason"] for s in streamed["skipped"]}
  assert reasons.keys() == {"query_expansion", "diffusion"}
  assert "it holds the gallery, 0.0 GiB as float32" in reasons["query_expansion"]
  assert "the gallery has 40; it is run on 39 at most" in reasons["diffusion"]
  assert not (workdir / "eval" / "scratch").exists()
  monkeypatch.undo()
  shutil.rmtree(workdir / "eval")
  resident = run(config, workdir)
  for method in ("static", "adapted", "neighbours"):
    assert values(streamed, "map", method) == pytest.approx(values(resident, "map", method), abs=0.01)
