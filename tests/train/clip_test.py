"""The recipe for hub CLIPs, from TFDS files to the table, on a few drawn images and the demo's small CLIP."""

import io
import json

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image, ImageDraw
from tensorflow_datasets.core import registered

from configs import clip_b16
from eval.pipeline import evaluate
from qat_jax.features.store import FeatureStore
from train import check
from train.pipeline import train

COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "black", "gray")


def make_coco(folder):
  """Prepares squares and discs with the features and the splits of coco_captions."""
  with registered.skip_registration():

    class CocoCaptions(tfds.core.GeneratorBasedBuilder):
      """A shape in a colour at a place, with five captions."""

      VERSION = tfds.core.Version("1.1.0")
      BUILDER_CONFIGS = (tfds.core.BuilderConfig(name="2014"),)
      url_infos = {}  # noqa: RUF012

      def _info(self):
        captions = tfds.features.Sequence({"id": np.int64, "text": np.str_})
        features = {"image": tfds.features.Image(encoding_format="png"), "image/id": np.int64, "captions": captions}
        return tfds.core.DatasetInfo(
          builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

      def _split_generators(self, dl_manager):
        parts = {"train": range(16), "restval": range(90, 92), "val": range(16, 20), "test": range(20, 24)}
        return {name: self._generate_examples(numbers) for name, numbers in parts.items()}

      def _generate_examples(self, numbers):
        for number in numbers:
          colour, shape = COLOURS[number % 8], ("square", "disc")[number // 8 % 2]
          image = Image.new("RGB", (80, 60), "white")
          draw = ImageDraw.Draw(image)
          place = (number, 10, number + 30, 40)
          draw.rectangle(place, colour) if shape == "square" else draw.ellipse(place, colour)
          file = io.BytesIO()
          image.save(file, "PNG")
          file.seek(0)
          texts = [f"{word} {colour} {shape}" for word in ("a", "one", "the", "some", "another")]
          captions = [{"id": 10 * number + i, "text": text} for i, text in enumerate(texts)]
          yield number, {"image": file, "image/id": number, "captions": captions}

  CocoCaptions(data_dir=folder, file_format="array_record").download_and_prepare()


def test_the_recipe_is_right():
  check.config(clip_b16.get_config(), devices=8)


def test_from_tfds_files_to_the_table(tmp_path):
  make_coco(tmp_path / "tfds")
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
