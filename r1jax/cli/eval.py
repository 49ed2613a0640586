"""`r1jax eval --workdir DIR [--data FILE.jsonl]`, `r1jax eval --model DIR --data FILE.jsonl`"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from r1jax.cli import policy


def main(argv: list[str]) -> int:
  parser = argparse.ArgumentParser(
    prog="r1jax eval", allow_abbrev=False,
    description="Samples answers of a run's policy, or of a Hugging Face model, and prints pass@k (unbiased), cons@k, "
                "strict and lenient accuracy; of pass@1 also the 95% interval, by problems. Writes a JSON of "
                "the numbers and a Parquet file of all answers.")
  policy.add_flags(parser, temperature=0.6, top_p=0.95)
  parser.add_argument("--data", type=Path, metavar="FILE", help="JSONL with prompt or question, and answer, a line"
                                                                " each; or MBPP's, whose programs run in a sandbox"
                                                                " (default: the task's held-out problems)")
  parser.add_argument("--template", default="", choices=("", "r1_zero", "chat", "plain"),
                      help="what a question of --data is put into: R1-Zero's prompt, the model's chat template, nothing"
                           " (default: chat where the model has one, else r1_zero)")
  parser.add_argument("--samples", type=int, default=8, metavar="K", help="answers per problem (default 8)")
  parser.add_argument("--problems", type=int, default=0, metavar="N", help="the first N problems (default: all)")
  parser.add_argument("--prompts-at-once", type=int, default=128, metavar="N", help="bounds memory (default 128)")
  parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the results (default: WORKDIR/eval)")
  args = parser.parse_args(argv)
  if args.samples < 1 or args.problems < 0 or args.prompts_at_once < 1:
    raise ValueError(f"--samples={args.samples} and --prompts-at-once={args.prompts_at_once} must be at least 1,"
                     f" --problems={args.problems} not negative")
  if args.model and not args.data:
    raise ValueError("--model needs --data FILE")
  problems = None
  if args.data:      # read first: a bad line is told before the policy is loaded
    problems, scoring = read(args.data, "{question}")

  from r1jax import metrics
  from r1jax.evals import significance
  from r1jax.evals.evaluate import evaluate
  params, model, task, where, sampling = policy.load(args)
  template = args.template or ("chat" if args.model and task.tokenizer.chat_template else "r1_zero")
  if problems is not None and template == "r1_zero":
    from r1jax.tasks.gsm8k import TEMPLATE
    problems, scoring = read(args.data, TEMPLATE)
  if problems is not None:
    task = dataclasses.replace(task, **scoring)
  if problems is not None and template == "chat":
    from r1jax import chat
    as_chat = lambda text: chat.prompt_tokens(task.tokenizer, [dict(role="user", content=text)])
    task = dataclasses.replace(task, encode=lambda texts: [as_chat(text) for text in texts])
  problems = list(task.held_out if problems is None else problems)[:args.problems or None]
  summary, table = evaluate(params, task, problems, args.samples, model=model, cfg=sampling, seed=args.seed,
                            prompts_at_once=args.prompts_at_once)
  out = args.out or (args.workdir / "eval" if args.workdir else Path("eval"))
  out.mkdir(parents=True, exist_ok=True)
  of = args.model.resolve().name if args.model else where.replace(" ", "-")
  name = f"{args.data.stem if args.data else task.name}-{of}"
  metrics.write_table(out / f"{name}.parquet", table)
  record = dict(policy=where, template=template, problems=len(problems), samples=args.samples,
                temperature=args.temperature, top_p=args.top_p, top_k=args.top_k, min_p=args.min_p,
                max_tokens=sampling.max_tokens, seed=args.seed)
  value_N, K = table["reward/accuracy"], args.samples
  low, high = significance.interval([[v == 1 for v in value_N[i:i + K]] for i in range(0, len(value_N), K)])
  record["pass@1_interval"] = [low, high]
  (out / f"{name}.json").write_text(json.dumps(record | summary, indent=1))
  console = Console()
  shown = Table(f"{task.name}: {where}", f"{len(problems)} problems x {args.samples}")
  for key, value in summary.items():
    shown.add_row(dict(lenient="lenient pass@1").get(key, f"strict {key}" if "@" in key else key.replace("_", " ")),
                  f"{value:.4g}" + (f" ({low:.3f} - {high:.3f})" if key == "pass@1" else ""))
  console.print(shown)
  console.print(f"{out / name}.json and .parquet", soft_wrap=True)
  return 0


def read(path: Path, template: str):
  """(problems, fields of a Task that score them) of a file: MBPP's by its test_list, else questions and answers."""
  from r1jax import data
  from r1jax.tasks import mbpp
  if "test_list" in next(data.read_jsonl(path))[1]:
    return mbpp.load(path, template=template), mbpp.scoring(mbpp.Config())
  return data.read_problems(path, template), {}
