"""`r1jax sample --workdir DIR [--prompt TEXT | --question TEXT]`, `r1jax sample --model DIR "message"`"""

from __future__ import annotations

import argparse
import sys

from r1jax.cli import policy


def main(argv: list[str]) -> int:
  parser = argparse.ArgumentParser(prog="r1jax sample", allow_abbrev=False,
                                   description="Streams answers of a run's policy, or of a Hugging Face model.")
  policy.add_flags(parser, temperature=1.0, top_p=1.0)
  parser.add_argument("message", nargs="?", metavar="MESSAGE", help="what the user says, in the model's chat template")
  parser.add_argument("--system", metavar="TEXT", help="system message before MESSAGE")
  group = parser.add_mutually_exclusive_group()
  group.add_argument("--prompt", metavar="TEXT", help="taken as it is; - reads standard input"
                                                      " (default: the task's first held-out problem)")
  group.add_argument("--question", metavar="TEXT", help="put into R1-Zero's prompt template")
  parser.add_argument("--samples", type=int, default=1, metavar="K", help="answers, one after another (default 1)")
  args = parser.parse_args(argv)
  if args.samples < 1:
    raise ValueError(f"--samples={args.samples} must be at least 1")
  if args.message is not None and (args.prompt is not None or args.question is not None):
    raise ValueError("MESSAGE, --prompt and --question exclude each other")
  if args.model and args.message is None and args.prompt is None and args.question is None:
    raise ValueError("--model needs a MESSAGE, --prompt or --question")
  params, model, task, where, sampling = policy.load(args)
  if args.message is not None:
    from r1jax import chat
    messages = [dict(role="system", content=args.system)] if args.system is not None else []
    ids, prompt = chat.prompt_tokens(task.tokenizer, [*messages, dict(role="user", content=args.message)]), ""
    return _answer(args, params, model, task, where, sampling, ids, prompt)
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
  return _answer(args, params, model, task, where, sampling, ids, prompt)


def _answer(args, params, model, task, where, sampling, ids: list[int], prompt: str) -> int:
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

  from r1jax import room, sampler, train
  from r1jax.rollout import stop_at
  static = dict(model=model, cfg=cfg, end_id=tokenizer.end_ids)
  keys = sampler.sample_keys(seed, 0, jnp.zeros(1, jnp.int32), jnp.asarray([sample]))
  prompt_BP = train.pad_rows([prompt], train.bucket(len(prompt)), tokenizer.end_id)
  most = room.most(cfg)
  columns = room.bucket(1, most)
  state = sampler.start(params, prompt_BP, jnp.asarray([len(prompt)], jnp.int32), keys, columns=columns, **static)
  params = sampler.for_steps(params, model)
  text, given, stops = tokenizer.stream(), 0, stop_at(tokenizer, cfg.stop)
  complete, stopped = stops() if stops else lambda token: False, False
  while True:
    said = room.answers(state, length=columns + 1, end_id=tokenizer.end_ids)
    tokens = said.token_NA[0, :int(said.length_N[0])].tolist()
    for token in tokens[given:]:
      if token not in tokenizer.end_ids:
        yield text.push(token)
      stopped = complete(token)
      if stopped:
        break
    given = len(tokens)
    if stopped or state.done_N[0]:
      break
    if int(state.column) + cfg.span > columns:
      columns = room.bucket(columns + 1, most)
      state = room.widen(state, model=model, columns=columns)
    state = sampler.advance(params, state, 1, **static)
  yield text.flush()
