"""Flags that `eval` and `sample` share: which policy, and how its answers are drawn."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_flags(parser: argparse.ArgumentParser, temperature: float, top_p: float) -> None:
  which = parser.add_mutually_exclusive_group(required=True)
  which.add_argument("--workdir", metavar="DIR", type=Path, help="folder of a run")
  which.add_argument("--model", metavar="DIR", type=Path, help="a Hugging Face model directory")
  parser.add_argument("--dtype", default="", choices=("", "float32", "bfloat16", "float16"),
                      help="of --model's weights (default: float32 on CPU, elsewhere as its config.json says)")
  add_checkpoint_flags(parser)
  parser.add_argument("--temperature", type=float, default=temperature, help=f"0 is greedy (default {temperature})")
  parser.add_argument("--top-p", type=float, default=top_p, help=f"(default {top_p})")
  parser.add_argument("--top-k", type=int, default=0, help="0: all (default)")
  parser.add_argument("--min-p", type=float, default=0.0, help="0: all (default)")
  parser.add_argument("--max-tokens", type=int, default=0, metavar="N",
                      help="longest answer (default: as in RL; 512 with --model)")
  parser.add_argument("--stop", action="append", default=[], metavar="TEXT",
                      help="a text that ends an answer; may be given again (default: as in RL)")
  parser.add_argument("--slots", type=int, default=0, metavar="N",
                      help="answers that run at one time, the others wait their turn (default 0: in step)")
  parser.add_argument("--draft", default="none", choices=("none", "lookup", "mtp"),
                      help="who guesses tokens that are checked together; changes the time alone (default none)")
  parser.add_argument("--drafts", type=int, default=3, metavar="N", help="tokens guessed at a time (default 3)")
  parser.add_argument("--seed", type=int, default=0)


def add_checkpoint_flags(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--stage", default="", metavar="NAME", help="stage whose checkpoint to use (default: the last)")
  parser.add_argument("--step", type=int, metavar="N", help="checkpoint number (default: the newest)")


def load(args):
  """(params, model, task, where, SampleConfig) from the flags."""
  from r1jax import policies
  from r1jax.sampler import SampleConfig
  if args.max_tokens < 0:
    raise ValueError(f"--max-tokens={args.max_tokens} must not be negative")
  if not 0 <= args.seed < 2**31:
    raise ValueError(f"--seed={args.seed} must be within 0 and 2^31 - 1")
  stop = tuple(args.stop)
  SampleConfig(1, args.temperature, args.top_p, args.top_k, args.min_p, stop=stop, slots=args.slots, draft=args.draft,
               drafts=args.drafts)                                            # wrong numbers before the slow part
  if args.model:
    if args.stage or args.step is not None:
      raise ValueError("--stage and --step are for --workdir")
    params, model, task = policies.load_model(args.model, args.dtype)
    where, tokens = str(args.model), args.max_tokens or 512
  else:
    params, model, task, where = policies.load_policy(args.workdir, args.stage, args.step)
    sampling = policies.sampling_of(policies.freeze_folder(args.workdir))
    tokens, stop = args.max_tokens or sampling.max_tokens, stop or sampling.stop
  return params, model, task, where, SampleConfig(tokens, args.temperature, args.top_p, args.top_k, args.min_p,
                                                  stop=stop, slots=args.slots, draft=args.draft, drafts=args.drafts)
