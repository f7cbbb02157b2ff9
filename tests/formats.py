"""Writes a folder of each format of ours, tiny: python -m tests.formats FOLDER. What is in tests/data/formats stays.

After a format's number has risen, run it on a new folder and add what has the new number to tests/data/formats.
"""

import os
import pathlib
import sys

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np

from eval import measure
from eval.report.results import Result
from qat_jax.adapter import Adapter
from qat_jax.features import mining, splitting, writer
from qat_jax.features.store import FeatureStore, write_features
from qat_jax.fit.candidates import write_candidate
from qat_jax.models import checkpoints, forms
from qat_jax.models.head import Head
from qat_jax.search.index import ExactIndex
from qat_jax.serve import batch
from qat_jax.sharing import share
from qat_jax.types import SemiPositives
from tests import vectors
from train import plan

COLUMNS = {"id": list("abcdefghijkl"), "instance": list("mmnnooppqqrr"), "caption": ["a mug"] * 12}


def adapter(form: str = "query_only", **settings: int) -> Adapter:
  """Returns an untrained adapter for text queries."""
  variables = forms.initialise(forms.FORMS[form](4, **settings), jax.random.key(0))
  return Adapter(4, {"text": Head(form, settings, variables)}, {"encoder": "toy"})


def write(folder: pathlib.Path) -> None:
  """Writes one of each into a folder; the number of its format ends a name."""
  feature_ND = vectors.features(12, 4)
  write_features(folder / "features-1", {"img": feature_ND, "text": -feature_ND}, COLUMNS, {"encoder": "toy"}, 7)
  write_features(folder / "eight-bits-1", {"img": feature_ND}, COLUMNS, None, 7).write_eight_bits()
  begun = writer.FeatureWriter(folder / "features-begun-1", {"rows": 12}, 2)
  begun.write(0, {"img": feature_ND[:7]}, {name: values[:7] for name, values in COLUMNS.items()})
  splitting.split(folder / "features-1", folder / "split-1", val=0.3, test=0.3)
  adapter(hidden=4).save(folder / "adapter-2")
  adapter("static").prepare(FeatureStore.open(folder / "features-1"), "text", folder=folder / "gallery-1")
  share.export(folder / "adapter-2", folder / "exported-1")
  (folder / f"candidate-{plan.FORMAT}").mkdir()
  write_candidate(folder / f"candidate-{plan.FORMAT}", adapter(hidden=4), np.array([0.5, 1.0]))
  assert not plan.claimed(folder / "claimed", {"format": plan.FORMAT, "settings": {}})
  os.replace(folder / "claimed" / plan.MADE_FROM, folder / f"candidate-{plan.FORMAT}" / plan.MADE_FROM)
  (folder / "claimed").rmdir()
  kept = checkpoints.Checkpoints(folder / "checkpoints-1")
  kept.save(3, {"x": jnp.arange(3.0)}, {"step": 3})
  kept.close()
  mining.save(
    SemiPositives(np.array([[1], [0]], np.int32), np.ones((2, 1), np.float32)), folder / "semi-1.npz", {"format": 1}
  )
  ExactIndex.build(feature_ND).save(folder / "index-1")
  precision_Q = np.array([0.5, 1.0])
  result = Result("text", "plain", precision_Q, precision_Q, ids_QK=np.zeros((2, 1), np.int32), hit10_Q=precision_Q)
  measure.write_results(folder / f"results-{measure.FORMAT}.npz", {"format": measure.FORMAT}, [result])
  (folder / f"ranked-{batch.FORMAT}.parts").mkdir()
  batch.write_record(folder / f"ranked-{batch.FORMAT}.parts" / "plan.json", {"format": batch.FORMAT, "k": 3})


if __name__ == "__main__":
  write(pathlib.Path(sys.argv[1]))
