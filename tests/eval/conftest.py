"""A working folder as training leaves it, tiny."""

import shutil

import pytest

from configs import features as recipe
from qat_jax.adapter import Adapter
from qat_jax.features.store import write_features
from tests.eval.tiny import WIDTH, put, unit
from tests.heads import moved


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
  """Returns a retrieval set and a working folder as training leaves it, with untrained heads that move queries."""
  folder = tmp_path_factory.mktemp("trained")
  root, workdir = folder / "set", folder / "run"
  names = [f"i{n // 2}" for n in range(40)]
  images, texts = unit(40, 1), unit(40, 2)
  write_features(
    root / "train", {"img": images, "text": texts}, {"id": [f"t{n}" for n in range(40)], "instance": names}
  )
  for split, seed in (("val", 3), ("test", 5)):
    put(root / split / "gallery", "img", [f"g{n}" for n in range(40)], seed, {"instance": names})
    for kind, place in (("text", "text_queries"), ("img", "image_queries")):
      put(root / split / place, kind, [f"{kind}{n}" for n in range(20)], seed + len(kind), {"instance": names[::2]})

  heads = {name: moved(name, WIDTH, about, 0.2, 1) for name, about in (("static", {}), ("query_only", {"hidden": 4}))}
  for query_type in ("text", "image"):
    for name, one in heads.items():
      info = {"name": name, "val_map": 0.1, "offline_seconds": 1.5, "parameters": 20_000}
      Adapter(WIDTH, {query_type: one}, info).save(workdir / "candidates" / query_type / name)
  info = {"chosen": {name: {"name": "query_only"} for name in ("text", "image")}}
  Adapter(WIDTH, dict.fromkeys(("text", "image"), heads["query_only"]), info).save(workdir / "adapter")
  return root, workdir


@pytest.fixture
def config(trained):
  config = recipe.get_config()
  config.data.root = str(trained[0])
  config.eval.methods = ("plain", "adapted")
  config.eval.shortlist = 10
  return config


@pytest.fixture
def workdir(trained, tmp_path):
  shutil.copytree(trained[1], tmp_path / "run")
  return tmp_path / "run"
