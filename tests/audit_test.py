"""What `make audit` makes of advisories, which are read from a folder."""

import importlib.util
import json
import pathlib

import pytest

spec = importlib.util.spec_from_file_location("audit", pathlib.Path(__file__).parents[1] / ".ci/audit.py")
audit = importlib.util.module_from_spec(spec)
spec.loader.exec_module(audit)


def write(folder, *events, versions=(), **more):
  affected = {"package": {"ecosystem": "PyPI", "name": "Some_Package"}, "versions": list(versions)}
  affected["ranges"] = [{"type": "ECOSYSTEM", "events": list(events)}, {"type": "GIT", "events": [{"introduced": "0"}]}]
  (folder / "one.json").write_text(
    json.dumps({"id": "OSV-1", "summary": "it runs files", "affected": [affected], **more})
  )


@pytest.mark.parametrize(
  ("version", "hit"), [("0.9", True), ("1.2", False), ("1.10", False), ("2.0", True), ("2.1.1", False), ("3.0", True)]
)
def test_versions_in_a_range_or_in_the_list_are_named(tmp_path, version, hit):
  events = [{"introduced": "2.0"}, {"introduced": "0"}, {"fixed": "1.2"}, {"last_affected": "2.1"}]
  write(tmp_path, *events, versions=["3.0"])
  found = list(audit.known(tmp_path, {"some-package": version, "other": "1"}))
  assert found == [f"Some_Package {version}: OSV-1 it runs files"] * hit


def test_what_was_withdrawn_or_is_not_installed_is_left_out(tmp_path):
  write(tmp_path, {"introduced": "0"})
  assert list(audit.known(tmp_path, {"other": "1"})) == []
  write(tmp_path, {"introduced": "0"}, withdrawn="2026-01-01T00:00:00Z")
  assert list(audit.known(tmp_path, {"some-package": "1"})) == []


def test_a_folder_without_advisories_is_an_error(tmp_path):
  with pytest.raises(ValueError, match="no advisories in"):
    list(audit.known(tmp_path, {}))
  (tmp_path / "a.json").write_text('{"affected": [{}]}')
  with pytest.raises(ValueError, match="a.json is no advisory in OSV's format"):
    list(audit.known(tmp_path, {}))
