"""Every recipe is complete, can be run, and says so."""

import importlib
import os
import pathlib
import subprocess
import sys

import pytest

from configs import benchmark, features, uned
from eval import check as eval_check
from eval.benchmarks import official
from train import check

FOLDER = pathlib.Path(features.__file__).parent
PLAIN = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in ("__init__", "demo_encoder", "benchmark"))
SIGLIP = "google/siglip2-large-patch16-512"
ARGUMENTS = [*official.BENCHMARKS, f"ilias,{SIGLIP}"]
RECIPES = [*((name, ()) for name in PLAIN), *(("benchmark", (argument,)) for argument in ARGUMENTS)]


@pytest.mark.parametrize(("name", "argument"), RECIPES)
def test_a_recipe_has_known_keys_and_values_that_can_be_run(name, argument):
  config = importlib.import_module(f"configs.{name}").get_config(*argument)
  config.data.root = "somewhere"
  check.config(config, devices=8)
  config.benchmark.update({"root": "somewhere", "features": "somewhere"})
  eval_check.check_config(config)
  assert set(config.keys()) == set(features.get_config().keys())


def test_an_unknown_key_is_named_with_the_one_that_was_meant():
  config = features.get_config()
  with pytest.raises(AttributeError, match='Did you mean "learning_rate"'):
    config.train.learning_rat = 1.0


@pytest.mark.parametrize("name", [*PLAIN, "benchmark"])
def test_a_recipe_gives_its_own_command(name):
  text = (FOLDER / f"{name}.py").read_text()
  assert "make demo" in text or f"--config configs/{name}.py" in text


def test_the_argument_of_the_benchmark_recipe_names_the_benchmark_and_the_encoder():
  config = benchmark.get_config(f"inquire,{SIGLIP}")
  assert (config.benchmark.name, config.encoder.name, config.form) == ("inquire", SIGLIP, "paper")
  config = benchmark.get_config("gldv2")
  assert (config.benchmark.name, config.encoder.name, config.form) == ("gldv2", benchmark.ENCODER, "adaptive")
  assert {*benchmark.PUBLISHED, *benchmark.OTHERS} == set(official.BENCHMARKS)


def test_the_argument_of_the_recipe_for_uned_names_the_encoder_and_the_form():
  config = uned.get_config(f"{SIGLIP},paper")
  assert (config.benchmark.name, config.encoder.name, config.form) == ("ilias", SIGLIP, "paper")
  config = uned.get_config("some/encoder")
  assert (config.encoder.name, config.form) == ("some/encoder", "gated")
  with pytest.raises(LookupError, match="names the form 'papers'; use gated or paper"):
    uned.get_config(f"{SIGLIP},papers")


def test_a_wrong_argument_is_one_line_and_a_right_one_names_the_run(tmp_path):
  command = [sys.executable, "-m", "eval.main", "--config.seed=2", f"--config={FOLDER}/benchmark.py"]
  for argument, words in (
    ("iliaz", "/benchmark.py:iliaz names the benchmark 'iliaz'; use one of ilias, inquire"),
    (f"ilias,{SIGLIP}", "config.benchmark.root is empty"),
  ):
    given = [*command[:3], f"{command[4]}:{argument}", command[3]]
    environment = {**os.environ, "PYTHONPATH": str(FOLDER.parent)}
    done = subprocess.run(given, capture_output=True, text=True, cwd=tmp_path, env=environment)
    (line,) = done.stderr.strip().splitlines()
    assert done.returncode == 1 and line.startswith("error: ") and words in line
  assert [path.name for path in (tmp_path / "runs").iterdir()] == ["benchmark_ilias_google_siglip2-large-patch16-512"]
