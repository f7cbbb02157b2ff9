"""The OpenAPI description against the server: requests that Schemathesis makes of it, right and wrong ones."""

import importlib.util
import re
import subprocess
import sys

import pytest

from tests.qat_jax.serve.web.clients import client_of

CASES = 40  # of each route and kind of request, at most
SETTINGS = """
[checks]
positive_data_acceptance.enabled = false  # of text, image, item and vector exactly one: the words say so, not the types
negative_data_rejection.expected-statuses = ["4xx"]
"""


def test_every_route_says_how_its_errors_look_and_what_is_no_json(served):
  about = client_of(served).get("/openapi.json").json()
  error = {"$ref": "#/components/schemas/Error"}
  for methods in about["paths"].values():
    for route in methods.values():
      said = [answer for status, answer in route["responses"].items() if status != "200"]
      assert said and all(answer["content"]["application/json"]["schema"] == error for answer in said)
  assert list(about["paths"]["/metrics"]["get"]["responses"]["200"]["content"]) == ["text/plain"]
  assert "HTTPValidationError" not in about["components"]["schemas"]


def test_requests_made_of_the_description_are_answered_as_it_says(address, tmp_path):
  if importlib.util.find_spec("schemathesis") is None:
    pytest.skip("schemathesis is not there: make test-service")
  (tmp_path / "schemathesis.toml").write_text(SETTINGS)
  command = [sys.executable, "-m", "schemathesis.cli", "run", f"{address}openapi.json", f"--max-examples={CASES}"]
  command += ["--seed=0", "--phases=examples,coverage,fuzzing", "--continue-on-failure", "--no-color"]
  run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
  assert run.returncode == 0, run.stdout + run.stderr
  cases = re.search(r"(\d[\d,]*) generated", run.stdout)
  assert cases and int(cases[1].replace(",", "")) > 500, run.stdout
