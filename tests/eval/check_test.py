import pytest

from configs import features
from eval import check


@pytest.mark.parametrize(
  ("key", "value", "message"),
  [
    ("eval.shortlist", 0, "config.eval.shortlist is 0"),
    ("eval.queries", -1, "config.eval.queries is -1; give 0 for all"),
    ("eval.methods", ("plain", "lad"), "config.eval.methods has 'lad'; use some of plain, static"),
    ("eval.methods", ("plain", "plain"), "config.eval.methods names a method twice"),
    ("benchmark.name", "ILIAS", "config.benchmark.name is 'ILIAS'; use one of ilias, inquire"),
    ("benchmark.name", "ilias", "config.benchmark.root is empty; give --config.benchmark.root=FOLDER"),
    ("benchmark.split", "train", "config.benchmark.split is 'train'; use one of test, val"),
  ],
)
def test_a_wrong_value_is_named_with_what_would_do(key, value, message):
  config = features.get_config()
  check.check_config(config)
  config.update_from_flattened_dict({key: value})
  with pytest.raises(ValueError, match=message):
    check.check_config(config)
