import pkgutil
import subprocess
import sys

import eval as package


def test_all_commands_can_be_imported_into_one_process():
  """A flag defined by two of them would stop whoever imports the second."""
  names = [module.name for module in pkgutil.walk_packages(package.__path__, "eval.")]
  assert {"eval.speed.search", "eval.speed.shortlists", "eval.speed.encoders", "eval.speed.cluster"} <= set(names)
  done = subprocess.run([sys.executable, "-c", f"import {', '.join(names)}"], capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
