import json
import sys

import numpy as np
import pytest

from tests.train.pipeline_test import retrieval_set
from train.trials import published


@pytest.fixture
def command(tmp_path, monkeypatch):
  root = retrieval_set(tmp_path / "set")
  words = ["published", str(root), str(tmp_path / "out"), "--small", "--batch", "16", "--steps", "50"]
  monkeypatch.setattr(published, "SMALL", published.SMALL[-2:])
  monkeypatch.setattr(published, "LARGE", published.LARGE[:1])

  def run(*more):
    monkeypatch.setattr(sys, "argv", [*words, *more])
    published.main()
    return published.read(tmp_path / "out" / "runs.jsonl")

  return run


def test_every_rate_once_then_seeds_at_the_best_and_what_was_run_is_not_run_again(command, capsys):
  first = command("--only", "static", "--seeds", "1")
  assert [(run["rate"], run["seed"]) for run in first] == [(rate, 0) for rate in published.SMALL]
  best = max(first, key=lambda run: run["val"])
  both = command("--only", "static", "--seeds", "2")
  assert both[:-1] == first and (both[-1]["rate"], both[-1]["seed"]) == (best["rate"], 1)
  assert both[-1]["last_loss"] < both[-1]["first_loss"] and both[-1]["val"] > 0.2
  row = capsys.readouterr().out.splitlines()[-1].split(" | ")
  test = [100 * np.mean(run["test"]) for run in both if run["rate"] == best["rate"]]
  assert row[4] == f"{np.mean(test):.1f} ± {np.std(test, ddof=1):.1f} (2)"


def test_the_published_forms_are_trained_and_nothing_begins_that_would_end_too_late(command):
  assert command("--only", "paper", "--seconds", "0") == []
  names = ["paper, from a static map", "released"]
  runs = command("--only", *names, "--seeds", "0", "--seconds", "1e9")
  assert {run["name"] for run in runs} == set(names)
  assert all(np.isfinite(run["last_loss"]) and len(run["test"]) == 40 for run in runs)
  assert json.dumps(runs)  # plain numbers


def test_runs_of_other_settings_are_refused_and_half_a_line_is_taken_out(command, tmp_path, capsys):
  assert command("--only", "static", "--seconds", "0") == []
  with pytest.raises(SystemExit):
    command("--only", "static", "--seconds", "0", "--steps", "75")
  assert "steps was 50, is 75" in capsys.readouterr().err
  with pytest.raises(SystemExit):
    command("--steps", "5")
  path = tmp_path / "out" / "runs.jsonl"
  path.write_text('{"name": "a"}\n{"name":')
  assert published.read(path) == [{"name": "a"}]
  assert path.read_text() == '{"name": "a"}\n'


def test_forms_of_one_size():
  tried = published.trials(64, published.FULL, published.RELEASED)
  size = {name: published.size_of(trial.form, trial.settings, 64) for name, trial in tried.items()}
  assert size["query_only"] == pytest.approx(size["paper"], rel=1e-4)
  assert size["gated"] == pytest.approx(size["paper"], rel=1e-4)
