"""What the rows of the table are made of: no two of them are the same by mistake."""

import pathlib
import re

import numpy as np
import pytest

from configs import features
from eval import methods
from eval.baselines import diffusion
from eval.benchmarks.official import BENCHMARKS
from eval.pipeline import open_run, problems
from qat_jax.adaptation import fold, unit
from qat_jax.adapter import Adapter
from qat_jax.fit.training import PLAIN
from tests.eval.tiny import WIDTH
from tests.heads import moved

SETTINGS = {"hidden": 4, "maps_gallery": False}


PAGE = pathlib.Path(__file__).parents[2] / "docs/benchmarks.md"


def test_the_documents_name_every_row_of_the_table_and_every_benchmark():
  text = PAGE.read_text()
  table = text.split("| name | what it is |")[1].split("\n\n")[0]
  assert set(re.findall(r"`(\w+)`", "".join(line.split("|")[1] for line in table.splitlines()[2:]))) == set(
    methods.METHODS
  )
  assert set(features.get_config().eval.methods) <= set(methods.METHODS)
  assert not [name for name in BENCHMARKS if f"`{name}`" not in text]


def method(config, workdir, name, query_type="image"):
  """Returns a method of a run, and its problem."""
  run = open_run(config, workdir)
  problem = next(one for one in problems(config, run) if one.query_type == query_type)
  return methods.method(name, run, problem), problem


@pytest.mark.parametrize(
  ("name", "words"),
  [
    ("lda", "shrinkage [0-9.]+$"),
    ("lda_query", "shrinkage [0-9.]+, residual"),
    ("query_expansion", "nearest [0-9]+, α"),
    ("diffusion_shortlist", "shortlist 500, "),
  ],
)
def test_a_row_says_what_was_fitted_for_it(config, workdir, name, words, monkeypatch):
  monkeypatch.setattr(diffusion, "best_choice", lambda value: diffusion.Choice())
  made, _ = method(config, workdir, name)
  assert re.search(words, made.note), made.note


def test_a_shortlist_is_put_into_the_adapted_order_and_the_fold_keeps_its_own(config, workdir):
  adapter = Adapter(WIDTH, {"image": moved("gated", WIDTH, SETTINGS, by=1)})
  adapter.save(workdir / "adapter")
  config.eval.shortlist = 40
  ids = {}
  for name in ("adapted", "adapted_shortlist", "fold_only"):
    made, problem = method(config, workdir, name)
    ids[name] = np.asarray(made.prepare(problem.gallery)(problem.query_QD, 10).ids)
  np.testing.assert_array_equal(ids["adapted_shortlist"], ids["adapted"])
  folded_QN = np.asarray(fold(adapter(problem.query_QD, "image"))) @ unit(problem.gallery[:], np.float32).T
  np.testing.assert_array_equal(ids["fold_only"], np.argsort(-folded_QN, axis=1)[:, :10])
  assert (ids["fold_only"] != ids["adapted"]).any()


def test_a_step_to_what_serves_is_found_by_its_last_part(config, workdir):
  steps = ["head", "head_remembering", "head_remembering_captioned", "head_remembering_captioned_levelled"]
  for name in steps:
    info = {"name": name, "note": "", "val_map": 0.1, "offline_seconds": 1.0}
    Adapter(WIDTH, {"image": PLAIN}, info).save(workdir / "candidates/image" / name)
  chosen = {"image": {"name": steps[-1], "steps": [{"name": name} for name in steps]}}
  Adapter(WIDTH, {"image": PLAIN}, {"chosen": chosen}).save(workdir / "adapter")
  rows = ("head_alone", "head_with_memory", "head_with_captions")
  assert [method(config, workdir, row)[0].note for row in rows] == steps[:3]
