import pytest

from configs import demo, features
from train import check


@pytest.fixture
def config():
  config = features.get_config()
  config.data.root = "somewhere"
  return config


def test_the_recipes_are_right(config):
  check.config(config, devices=8)
  check.config(demo.get_config(), devices=8)


@pytest.mark.parametrize(
  ("key", "value", "message"),
  [
    ("train.batch_size", 100, r"train.batch_size is 100, not a multiple of 8 devices; use 96 or 104"),
    ("train.batch_size", 4, r"not a multiple of 8 devices; use 8"),
    ("train.steps", 0, "config.train.steps is 0"),
    ("epochs.text", -1, "config.epochs.text is -1; give 0 for no limit"),
    ("form", "adaptve", "config.form is 'adaptve'; use one of static, query_only, adaptive"),
    ("noise.kind", "loud", "config.noise.kind is 'loud'"),
    ("data.root", "", "neither root nor source"),
    ("memory.text", 1, "config.memory.text is 1; give 0 for none"),
    ("memory.image", -5, "config.memory.image is -5; give 0 for none"),
    ("captions.width", 1, "config.captions.width is 1; give 0 for none, or at least 2$"),
  ],
)
def test_a_wrong_value_is_named_with_what_would_do(config, key, value, message):
  config.update_from_flattened_dict({key: value})
  with pytest.raises(ValueError, match=message):
    check.config(config, devices=8)


def test_items_with_captions_get_no_wider(config):
  config.captions.width = 512
  check.captions_width(config, 256)
  with pytest.raises(ValueError, match="config.captions.width is 512, more than items with captions have, 510"):
    check.captions_width(config, 255)


def test_an_unknown_setting_of_a_form_is_named(config):
  config.forms.adaptive.ranks = 3
  with pytest.raises(ValueError, match=r"config.forms.adaptive: .*ranks"):
    check.config(config, devices=1)
