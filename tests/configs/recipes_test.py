"""Every recipe is complete, can be run, and says so."""

import importlib
import pathlib

import pytest

from configs import features
from eval import check as eval_check
from eval.benchmarks import official
from train import check

FOLDER = pathlib.Path(features.__file__).parent
NAMES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in ("__init__", "demo_encoder"))
BENCHMARKS = [name for name in NAMES if name.split("_")[0] in official.NAMES]


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_has_known_keys_and_values_that_can_be_run(name):
  config = importlib.import_module(f"configs.{name}").get_config()
  config.data.root = "somewhere"
  check.config(config, devices=8)
  config.benchmark.update({"root": "somewhere", "features": "somewhere"})
  eval_check.config(config)
  assert set(config.keys()) == set(features.get_config().keys())


def test_an_unknown_key_is_named_with_the_one_that_was_meant():
  config = features.get_config()
  with pytest.raises(AttributeError, match='Did you mean "learning_rate"'):
    config.train.learning_rat = 1.0


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_gives_its_own_command(name):
  text = (FOLDER / f"{name}.py").read_text()
  assert "make demo" in text or f"--config configs/{name}.py" in text


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmarks_recipe_names_it_and_says_that_it_has_not_been_run(name):
  recipe = importlib.import_module(f"configs.{name}")
  assert recipe.get_config().benchmark.name == name.split("_")[0]
  words = " ".join(recipe.__doc__.split())
  assert "not yet run here" in words
  assert "to be filled from the paper" in words or "no figure to expect is known" in words
  assert "--config.benchmark.root=ROOT" in words and "--config.benchmark.features=FEATURES" in words


def test_there_is_a_recipe_for_every_benchmark_and_encoder_of_the_paper():
  encoders = ("clip_b16", "clip_l14", "siglip2_b16", "siglip2_l16")
  assert {f"{name}_{encoder}" for name in ("ilias", "inquire") for encoder in encoders} <= set(BENCHMARKS)
