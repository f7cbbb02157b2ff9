"""A small gallery of coloured pictures, encoded by the demo's CLIP, an adapter of two heads, and a service of both."""

import json

import numpy as np
import pytest
from PIL import Image

import qat_jax
from qat_jax.serve import opening, service
from qat_jax.serve.limits import Limits
from qat_jax.serve.opening import Settings
from qat_jax.serve.web.app import create
from qat_jax.serve.web.server import in_thread
from qat_jax.serve.web.state import State
from tests.heads import moved
from tests.processes import free_port

COLOURS = {"red": (200, 30, 30), "green": (30, 170, 40), "blue": (40, 60, 210)}
ITEMS = 36
ASPECTS = {
  "colour": [f"a {colour} box" for colour in ("red", "green", "blue", "yellow", "white")],
  "shape": ["a round thing", "a square thing", "a long thing"],
}


@pytest.fixture(scope="session")
def encoder():
  return qat_jax.load_encoder("toy_clip", batch_size=4)


@pytest.fixture(scope="session")
def shop(tmp_path_factory, encoder):
  """A folder with an adapter, a gallery and its pictures."""
  folder = tmp_path_factory.mktemp("shop")
  (folder / "pictures/more").mkdir(parents=True)
  rng, names, pictures = np.random.default_rng(0), list(COLOURS), []
  columns = {name: [] for name in ("id", "file", "caption", "colour", "price", "number", "sold")}
  for i in range(ITEMS):
    colour = names[i % 3]
    noise = rng.integers(-25, 25, (40, 48, 3))
    pictures.append(Image.fromarray(np.clip(np.array(COLOURS[colour]) + noise, 0, 255).astype(np.uint8)))
    file = f"{'more/' if i % 2 else ''}{i}.png"
    pictures[-1].save(folder / "pictures" / file)
    row = (f"shop/{i}", file, f"a {colour} box", colour, None if i == 5 else i / 2, (1 << 60) + i, i % 2 == 0)
    for column, value in zip(columns.values(), row, strict=True):
      column.append(value)
  features_ND = encoder.images(pictures)
  about = {"encoder": "toy_clip", "revision": encoder.revision, "space": "frozen"}
  qat_jax.write_features(folder / "gallery", {"img": features_ND}, columns, about)
  text = moved("adaptive", encoder.width, {"hidden": 16, "rank": 4}, 0.05, rng)
  image = moved("static", encoder.width, {"maps_gallery": True}, 0.05, rng)
  qat_jax.Adapter(encoder.width, {"text": text, "image": image}).save(folder / "adapter")
  (folder / "adapter/aspects.json").write_text(json.dumps(ASPECTS))
  return folder


@pytest.fixture(scope="session")
def settings(shop):
  return Settings(str(shop / "adapter"), str(shop / "gallery"), str(shop / "pictures"))


@pytest.fixture(scope="session")
def open_shop(settings):
  """Opens the shop without compiling ahead: that has a test of its own."""

  def opened(**changes):
    patch = pytest.MonkeyPatch()
    patch.setattr(service.Service, "warm", lambda self, log=None: None)
    try:
      return opening.open_service(opening.dataclasses.replace(settings, **changes), Limits())
    finally:
      patch.undo()

  return opened


@pytest.fixture(scope="session")
def served(open_shop):
  return open_shop()


@pytest.fixture(scope="session")
def address(served):
  """The address of a server in this process."""
  port, state = free_port(), State(Limits(seconds=120))
  state.service = served
  app = create(state, None, frozenset({"127.0.0.1"}))
  with in_thread(app, port):
    yield f"http://127.0.0.1:{port}/"
