"""`r1jax bench grpo`, `load`, `decode`, `kernels` or `verifier`"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rich.console import Console

BENCHES = ("grpo", "load", "decode", "kernels", "verifier")


def main(argv: list[str]) -> int:
  parser = argparse.ArgumentParser(
    prog="r1jax bench", allow_abbrev=False,
    description="grpo: whole GRPO steps (rollout of fixed length, reference log-probs, AdamW update) on random tokens, "
                "with the time of each phase, the share of this machine's matmul speed, and peak memory. "
                "load: a Hugging Face checkpoint is read, with the host's memory beyond the parameters, and speed. "
                "decode: prefill and decode of a SmolLM2-135M shape in f32 and bf16, beside transformers' generate. "
                "kernels: every kernel that fits this device, at real shapes: its error against the reference, its "
                "time beside the reference, other libraries and the least that the device allows. A wrong result makes "
                "the exit status 1. "
                "verifier: the judges of mathematical answers against completions that people have marked.")
  parser.add_argument("what", choices=BENCHES, help="what to measure")
  parser.add_argument("--shape", choices=("A", "B", "long"), default="A",
                      help="grpo; A: 4 layers x 128, vocab 512, 8 prompts x 8 answers, 32 + 64 tokens (default);"
                           " B: SmolLM2-135M's, 4 x 8, 64 + 64; long: A's model, 4 x 16, 512 + 32")
  parser.add_argument("--peer", action="append", default=[], metavar="NAME[=PYTHON]",
                      help="grpo: also run trl or tunix, with the Python that has it, in turns; may be given again")
  parser.add_argument("--peer-parts", type=int, default=1, metavar="N",
                      help="grpo: micro-batches of the peers (default 1)")
  parser.add_argument("--steps", type=int, default=10, metavar="N", help="grpo: steps to time (default 10)")
  parser.add_argument("--model", type=Path, metavar="DIR",
                      help="load: the checkpoint (default: 0.5 GB of random weights in shards of 64 MB)")
  parser.add_argument("--fp8", action="store_true",
                      help="load: random weights in DeepSeek-R1's layout, FP8 in blocks, 0.4 GB")
  parser.add_argument("--devices", type=int, default=1, metavar="N",
                      help="load: split the weights over N simulated devices (default 1)")
  parser.add_argument("--repeats", type=int, default=3, metavar="N",
                      help="decode, kernels: the best of N runs (default 3)")
  parser.add_argument("--no-peer", action="store_true", help="decode: leave transformers out")
  parser.add_argument("--op", action="append", metavar="NAME",
                      help="kernels: only this one, such as grouped_matmul; may be given more than once")
  parser.add_argument("--interpret", action="store_true",
                      help="kernels: also check the Pallas kernels by the interpreter, which is slow and not timed")
  parser.add_argument("--data", type=Path, metavar="FILE",
                      help="verifier: openai/grade-school-math's example_model_solutions.jsonl")
  parser.add_argument("--problems", type=int, default=0, metavar="N",
                      help="verifier: only the first N problems (default 0: all)")
  parser.add_argument("--workers", type=int, default=2, metavar="N", help="verifier: worker processes (default 2)")
  parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers there")
  args = parser.parse_args(argv)
  if args.steps < 1 or args.repeats < 1 or args.devices < 1:
    raise ValueError(f"--steps={args.steps}, --repeats={args.repeats}, --devices={args.devices} must be at least 1")
  status = 0
  if args.what == "load":
    from r1jax.bench import load
    result = load.measure(args.model, args.fp8, args.devices)
    Console().print(load.table(result))
  elif args.what == "decode":
    from r1jax.bench import decode
    result = decode.measure(args.repeats, peer=not args.no_peer, console=Console(stderr=True))
    Console().print(decode.table(result))
  elif args.what == "kernels":
    from r1jax.bench import kernels
    known = [op.name for op in kernels.OPS]
    if strange := sorted(set(args.op or ()) - set(known)):
      raise ValueError(f"--op={strange[0]} is none of {', '.join(known)}")
    ops = tuple(op for op in kernels.OPS if not args.op or op.name in args.op)
    result = kernels.measure(ops, args.interpret, args.repeats, console=Console(stderr=True))
    Console().print(kernels.table(result))
    status = 1 if kernels.wrong(result) else 0
  elif args.what == "verifier":
    if args.data is None or args.problems < 0:
      raise ValueError(f"bench verifier needs --data FILE, and --problems={args.problems} of at least 0")
    from r1jax.bench import verifier
    result = verifier.measure(args.data, args.problems, args.workers)
    Console().print(verifier.table(result))
  else:
    from r1jax.bench import grpo
    from r1jax.bench.peers import child
    shape = grpo.SHAPES[args.shape]
    if args.peer_parts < 1 or shape.prompts % args.peer_parts:
      raise ValueError(f"--peer-parts={args.peer_parts} must divide the {shape.prompts} prompts of shape {args.shape}")
    result = grpo.measure(args.shape, args.steps, [child.python_of(text) for text in args.peer], args.peer_parts)
    Console().print(grpo.table(result))
  if args.json:
    args.json.write_text(json.dumps(result, indent=1))
  return status
