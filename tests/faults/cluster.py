"""Kills workers, nodes and the command itself while a cluster extracts, ranks and reranks, and compares to the byte.

python -m tests.faults.cluster --kills 30 [--seed 0]

A Ray cluster of three nodes on this machine; nothing else of Ray may run. For each kill a command begins with nothing,
loses one process (or all those of a node) to SIGKILL at a random moment, and is started again once, if it ended. Then
its files are those of an undisturbed single process, none is half, and none that was whole was written again.
"""

import argparse
import collections
import contextlib
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import time

import numpy as np
import psutil

STAGES, VICTIMS = ("extraction", "ranking", "reranking"), ("worker", "node", "command")
PICTURES, QUERIES, ITEMS = 96, 200, 200_000
SHARDS = {"extraction": 24, "ranking": 200, "reranking": 200}
PATIENCE = 240  # seconds for a command


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--kills", type=int, default=30)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)  # what a command of the campaign does
  parser.add_argument("--root", type=pathlib.Path, help=argparse.SUPPRESS)
  parser.add_argument("--out", type=pathlib.Path, help=argparse.SUPPRESS)
  parser.add_argument("--cluster", help=argparse.SUPPRESS)
  flags = parser.parse_args()
  if flags.stage:
    run(flags.stage, flags.root, flags.out, flags.cluster)
    return
  with tempfile.TemporaryDirectory() as root:
    campaign(pathlib.Path(root), flags.kills, random.Random(flags.seed))


def run(stage: str, root: pathlib.Path, out: pathlib.Path, cluster: str) -> None:
  """Does what `qat-jax extract` and `qat-jax rank` do, with small shards."""
  from qat_jax.datasets.folder import FolderSource
  from qat_jax.encoders import load_encoder
  from qat_jax.features.extraction import extract
  from qat_jax.runs import end_on_signals, explained
  from qat_jax.serve.batch import rerank_files

  end_on_signals()
  with explained():
    if stage == "extraction":
      encoder = load_encoder("toy_clip", 4)
      extract(FolderSource(root / "pictures"), encoder, out, ("img",), 4, 4, progress=False, cluster=cluster)
    else:
      shortlist = root / "shortlist.npy" if stage == "reranking" else None
      inputs = root / "adapter", root / "queries.npy", root / "gallery", out / "rankings.parquet"
      rerank_files(*inputs, shortlist, k=20, block=1, cluster=cluster)


def command(stage: str, root: pathlib.Path, out: pathlib.Path, cluster: str) -> subprocess.Popen:
  words = [f"--stage={stage}", f"--root={root}", f"--out={out}", f"--cluster={cluster}"]
  return subprocess.Popen(
    [sys.executable, "-m", "tests.faults.cluster", *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
  )


def files(out: pathlib.Path) -> dict[str, bytes]:
  """Returns what a stage wrote, without how fast it was, and the checksum of that."""
  found = {path.relative_to(out).as_posix(): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}
  if "meta.json" in found:
    meta = json.loads(found["meta.json"])
    for name in ("speed", "checksum"):
      meta.pop(name, None)
    found["meta.json"] = json.dumps(meta).encode()
  return found


def whole(out: pathlib.Path) -> dict[str, int]:
  """Returns when each shard was written that is whole: an extraction's have a note, a ranking's are renamed."""
  noted = {path.stem.removeprefix("shard_") for path in out.glob("incomplete/shard_*.json")}
  shards = [out / f"img_emb/img_emb_{number}.npy" for number in noted] + list(out.glob("*.parts/block_*.sealed"))
  return times(out, [path.relative_to(out).as_posix() for path in shards])


def times(out: pathlib.Path, names: list[str]) -> dict[str, int]:
  """Returns when files were written, those that are there."""
  found = {}
  for name in names:
    with contextlib.suppress(FileNotFoundError):  # the command has finished meanwhile
      found[name] = (out / name).stat().st_mtime_ns
  return found


def workers() -> list[psutil.Process]:
  found = []
  for process in psutil.process_iter(["cmdline"]):
    words = process.info["cmdline"] or [""]
    if words[0].startswith("ray::Actor"):
      found.append(process)
  return found


def campaign(root: pathlib.Path, kills: int, chance: random.Random) -> None:
  os.environ["RAY_USAGE_STATS_ENABLED"], os.environ["JAX_PLATFORMS"] = "0", "cpu"
  from ray.cluster_utils import Cluster

  from eval.speed.cluster import make_inputs

  make_inputs(root, PICTURES, ITEMS, 64, QUERIES, 4)
  rng = np.random.default_rng(0)
  np.save(root / "shortlist.npy", rng.integers(0, ITEMS, (QUERIES, 20_000)).astype(np.int32))
  wanted = {}
  for stage in STAGES:
    (root / stage).mkdir()
    process = command(stage, root, root / stage, "local")
    _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, said
    wanted[stage] = files(root / stage)
  cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
  nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
  cluster.wait_for_nodes()
  os.environ["RAY_ADDRESS"] = cluster.address
  counts: collections.Counter[tuple[str, str, str]] = collections.Counter()
  try:
    for number in range(kills):
      stage, victim, out = STAGES[number % 3], VICTIMS[number // 3 % 3], root / f"out-{number}"
      out.mkdir()
      process = command(stage, root, out, "auto")
      before, hit = struck(process, victim, out, chance.randrange(SHARDS[stage] // 2), chance, cluster, nodes)
      said = ended(process)
      restarts = int(process.returncode != 0)
      if restarts:
        process = command(stage, root, out, "auto")
        said += ended(process)
      again = [name for name, when in before.items() if times(out, [name]).get(name, when) != when]
      same = process.returncode == 0 and files(out) == wanted[stage]
      for name, count in (("kills", hit), ("restarts", restarts), ("wrong", not same or bool(again))):
        counts[stage, victim, name] += count
      moment = f"after {len(before)} shards" if hit else "too late"
      result = "the same" if same and not again else f"DIFFERENT ({len(again)} written again)"
      print(f"{number:3d} {stage} {victim} {moment}, {restarts} restarts: {result}", flush=True)
      if not same:
        print(said, sorted(set(files(out)) ^ set(wanted[stage])), flush=True)
      if len(nodes) < 2:
        nodes.append(cluster.add_node(num_cpus=1))
        cluster.wait_for_nodes()
      shutil.rmtree(out)
  finally:
    cluster.shutdown()
  print("\n| stage | killed | kills | restarts of the command | other bytes, half files, shards written twice |")
  print("|---|---|---|---|---|")
  for stage in STAGES:
    for victim in VICTIMS:
      own = [counts[stage, victim, name] for name in ("kills", "restarts", "wrong")]
      print(f"| {stage} | {victim} | {' | '.join(map(str, own))} |")
  if any(count for (*_, name), count in counts.items() if name == "wrong"):
    raise SystemExit(1)


def struck(
  process: subprocess.Popen, victim: str, out: pathlib.Path, first: int, chance: random.Random, cluster, nodes: list
) -> tuple[dict[str, int], bool]:
  """Kills once `first` shards are whole; returns which were, and whether the command was still at work."""
  began = time.monotonic()
  while process.poll() is None and time.monotonic() - began < PATIENCE:
    before = whole(out)
    if len(before) >= max(first, 1):
      there = workers() if victim == "worker" else []
      time.sleep(chance.random() * 0.1)
      before = whole(out)
      if victim == "command":
        process.kill()
      elif victim == "node":
        cluster.remove_node(nodes.pop(chance.randrange(len(nodes))), allow_graceful=False)
      for worker in chance.sample(there, min(1, len(there))):
        with contextlib.suppress(psutil.NoSuchProcess):
          worker.kill()
      return before, bool(before)  # a finished ranking has no blocks left
    time.sleep(0.02)
  return {}, False


def ended(process: subprocess.Popen) -> str:
  """Waits for a command, and returns what it said."""
  try:
    return process.communicate(timeout=PATIENCE)[1]
  except subprocess.TimeoutExpired:
    process.kill()
    return f"it hung\n{process.communicate()[1]}"


if __name__ == "__main__":
  main()
