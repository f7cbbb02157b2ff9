"""Lists what the package and its extras pull in, with licences, and fails for one that is not known to be permissive.

make audit. Known vulnerabilities fail as well: those of a folder of advisories, JSON files in the format of OSV, as its
download for PyPI has them (make audit ADVISORIES=folder; no network is needed), or, without one, those that pip-audit
knows where it is installed and has the network. Only distributions that are installed are seen.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from packaging.version import Version

# weak copyleft, of files that nobody changes, is let through; the strong is not
FINE = re.compile(
  r"apache|\bmit\b|\bbsd\b|0bsd|isc\b|psf|python software|mpl|mozilla|zlib|unlicense|hpnd|public domain|cc0|zpl|lgpl|"
  r"lesser general|proprietary: nvidia",
  re.IGNORECASE,
)
# what says nothing a program can read, looked up by hand in the distribution's own LICENSE file
KNOWN: dict[str, str] = {}


def name_of(requirement: str) -> str:
  """Returns the normal name of a distribution."""
  return re.sub(r"[-_.]+", "-", re.match(r"[A-Za-z0-9._-]+", requirement)[0]).lower()


def needed(root: str) -> list[str]:
  """Returns the distributions that one and its extras need, and those need in turn, that are installed."""
  found: dict[str, None] = {}
  waiting = [(root, True)]
  while waiting:
    name, extras = waiting.pop()
    try:
      requires = importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
      continue
    if name in found:
      continue
    found[name] = None
    waiting += [(name_of(line), False) for line in requires if extras or "extra ==" not in line]
  return sorted(found.keys() - {root})


def licence_of(name: str) -> str:
  """Returns what a distribution says its licence is, on one line."""
  about = importlib.metadata.metadata(name)
  classifiers = [line.split(" :: ")[-1] for line in about.get_all("Classifier", []) if line.startswith("License ::")]
  said = about.get("License-Expression") or ", ".join(classifiers) or about.get("License") or ""
  if not said and (files := about.get_all("License-File")):
    paths = [file.locate() for file in importlib.metadata.files(name) or [] if file.name == pathlib.Path(files[0]).name]
    said = pathlib.Path(paths[0]).read_text(errors="replace")[:200] if paths else ""
  return KNOWN.get(name) or " ".join(said.split())[:100]


def known(folder: pathlib.Path, installed: Mapping[str, str]) -> Iterator[str]:
  """Yields the vulnerabilities of installed distributions (name → version) that a folder of advisories has.

  Raises ValueError for a folder without advisories, and for a file that is none.
  """
  paths = sorted(folder.rglob("*.json"))
  if not paths:
    raise ValueError(f"no advisories in {folder}; give a folder of OSV's JSON files")
  for path in paths:
    try:
      about = json.loads(path.read_text())
      found = [
        f"{one['package']['name']} {version}: {about['id']} {about.get('summary', '')}".strip()
        for one in about.get("affected", ())
        if one["package"]["ecosystem"] == "PyPI" and (version := installed.get(name_of(one["package"]["name"])))
        if not about.get("withdrawn") and is_affected(one, version)
      ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
      raise ValueError(f"{path} is no advisory in OSV's format ({error!r})") from error
    yield from found


def is_affected(affected: Mapping[str, Any], version: str) -> bool:
  """Says whether a version is among those that an advisory lists, or in one of its ranges."""
  if version in affected.get("versions", ()):
    return True
  inside = lambda name, event: Version(event[name]) <= Version(version) if event[name] != "0" else True
  for span in (span for span in affected.get("ranges", ()) if span["type"] == "ECOSYSTEM"):
    state = False
    for event in sorted(span["events"], key=lambda event: Version(next(iter(event.values())))):
      if "introduced" in event and inside("introduced", event):
        state = True
      if "fixed" in event and inside("fixed", event):
        state = False
      if "last_affected" in event and Version(version) > Version(event["last_affected"]):
        state = False
    if state:
      return True
  return False


def main() -> None:
  """Prints the table; ends with status 1 where a licence is not known, or something vulnerable is installed."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--advisories", type=pathlib.Path, help="a folder of OSV's JSON files")
  flags = parser.parse_args()
  names = needed("qat-jax")
  licences = {name: licence_of(name) for name in names}
  for name, licence in licences.items():
    print(f"{name:<32}{importlib.metadata.version(name):<16}{licence or '?'}")
  unknown = [name for name, licence in licences.items() if not FINE.search(licence)]
  print(f"{len(names)} distributions; not known to be permissive: {', '.join(unknown) or 'none'}")
  audited: object = 0
  if flags.advisories:
    audited = list(known(flags.advisories, {name: importlib.metadata.version(name) for name in names}))
    print("\n".join(audited) or f"none of them is in the advisories of {flags.advisories}")
  elif importlib.util.find_spec("pip_audit"):
    audited = subprocess.run([sys.executable, "-m", "pip_audit", "--progress-spinner=off"], check=False).returncode
  else:
    print("vulnerabilities were not looked for: no ADVISORIES given, and pip-audit is not installed")
  sys.exit(bool(unknown or audited))


if __name__ == "__main__":
  main()
