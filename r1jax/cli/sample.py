"""`r1jax sample --workdir DIR [--prompt TEXT | --question TEXT]`"""

from __future__ import annotations

import argparse
import sys

from r1jax.cli import policy


def main(argv: list[str]) -> int:
  parser = argparse.ArgumentParser(prog="r1jax sample", allow_abbrev=False,
                                   description="Streams answers of a run's policy to a prompt.")
  policy.add_flags(parser, temperature=1.0, top_p=1.0)
  group = parser.add_mutually_exclusive_group()
  group.add_argument("--prompt", metavar="TEXT", help="taken as it is; - reads standard input"
                                                      " (default: the task's first held-out problem)")
  group.add_argument("--question", metavar="TEXT", help="put into R1-Zero's prompt template")
  parser.add_argument("--samples", type=int, default=1, metavar="K", help="answers, one after another (default 1)")
  args = parser.parse_args(argv)
  if args.samples < 1:
    raise ValueError(f"--samples={args.samples} must be at least 1")
  params, model, task, where, sampling = policy.load(args)
  if args.question is not None:
    from r1jax.tasks.gsm8k import TEMPLATE
    prompt = TEMPLATE.replace("{question}", args.question)
  elif args.prompt is not None:
    prompt = sys.stdin.read() if args.prompt == "-" else args.prompt
  else:
    prompt = task.held_out[0].prompt
  try:
    ids = task.tokenizer.encode(prompt)
  except Exception as error:    # a task's own symbols; the library raises a bare Exception
    raise ValueError(f"the task's tokenizer cannot read the prompt {prompt[:60]!r} ({error})") from error
  if not ids:
    raise ValueError("the prompt is empty")
  print(f"# {where}, temperature {args.temperature}", file=sys.stderr)
  for g in range(args.samples):
    sys.stdout.write(prompt)
    for piece in stream(params, model, task.tokenizer, ids, sampling, args.seed, g):
      sys.stdout.write(piece)
      sys.stdout.flush()
    sys.stdout.write("\n")
  return 0


def stream(params, model, tokenizer, prompt: list[int], cfg, seed: int, sample: int):
  """Pieces of text of one answer, as they are drawn; a character is never split."""
  import jax.numpy as jnp
  import numpy as np

  from r1jax import sampler, train
  static = dict(model=model, cfg=cfg, end_id=tokenizer.end_id)
  keys = sampler.sample_keys(seed, 0, jnp.zeros(1, jnp.int32), jnp.asarray([sample]))
  prompt_BP = train.pad_rows([prompt], train.bucket(len(prompt)), tokenizer.end_id)
  state = sampler.start(params, prompt_BP, jnp.asarray([len(prompt)], jnp.int32), keys, **static)
  said = ""
  while not state.done_N[0] and state.t < cfg.max_tokens:
    state = sampler.advance(params, state, 1, **static)
    text = tokenizer.decode(np.asarray(state.token_NA[0, :state.length_N[0]]))
    if not text.endswith("\ufffd"):
      yield text[len(said):]
      said = text
  text = tokenizer.decode(np.asarray(state.token_NA[0, :state.length_N[0]]))
  yield text[len(said):]
