"""The recipe for hub CLIPs, from TFDS files to the table, on a few drawn images and the demo's small CLIP."""

import json

from configs import clip_b16
from eval.pipeline import evaluate
from qat_jax.features.store import FeatureStore
from tests.qat_jax.datasets.corpora import tfds_set
from train import check
from train.pipeline import train


def test_the_recipe_is_right():
  check.config(clip_b16.get_config(), devices=8)


def test_from_tfds_files_to_the_table(tmp_path):
  parts = {"train": range(16), "restval": range(90, 92), "val": range(16, 20), "test": range(20, 24)}
  tfds_set(tmp_path / "tfds", parts)
  config = clip_b16.get_config()
  config.data.folder = str(tmp_path / "tfds")
  config.encoder.update({"name": "toy_clip", "batch_size": 16})
  config.form = "query_only"
  config.forms.query_only.hidden = 16
  config.train.update({"batch_size": 16, "steps": 4})
  config.static_train.steps = 4
  config.validation.every = 4
  config.eval.methods = ("plain", "adapted", "adapted_shortlist")
  workdir = tmp_path / "run"
  adapter = train(config, workdir)
  assert list(adapter.heads) == ["text"]
  queries = FeatureStore.open(workdir / "features/test/text_queries")
  assert len(queries) == 20
  assert set(queries.column("instance")) == set(FeatureStore.open(workdir / "features/test/gallery").ids)

  evaluate(config, workdir)
  metrics = json.loads((workdir / "eval/metrics.json").read_text())
  counted = {(row["query"], row["method"], row["queries"]) for row in metrics["results"]}
  assert counted == {("text", method, 20) for method in config.eval.methods}
