"""A stand-in of the Hugging Face hub on the loopback: one model repository, with what its own client asks of it."""

import base64
import contextlib
import hashlib
import http.server
import json
import threading
import urllib.parse


class Hub(http.server.BaseHTTPRequestHandler):
  """Keeps the files of `owner/name` in `server.files`, and every commit in `server.commits`."""

  def log_message(self, *_):
    pass

  def answer(self, content=b"", status=200, **headers):
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    self.send_response(status)
    for name, value in headers.items():
      self.send_header(name.replace("_", "-"), value)
    self.send_header("Content-Length", str(len(body)))
    self.end_headers()
    if self.command != "HEAD":
      self.wfile.write(body)

  def sha(self):
    return hashlib.sha1(str(len(self.server.commits)).encode()).hexdigest()

  def do_POST(self):
    content = self.rfile.read(int(self.headers["Content-Length"]))
    if self.headers.get("Authorization") != "Bearer secret":
      return self.answer({"error": "Invalid credentials"}, 401)
    if self.path == "/api/repos/create":
      return self.answer({"url": f"{self.server.address}/owner/name"})
    if self.path == "/api/validate-yaml":  # of the card; asked without a token's rights
      return self.answer({"errors": [], "warnings": []})
    if "/preupload/" in self.path:
      files = json.loads(content)["files"]
      return self.answer(
        {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
      )
    if "/commit/" in self.path:
      for line in map(json.loads, content.splitlines()):
        if line["key"] == "file":
          self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        elif line["key"] == "deletedFile":
          del self.server.files[line["value"]["path"]]
        else:
          self.server.commits.append(line["value"]["summary"])
      page = f"{self.server.address}/owner/name/commit/{self.sha()}"
      return self.answer({"success": True, "commitOid": self.sha(), "commitUrl": page})
    return self.answer({"error": self.path}, 404)

  def do_GET(self):
    path = urllib.parse.unquote(self.path.split("?")[0])
    if path.startswith("/api/models/owner/name/tree/"):
      return self.answer(
        [{"type": "file", "path": name, "size": len(data), "oid": "x"} for name, data in self.server.files.items()]
      )
    if path.startswith("/api/models/owner/name"):
      about = {"id": "owner/name", "sha": self.sha(), "private": False, "tags": [], "downloads": 0, "likes": 0}
      return self.answer(about | {"siblings": [{"rfilename": name} for name in self.server.files]})
    if path.startswith("/owner/name/resolve/"):
      data = self.server.files.get(path.split("/", 5)[5])
      if data is None:
        return self.answer(b"", 404, X_Error_Code="EntryNotFound")
      return self.answer(data, ETag=f'"{hashlib.sha1(data).hexdigest()}"', X_Repo_Commit=self.sha())
    return self.answer({"error": path}, 404)

  do_HEAD = do_GET


@contextlib.contextmanager
def serving():
  """Gives the stand-in: its address, the files that it holds, and the summaries of its commits."""
  with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
    server.files, server.commits = {}, []
    server.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
