"""A client of an application in this process, and what tests read off its answers."""

import io

from PIL import Image
from starlette.testclient import TestClient

from qat_jax.serve.limits import Limits
from qat_jax.serve.web.app import create
from qat_jax.serve.web.state import State

HOSTS = frozenset({"localhost"})


def client_of(service, limits=None, key=None, reopen=None, hosts=HOSTS, origins=()):
  state = State(limits or Limits(seconds=120), reopen)  # what is not warmed compiles meanwhile
  state.service = service
  client = TestClient(create(state, key, hosts, origins), "http://localhost", raise_server_exceptions=False)
  client.state = state
  return client


def png(colour, size=(40, 40)):
  buffer = io.BytesIO()
  Image.new("RGB", size, colour).save(buffer, "PNG")
  return buffer.getvalue()


def ids(answer, side="adapted"):
  assert answer.status_code == 200, answer.text
  return [entry["id"] for entry in answer.json()["results"][side]]


def code(answer):
  return answer.status_code, answer.json()["error"]["code"]
