"""What the encoders cost and how exact they are: python -m eval.speed.encoders --torch_python ENVIRONMENT/bin/python.

Without flags the speed of an image tower (B/16 at 224, random weights, batches of 32; else --shape, --dtype, --batch).
--torch_python times PyTorch and ONNX Runtime in turn with it: a Python of a throw-away environment with torch,
transformers, onnx and onnxruntime. --load makes a SigLIP2-L/16-512 of random weights (3.5 GB on disk) and loads it in a
process of its own.
--reference DIR compares small checkpoints with what their vectors.npz say that the reference implementation computes.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import pathlib
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from PIL import Image

from eval import commands
from eval.markdown import markdown
from qat_jax.encoders import families, load_encoder, names, texts
from qat_jax.encoders.settings import Layers, Text, Vision
from qat_jax.encoders.tower import VisionTower, in_parts
from qat_jax.runs import ANEW

BASE = Vision(Layers(768, 12, 12, 3072, "quick_gelu", 1e-5), 16, 14, "class", 512, patch_bias=False, pre_norm=True)
LARGE_TOWER = Vision(
  Layers(1024, 24, 16, 4096, "quick_gelu", 1e-5), 14, 16, "class", 768, patch_bias=False, pre_norm=True
)
SHAPES = {"B/16": BASE, "L/14": LARGE_TOWER}
# Answer every line that they read with the seconds of one batch, and those that the cores spent on it. ONNX Runtime's
# model is what torch exports.
TORCH = """
import sys, time, torch
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection
model = CLIPVisionModelWithProjection(CLIPVisionConfig(patch_size=16, projection_dim=512)).eval()
pixels = torch.randn(int(sys.argv[1]), 3, 224, 224)
def answer(run, about):
  run()
  print(*about, flush=True)
  for _ in sys.stdin:
    began = time.perf_counter(), time.process_time()
    run()
    print(time.perf_counter() - began[0], time.process_time() - began[1], flush=True)
"""
PROGRAMS = {
  "torch": """
with torch.inference_mode():
  answer(lambda: model(pixel_values=pixels), (torch.__version__, torch.get_num_threads()))
""",
  "torch in bfloat16": """
with torch.inference_mode():
  model, pixels = model.to(torch.bfloat16), pixels.to(torch.bfloat16)
  answer(lambda: model(pixel_values=pixels), (torch.__version__, torch.get_num_threads()))
""",
  "onnxruntime": """
import os, tempfile, warnings, onnxruntime
warnings.simplefilter("ignore")
class Features(torch.nn.Module):
  def __init__(self):
    super().__init__()
    self.model = model.requires_grad_(False)
  def forward(self, pixels):
    return self.model(pixel_values=pixels).image_embeds
with tempfile.TemporaryDirectory() as folder:
  path = os.path.join(folder, "clip.onnx")
  torch.onnx.export(Features(), (pixels,), path, input_names=["pixels"], dynamo=False)
  session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
  del model
answer(lambda: session.run(None, {"pixels": pixels.numpy()}), (onnxruntime.__version__, os.cpu_count()))
""",
}
LARGE = {
  "model_type": "siglip",
  "text_config": {
    **{"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": 24},
    **{"max_position_embeddings": 64, "vocab_size": 256000, "model_type": "siglip_text_model"},
  },
  "vision_config": {
    **{"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": 24},
    **{"image_size": 512, "patch_size": 16, "model_type": "siglip_vision_model"},
  },
}


def our_tower(batch: int, vision: Vision = BASE, dtype: str = "float32") -> Callable[[], tuple[float, float]]:
  """Returns a function that encodes a batch of random pixels, and returns its seconds and the cores'; compiled here."""
  side = vision.grid * vision.patch
  pixels = jax.random.normal(jax.random.key(0), (batch, side, side, 3), jnp.float32)
  tower = VisionTower(vision, jnp.dtype(dtype))
  params = jax.jit(tower.init)(jax.random.key(1), pixels[:1])["params"]
  if dtype == "bfloat16":  # as `load_encoder` keeps them
    params = jax.tree.map_with_path(lambda path, x: x.astype(dtype) if path[-1].key == "kernel" else x, params)
  features = jax.jit(lambda params, pixels: in_parts(tower, params, pixels, vision.tokens))
  jax.block_until_ready(features(params, pixels))

  def run() -> tuple[float, float]:
    began = time.perf_counter(), time.process_time()
    jax.block_until_ready(features(params, pixels))
    return time.perf_counter() - began[0], time.process_time() - began[1]

  return run


def speed(torch_python: str, batch: int, rounds: int, shape: str = "B/16", dtype: str = "float32") -> str:
  """Returns images a second of our tower; with a Python that has torch, a table with PyTorch's and ONNX Runtime's."""
  run = our_tower(batch, SHAPES[shape], dtype)
  if not torch_python:
    rate = batch / min(run()[0] for _ in range(rounds))
    return f"{shape} at 224, {dtype}, batch {batch}: {rate:.2f} images a second ({jax.devices()[0].device_kind})"
  with contextlib.ExitStack() as stack:
    others, about = {}, {f"JAX {jax.__version__}": run}
    if dtype != "float32":
      about = {f"JAX {jax.__version__} in {dtype}": run, **{name: our_tower(batch, SHAPES[shape]) for name in about}}
    for name, program in PROGRAMS.items():
      command = [torch_python, "-c", TORCH + program, str(batch)]
      other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
      others[name] = stack.enter_context(other)
      assert other.stdout is not None
      words = other.stdout.readline().split()
      if len(words) != 2:
        raise ValueError(
          f"{torch_python} could not run {name}; install torch, transformers, onnx and onnxruntime there"
        )
      about[f"{name} {words[0]}"] = functools.partial(_answer, other)
    # In turn, so that all meet the same machine; the least disturbed round of each.
    timed = [[measure() for measure in about.values()] for _ in range(rounds)]
    for other in others.values():
      assert other.stdin is not None
      other.stdin.close()
  best = [tuple(map(min, zip(*one, strict=True))) for one in zip(*timed, strict=True)]
  head = [
    f"B/16 at 224, batch {batch}, best of {rounds}",
    "images a second",
    "of the cores' seconds",
    "ours against it",
  ]
  lines = []
  for name, (seconds, cores) in zip(about, best, strict=True):
    ratio = f"{seconds / best[0][0]:.2f}; by the cores {cores / best[0][1]:.2f}"
    lines.append([name, f"{batch / seconds:.2f}", f"{batch / cores:.2f}", ratio])
  return markdown(head, lines)


def _answer(program: subprocess.Popen) -> tuple[float, float]:
  """Returns the seconds of one batch of another program, and the cores'."""
  assert program.stdin is not None and program.stdout is not None
  program.stdin.write("\n")
  program.stdin.flush()
  seconds, cores = map(float, program.stdout.readline().split())
  return seconds, cores


def write_checkpoint(folder: pathlib.Path, config: dict[str, Any]) -> int:
  """Writes a SigLIP of random weights with all that `load_encoder` wants, and returns the bytes of its weights."""
  folder.mkdir(parents=True, exist_ok=True)
  (folder / "config.json").write_text(json.dumps(config))
  (folder / "preprocessor_config.json").write_text(json.dumps({"size": {"height": 512, "width": 512}}))
  (folder / "tokenizer_config.json").write_text(json.dumps({"pad_token": "<pad>"}))
  words = {"type": "WordLevel", "vocab": {"<pad>": 0, "<unk>": 1}, "unk_token": "<unk>"}
  (folder / "tokenizer.json").write_text(json.dumps({"version": "1.0", "added_tokens": [], "model": words}))
  vision, text = families.towers(families.read_encoder_config(folder))
  return _write_random(folder / "model.safetensors", vision, text)


def _write_random(path: pathlib.Path, vision: Vision, text: Text | None) -> int:
  """Writes tensors of one repeated block of random numbers, and returns their bytes."""
  sizes: dict[str, tuple[int, ...]] = {}
  table = names.tensor_names("siglip", vision, text)
  for parameter, wanted in names.parameter_shapes(vision, text).items():
    sizes.update({piece.name: piece.shape for piece in names.pieces(parameter, wanted.shape, table, vision)})
  block = np.random.default_rng(0).normal(0, 0.02, 1 << 20).astype(np.float32)
  safetensors.numpy.save_file({name: np.resize(block, shape) for name, shape in sizes.items()}, path)
  return 4 * sum(map(math.prod, sizes.values()))


def loading(folder: pathlib.Path) -> tuple[float, int]:
  """Returns the seconds that `load_encoder` takes, and the bytes by which this process grew at most."""
  texts.read_tokens(
    folder, families.read_encoder_config(folder).model_type, 64, 1 << 31
  )  # what libraries take is not counted
  jax.block_until_ready(jnp.zeros(1))
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  began = time.perf_counter()
  load_encoder(str(folder))
  return time.perf_counter() - began, 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)


def errors(folder: pathlib.Path, dtype: str) -> dict[str, float]:
  """Returns the largest difference of everything that vectors.npz has, relative to the largest magnitude there."""
  vectors, encoder = np.load(folder / "vectors.npz"), load_encoder(str(folder), 8, dtype=dtype)
  images = [Image.open(path).convert("RGB") for path in sorted((folder.parent / "images").iterdir())]
  relative = lambda got, wanted: float(np.abs(got - wanted).max() / np.abs(wanted).max())
  error = {"images": relative(encoder.images(images), vectors["image_embeds"])}
  if "texts" in vectors:
    error["texts"] = relative(encoder.texts(vectors["texts"].tolist()), vectors["text_embeds"])
  if "other_pixel_values" not in vectors:
    return error
  vision, _ = families.towers(families.read_encoder_config(folder))
  tower = VisionTower(vision, jnp.dtype(dtype))
  pixels = vectors["other_pixel_values"].transpose(0, 2, 3, 1)
  other = jax.jit(tower.apply)({"params": encoder.params["vision"]}, pixels)
  unit = np.asarray(other) / np.linalg.norm(other, axis=1, keepdims=True)
  return {**error, "another size": relative(unit, vectors["other_image_embeds"])}


def error_table(root: pathlib.Path) -> str:
  """Returns the errors of every reference checkpoint in a folder as a Markdown table."""
  columns = ("images", "texts", "another size")
  lines = []
  for path in sorted(root.glob("*/vectors.npz")):
    both = [errors(path.parent, dtype) for dtype in ("float32", "bfloat16")]
    cells = [f"{error[name]:.0e}" if name in error else "–" for error in both for name in columns]
    lines.append([f"`{path.parent.name}`", *cells])
  return markdown(["checkpoint", *(f"{name}, {dtype}" for dtype in ("fp32", "bf16") for name in columns)], lines)


def main(arguments: Sequence[str] | None = None) -> None:
  """Prints what the flags ask for."""
  parser = commands.parser("eval.speed.encoders", __doc__)
  parser.add_argument("--torch_python", default="", help="a Python with torch and transformers, to compare with")
  parser.add_argument("--reference", type=pathlib.Path, help="a folder of small checkpoints with vectors.npz")
  parser.add_argument("--load", action="store_true", help="load a large checkpoint of random weights")
  parser.add_argument("--load_folder", type=pathlib.Path, help="load this one, in this process")
  parser.add_argument("--batch", type=int, default=32)
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--shape", choices=SHAPES, default="B/16")
  parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
  with commands.started(parser, arguments, ANEW) as flags:
    if flags.reference:
      print(error_table(flags.reference))
    elif flags.load_folder:
      print(json.dumps(loading(flags.load_folder)))
    elif flags.load:
      with tempfile.TemporaryDirectory() as folder:
        size = write_checkpoint(pathlib.Path(folder) / "large", LARGE)
        command = [sys.executable, "-m", "eval.speed.encoders", "--load_folder", f"{folder}/large"]
        seconds, peak = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
      peak /= size
      print(f"SigLIP2-L/16-512, {size / 1e9:.2f} GB: loaded in {seconds:.1f} s, peak {peak:.2f} times the weights")
    else:
      print(speed(flags.torch_python, flags.batch, flags.rounds, flags.shape, flags.dtype))


if __name__ == "__main__":
  main()
