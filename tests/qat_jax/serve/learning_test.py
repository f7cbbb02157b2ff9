"""--learn to its end: the program runs on drawn pictures, its gate decides, and what it made is served."""

import time

import pytest

from qat_jax.serve import living
from qat_jax.serve.demo import draw
from qat_jax.serve.learning import LEAST, Learning
from qat_jax.serve.limits import Limits
from qat_jax.serve.places import Place
from qat_jax.serve.searches import Part, Search
from qat_jax.serve.starting import Running

NEVER = ("trained.text=never", "trained.image=never", "gallery_map=never")
SHORT = (*NEVER, *(f"{part}.{kind}=0" for part in ("captions", "levelled") for kind in ("text", "image")))


@pytest.fixture
def learn(tmp_path, monkeypatch):
  """Serves drawn toys with --learn until that has ended, by a program that is told more; returns what is served."""
  monkeypatch.setattr(living.Living, "_warm_for", lambda self, capacity, batches: self._warm.add((capacity, 1)))
  monkeypatch.setattr(living.Living, "_compile_next", lambda self: None)
  command, started = Learning.command, []

  def served(toys, more=SHORT, learn=True):
    words = [f"--config.{word}" for word in more]
    monkeypatch.setattr(Learning, "command", lambda self, labelled: [*command(self, labelled), *words])
    place = Place(str(tmp_path / "pictures" if learn is None else draw(tmp_path / "pictures", toys)), learn=bool(learn))
    started.append(running := Running(place, Limits(), lambda service: None))
    running.start(lambda line: None)
    while learn and running.learning.state in ("waiting", "running"):
      time.sleep(0.1)
    return running

  yield served
  for running in started:
    running.stop()


@pytest.mark.long
def test_what_is_learnt_is_served_at_once_and_after_the_next_start(learn):
  running = learn(LEAST // 3 + 7)  # three pictures of each
  told = running.about()["learning"]
  assert told["state"] == "done", told["said"]
  assert told["said"] and all(" serves" in line for line in told["said"])
  heads = running.service.about["adapter"]["heads"]
  job = Search((Part(position=0),), 5, "both")
  (found,) = running.service.search([job])
  assert heads.keys() == {"text", "image"} and len(found.adapted.ids) == 5
  running.stop()
  again = learn(0, learn=None)
  assert again.service.about["adapter"] == running.service.about["adapter"]
  (later,) = again.service.search([job])
  assert later.adapted.scores.tobytes() == found.adapted.scores.tobytes()


@pytest.mark.parametrize(
  ("toys", "more", "state", "said"),
  [(3, (), "not begun", "6 pictures are too few to learn from"), (40, ("no_such=1",), "failed", "no_such")],
)
def test_what_cannot_be_learnt_is_told_and_plain_search_goes_on(learn, toys, more, state, said):
  running = learn(toys, more)
  told = running.about()["learning"]
  assert told["state"] == state and said in told["said"][0]
  assert running.service.about["adapter"] is None
