"""Lists what the package and its extras pull in, with licences, and fails for one that is not known to be permissive.

make audit. Where pip-audit is installed, it is asked too, and what it finds fails as well; it wants the network, or its
cache. Only distributions that are installed are seen.
"""

import importlib.metadata
import importlib.util
import pathlib
import re
import subprocess
import sys

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


def main() -> None:
  """Prints the table; ends with status 1 where a licence is not known, or pip-audit finds something."""
  names = needed("qat-jax")
  licences = {name: licence_of(name) for name in names}
  for name, licence in licences.items():
    print(f"{name:<32}{importlib.metadata.version(name):<16}{licence or '?'}")
  unknown = [name for name, licence in licences.items() if not FINE.search(licence)]
  print(f"{len(names)} distributions; not known to be permissive: {', '.join(unknown) or 'none'}")
  audited = 0
  if importlib.util.find_spec("pip_audit"):
    audited = subprocess.run([sys.executable, "-m", "pip_audit", "--progress-spinner=off"], check=False).returncode
  else:
    print("vulnerabilities were not looked for: pip-audit is not installed")
  sys.exit(bool(unknown or audited))


if __name__ == "__main__":
  main()
