import numpy as np

from eval.benchmarks.ilias import Ilias
from eval.speed import scale


def test_the_look_alike_opens_as_an_ilias_and_gives_each_query_its_objects_positives(tmp_path):
  positives = scale.write_ilias(tmp_path, np.random.default_rng(0))
  benchmark = Ilias.open(tmp_path)
  relevance = benchmark.relevance(benchmark.image_query_ids, ["distractors/0.jpg", *positives])
  assert len(relevance) == scale.IMAGE_QUERIES
  assert sum(map(len, relevance.positives[: scale.IMAGE_QUERIES])) > scale.POSITIVES
  first = benchmark.image_query_ids[0].split("/")[0]
  found = {positives[i - 1].split("/")[0] for i in relevance.positives[0]}
  assert found == {first}


def test_metrics_are_timed():
  assert 0 < scale.metrics_seconds(queries=10, k=50) < 60
