"""The examples in public docstrings are run, and give what they say."""

import doctest
import importlib
import pkgutil

import pytest

import qat_jax

HAVE_EXAMPLES = (
  "qat_jax",
  "qat_jax.adaptation.fold",
  "qat_jax.adaptation.score",
  "qat_jax.features.store.FeatureStore",
  "qat_jax.features.store.write_features",
)


def found():
  """Returns the examples of every module of the library, by name."""
  finder = doctest.DocTestFinder(exclude_empty=True)
  names = [module.name for module in pkgutil.walk_packages(qat_jax.__path__, "qat_jax.")]
  modules = [importlib.import_module(name) for name in names]
  return {test.name: test for module in [qat_jax, *modules] for test in finder.find(module) if test.examples}


EXAMPLES = found()


def test_the_public_verbs_have_examples():
  assert set(HAVE_EXAMPLES) <= set(EXAMPLES)
  assert {"rank", "rerank", "score", "fold", "plain"} <= set(
    qat_jax.__doc__.replace("(", " ").replace(".", " ").split()
  )


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_gives_what_it_says(name, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  said = []
  result = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(EXAMPLES[name], out=said.append)
  assert not result.failed, "".join(said)
