import sys

import numpy as np
import pytest

import qat_jax
from tests.train.pipeline_test import retrieval_set
from train.trials import published


@pytest.fixture
def command(tmp_path, monkeypatch):
  root = retrieval_set(tmp_path / "set")
  words = ["published", str(root), str(tmp_path / "out"), "--small", "--batch", "16", "--steps", "50"]
  monkeypatch.setattr(published, "SMALL", published.SMALL[-2:])
  monkeypatch.setattr(published, "LARGE", published.LARGE[:1])

  def run(*more):
    """Returns the runs of OUT by folder, in the order in which they were made: rate, seed, val_map."""
    monkeypatch.setattr(sys, "argv", [*words, *more])
    published.main()
    made = sorted((tmp_path / "out").glob("*/adapter.json"), key=lambda path: path.stat().st_mtime_ns)
    found = [(path.parent.name, qat_jax.load(path.parent).info) for path in made]
    of_run = lambda settings: (settings["learning_rate"], settings["seed"])
    return [(name, *of_run(info["settings"]), info["val_map"]) for name, info in found]

  return run


def test_every_rate_once_then_seeds_at_the_best_and_what_was_run_is_not_run_again(command, capsys):
  first = command("--only", "static", "--seeds", "1")
  assert [run[1:3] for run in first] == [(rate, 0) for rate in published.SMALL]
  best = max(first, key=lambda run: run[3])
  both = command("--only", "static", "--seeds", "2")
  assert both[:-1] == first and both[-1][1:3] == (best[1], 1) and both[-1][3] > 0.2
  row = capsys.readouterr().out.splitlines()[-1].split(" | ")
  val = np.mean([run[3] for run in both if run[1] == best[1]])
  assert row[3] == f"{100 * val:.1f}" and row[4].endswith("(2)")


def test_the_published_forms_are_trained_and_nothing_begins_that_would_end_too_late(command, capsys):
  assert command("--only", "paper", "--seconds", "0") == []
  names = ["paper, from a static map", "released"]
  runs = command("--only", *names, "--seeds", "0", "--seconds", "1e9")
  assert [run[0].partition("-")[0] for run in runs] == ["paper_from_a_static_map", "released"]
  assert [line.split(" | ")[0] for line in capsys.readouterr().out.splitlines()[-2:]] == [f"| {name}" for name in names]


def test_runs_of_other_settings_are_refused(command, capsys):
  command("--only", "released", "--seeds", "1")
  with pytest.raises(SystemExit):
    command("--only", "released", "--seeds", "1", "--steps", "75")
  assert "settings.steps was 50, is 75" in capsys.readouterr().err
  with pytest.raises(SystemExit):
    command("--steps", "5")


def test_forms_of_one_size():
  tried = published.trials(64, {}, published.RELEASED)
  size = {name: published.size_of_form(trial.form, trial.settings, 64) for name, trial in tried.items()}
  assert size["query_only"] == pytest.approx(size["paper"], rel=1e-4)
  assert size["gated"] == pytest.approx(size["paper"], rel=1e-4)
