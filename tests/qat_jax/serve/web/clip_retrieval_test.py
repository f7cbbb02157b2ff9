"""The client that clip-retrieval publishes, against our server; of its package only that module is loaded."""

import importlib.metadata
import importlib.util

import pytest

pytest.importorskip("requests")


@pytest.fixture(scope="module")
def client_module():
  try:
    files = importlib.metadata.files("clip-retrieval") or []
  except importlib.metadata.PackageNotFoundError:
    pytest.skip("clip-retrieval is not there: pip install --no-deps clip-retrieval==2.45.0")
  path = next(file for file in files if file.name == "clip_client.py").locate()
  spec = importlib.util.spec_from_file_location("clip_client", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def test_its_client_searches_by_text_picture_and_vector(client_module, address, shop, served):
  client = client_module.ClipClient(f"{address}knn-service", "plain", num_images=5)
  by_text = client.query(text="a red box")
  assert len(by_text) == 5 and {"id", "similarity", "caption", "image"} <= by_text[0].keys()
  assert [row["similarity"] for row in by_text] == sorted((row["similarity"] for row in by_text), reverse=True)
  assert client.query(image=str(shop / "pictures/0.png"))[0]["id"] == 0
  row_D = served.frozen[:][8]
  assert client.query(embedding_input=[float(x) for x in row_D])[0]["id"] == 8
  refused = client.query(image="http://127.0.0.1:1/x.png")
  assert "not fetched" in refused["error"]["message"]
