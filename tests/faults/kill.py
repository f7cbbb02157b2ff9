"""The campaign of kills: every stage is ended at random moments, and its command run again.

After SIGKILL no file has its final name without its final content; after the restart all is bit for bit what an
undisturbed run makes. SIGTERM and Ctrl-C end a program within 5 s, in one line that says how to go on.
"""

import random
import shutil
import signal

from qat_jax.runs import AGAIN, STOPS
from tests.faults.bench import Bench, Outcome, compared, half_files
from tests.faults.jobs import STAGES, made
from tests.faults.victims import Ended, Fault

WAYS = ("kill at a file", "kill at a time", "SIGTERM", "kill at a file", "kill twice", "Ctrl-C")
SOON = 5.0  # seconds in which a signal ends a program


def case(bench: Bench, number: int, rng: random.Random) -> Outcome:
  """Ends a stage once or twice, then runs it to its end."""
  name, way = list(STAGES)[number % len(STAGES)], WAYS[number // len(STAGES) % len(WAYS)]
  stage, reference = STAGES[name], bench.reference(name)
  folder, row = bench.folder(stage), f"{name}: {'SIGKILL' if 'kill' in way else way}"
  sent = {"SIGTERM": signal.SIGTERM, "Ctrl-C": signal.SIGINT}.get(way, signal.SIGKILL)
  happened = "not reached"
  for _ in range(2 if way == "kill twice" else 1):
    if way in ("kill at a file", "kill twice"):
      fault = Fault(event=rng.randint(1, max(reference.events, 1)))
    else:
      fault = Fault(after=rng.uniform(0.02, max(reference.seconds, 0.05)), sent=sent)
    ended = bench.run(stage.job, folder, fault)
    if wrong := ended.unexplained or _badly_ended(ended, sent):
      return Outcome(row, "wrong", f"{name}, {fault}: {wrong}")
    if ended.status:
      happened = "gone on with"
    if wrong := half_files(made(folder, stage), reference.made):
      return Outcome(row, "wrong", f"{name}, {fault}: {wrong}")
  ended = bench.run(stage.job, folder)
  left = [path.name for path in folder.rglob("*.tmp")]
  wrong = f"the restart: status {ended.status}, {ended.said[-1500:]}" if ended.status else ""
  wrong = wrong or compared(made(folder, stage), reference.made) or (f"left behind: {left}" if left else "")
  shutil.rmtree(folder)
  return Outcome(row, "wrong" if wrong else happened, wrong and f"{name}, {fault}: {wrong}")


def _badly_ended(ended: Ended, sent: signal.Signals) -> str:
  if ended.status == 0:
    return ""
  if sent == signal.SIGKILL:
    return "" if ended.status == -signal.SIGKILL else f"status {ended.status}: {ended.said[-500:]}"
  if ended.late > SOON:
    return f"it took {ended.late:.1f} s to end after {sent.name}"
  last = ended.lines[-1] if ended.lines else ""
  wanted = f"{STOPS[sent]}; {AGAIN}"
  before = ended.status == -sent and not ended.lines  # while the program began
  return "" if before or (ended.status == 128 + sent and last == wanted) else f"status {ended.status}, said {last!r}"
