"""What breaks while the service runs: one clear answer for it, and the rest works."""

import concurrent.futures
import dataclasses
import errno
import shutil

import numpy as np
import pytest
from starlette.testclient import TestClient

from qat_jax.features.writer import FeatureWriter
from qat_jax.serve import opening, service
from qat_jax.serve.limits import Limits
from qat_jax.serve.web.app import create
from qat_jax.serve.web.state import State


@pytest.fixture
def copied(shop, settings, tmp_path):
  """Settings of a copy of the shop, which may be broken."""
  for name in ("gallery", "pictures", "adapter"):
    shutil.copytree(shop / name, tmp_path / name)
  places = {"gallery": tmp_path / "gallery", "images": tmp_path / "pictures", "adapter": tmp_path / "adapter"}
  return dataclasses.replace(settings, **{name: str(path) for name, path in places.items()})


@pytest.fixture
def client(copied, monkeypatch):
  monkeypatch.setattr(service.Service, "warm", lambda self, log=None: None)
  reopen = lambda: opening.open_service(copied, Limits())
  state = State(Limits(seconds=120), reopen)  # what is not warmed compiles meanwhile
  state.service = reopen()
  with TestClient(create(state, "secret"), "http://localhost", headers={"X-API-Key": "secret"}) as client:
    yield client


def found(client, text="a red box"):
  answer = client.post("/v1/search", json={"query": text, "k": 3})
  assert answer.status_code == 200, answer.text
  return [entry["id"] for entry in answer.json()["results"]["adapted"]]


def test_reloads_under_load_lose_no_request(client):
  wanted, reloads = found(client), []
  with concurrent.futures.ThreadPoolExecutor(6) as pool:
    reloading = pool.submit(lambda: [client.post("/v1/admin/reload").status_code for _ in range(2)])
    answers = []
    while not reloading.done():
      answers += list(pool.map(lambda _: found(client), range(8)))
    reloads = reloading.result()
  assert reloads == [200, 200] and len(answers) >= 8
  assert all(answer == wanted for answer in answers)


@pytest.mark.parametrize("damage", ["changed", "cut", "gone"])
def test_a_damaged_shard_is_named_and_what_is_served_goes_on(client, copied, damage):
  wanted = found(client)
  path = next(opening.Path(copied.gallery).glob("img_emb/*.npy"))
  if damage == "changed":
    rows_ND = np.load(path)
    rows_ND[3] = rows_ND[4]
    np.save(path, rows_ND)
  elif damage == "cut":
    path.write_bytes(path.read_bytes()[:-100])
  else:
    path.unlink()
  answer = client.post("/v1/admin/reload")
  assert (answer.status_code, answer.json()["error"]["code"]) == (409, "not_reloaded")
  said = answer.json()["error"]["message"]
  assert "what is served has not changed" in said and "img_emb" in said and "\n" not in said
  assert found(client) == wanted


def test_a_full_disk_is_said_and_what_is_served_goes_on(client, copied, monkeypatch):
  wanted = found(client)
  shutil.rmtree(opening.Path(copied.adapter) / "served")

  def full(*arguments, **more):
    raise OSError(errno.ENOSPC, "No space left on device", "served")

  monkeypatch.setattr(FeatureWriter, "write", full)
  answer = client.post("/v1/admin/reload")
  assert answer.status_code == 409 and "No space left" in answer.json()["error"]["message"]
  assert found(client) == wanted


def test_a_removed_picture_is_not_found_and_the_others_are(client, copied):
  (opening.Path(copied.images) / "0.png").unlink()
  answer = client.get("/v1/items/shop/0/thumbnail")
  assert (answer.status_code, answer.json()["error"]["code"]) == (404, "no_picture")
  assert client.get("/v1/items/shop/0").json()["picture"] is False
  assert client.get("/v1/items/shop/2/thumbnail").status_code == 200
  assert len(client.post("/v1/search", json={"query": {"item": "shop/0"}, "k": 3}).json()["results"]["adapted"]) == 3
