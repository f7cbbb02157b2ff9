import http.server
import threading

import pytest

from eval.speed import service


@pytest.fixture
def port():
  """A server that answers every second request, and refuses the others."""

  class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
      body = self.rfile.read(int(self.headers["Content-Length"]))
      self.send_response(200 if body == b"1" else 503)
      self.send_header("Content-Length", "0")
      self.end_headers()

    def log_message(self, *arguments):
      pass

  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
  threading.Thread(target=server.serve_forever).start()
  yield server.server_port
  server.shutdown()
  server.server_close()


@pytest.mark.parametrize("rate", [0.0, 100.0])
def test_clients_count_what_is_answered_and_what_is_refused(port, rate):
  found = service.under_load(port, [b"1", b"2"], clients=3, seconds=0.5, rate=rate)
  assert set(found["statuses"]) == {"200", "503"} and 0 < found["p50"] <= found["p99"]
  assert found["a_second"] * 0.4 < found["statuses"]["200"]
  assert rate == 0 or sum(found["statuses"].values()) < 100


def test_bodies_are_searches_by_vector(tmp_path):
  lines = service.write_bodies(tmp_path / "bodies", "plain", 4, 3).read_text().splitlines()
  assert len(lines) == 3 and '"mode": "plain"' in lines[0]
