"""The command that scores files of other programs: figures, JSON, and errors without a traceback."""

import json
from pathlib import Path

import numpy as np
import pytest

from eval.score import main

VECTORS = Path(__file__).parents[1] / "data" / "metric_vectors"


def test_ilias_similarities_are_scored_in_percent(tmp_path, capsys):
  root = VECTORS / "ilias"
  flags = ["--benchmark", "ilias", "--root", str(root), "--similarities", str(root / "similarities.json"), "--k", "5"]
  main([*flags, "--json", str(tmp_path / "out.json")])
  expected = json.loads((root / "expected.json").read_text())["k=5"]
  written = json.loads((tmp_path / "out.json").read_text())
  assert written["map"] == pytest.approx(expected["map"], abs=1e-9)
  assert written["scale"] == pytest.approx(expected["scale"], abs=1e-9)
  assert f"{expected['map']:.4f}" in capsys.readouterr().out


def test_gldv2_predictions_are_scored_as_a_fraction(tmp_path):
  files = ["--solution", str(VECTORS / "gldv2_solution.csv"), "--predictions", str(VECTORS / "gldv2_predictions.csv")]
  main(["--benchmark", "gldv2", *files, "--json", str(tmp_path / "out.json")])
  expected = json.loads((VECTORS / "gldv2_expected.json").read_text())
  assert json.loads((tmp_path / "out.json").read_text())["map"] == pytest.approx(expected["map_at_100"], abs=1e-9)


@pytest.mark.parametrize("name", ["roxford5k", "rparis6k"])
def test_revisited_ranks_give_easy_medium_and_hard(tmp_path, name):
  vectors = json.loads((VECTORS / "revisited_oxford_paris.json").read_text())
  (tmp_path / "gnd.json").write_text(json.dumps(vectors["gnd"]))
  np.save(tmp_path / "ranks.npy", np.array(vectors["ranks_db_by_query"]))
  files = ["--gnd", str(tmp_path / "gnd.json"), "--ranks", str(tmp_path / "ranks.npy")]
  main(["--benchmark", name, *files, "--json", str(tmp_path / "out.json")])
  written = json.loads((tmp_path / "out.json").read_text())
  for protocol, expected in vectors["expected"].items():
    assert written[protocol]["map"] == pytest.approx(expected["map"], abs=1e-9)
    assert written[protocol]["mp@5"] == pytest.approx(expected["mp_at_1_5_10"][1], abs=1e-9)


def test_bad_input_is_explained_in_one_line(tmp_path, capsys):
  with pytest.raises(SystemExit) as stopped:
    main(["--benchmark", "roxford5k", "--gnd", str(tmp_path / "none.pkl"), "--ranks", "r.npy"])
  assert stopped.value.code == 1
  assert "error: no r.npy" in capsys.readouterr().err


@pytest.mark.parametrize(
  ("name", "words"), [("gldv2", "needs --solution and --predictions"), ("inquire", "invalid choice")]
)
def test_missing_flags_and_benchmarks_without_a_file_of_results_are_named(capsys, name, words):
  with pytest.raises(SystemExit):
    main(["--benchmark", name])
  assert words in capsys.readouterr().err


def test_ranks_that_hold_python_objects_are_refused(tmp_path, capsys):
  np.save(tmp_path / "ranks.npy", np.array([{}], dtype=object), allow_pickle=True)
  (tmp_path / "gnd.json").write_text(json.dumps([{"easy": [0], "hard": [], "junk": []}]))
  with pytest.raises(SystemExit):
    main(["--benchmark", "roxford5k", "--gnd", str(tmp_path / "gnd.json"), "--ranks", str(tmp_path / "ranks.npy")])
  assert "not a whole .npy of numbers" in capsys.readouterr().err
