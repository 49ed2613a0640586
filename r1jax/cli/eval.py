"""`r1jax eval --workdir DIR [--data FILE.jsonl]`, `r1jax eval --model DIR --data FILE.jsonl`"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from r1jax.cli import policy


def main(argv: list[str]) -> int:
  parser = argparse.ArgumentParser(
    prog="r1jax eval", allow_abbrev=False,
    description="Samples answers of a run's policy, or of a Hugging Face model, and prints pass@k (unbiased), cons@k, "
                "strict and lenient accuracy; of pass@1 also the 95% interval, by problems. Writes a JSON of "
                "the numbers and a Parquet file of all answers. Run again after a kill, with the same settings, it "
                "goes on with the problems that are left.")
  policy.add_flags(parser, temperature=0.6, top_p=0.95)
  parser.add_argument("--data", type=Path, metavar="FILE", help="JSONL with prompt or question, and answer, a line"
                                                                " each; or a benchmark's file, see --format (default:"
                                                                " the task's held-out problems)")
  parser.add_argument("--format", default="auto", metavar="NAME",
                      help="of --data: math500, aime, amc, gpqa (CSV), gsm8k, mbpp, humaneval, livecodebench (programs"
                           " run in a sandbox), ifeval, or questions (default auto: by the first row's fields)")
  parser.add_argument("--template", default="", choices=("", "r1_zero", "chat", "plain"),
                      help="what a question of --data is put into: R1-Zero's prompt, the model's chat template, nothing"
                           " (default: chat where the model has one, else r1_zero)")
  parser.add_argument("--samples", type=int, default=8, metavar="K", help="answers per problem (default 8)")
  parser.add_argument("--problems", type=int, default=0, metavar="N", help="the first N problems (default: all)")
  parser.add_argument("--prompts-at-once", type=int, default=128, metavar="N",
                      help="problems that are sampled together, then kept: bounds memory and what a kill can lose"
                           " (default 128)")
  parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the results (default: WORKDIR/eval, or eval);"
                                                                " another evaluation's are not overwritten")
  args = parser.parse_args(argv)
  if args.samples < 1 or args.problems < 0 or args.prompts_at_once < 1:
    raise ValueError(f"--samples={args.samples} and --prompts-at-once={args.prompts_at_once} must be at least 1,"
                     f" --problems={args.problems} not negative")
  if args.model and not args.data:
    raise ValueError("--model needs --data FILE")
  if args.format != "auto" and not args.data:
    raise ValueError(f"--format={args.format} needs --data FILE")
  found = None
  if args.data:      # read first: a bad line is told before the policy is loaded
    from r1jax.evals import formats
    found = formats.read(args.data, "{question}", args.format)

  import numpy as np

  from r1jax import metrics, rollout
  from r1jax.evals import parts, significance
  from r1jax.evals.evaluate import evaluate_in_parts
  from r1jax.rewards.workers import Workers
  params, model, task, where, sampling = policy.load(args)
  template = args.template or ("chat" if args.model and task.tokenizer.chat_template else "r1_zero")
  if found and template == "r1_zero":
    from r1jax.tasks.gsm8k import TEMPLATE
    found = formats.read(args.data, TEMPLATE, found.format)
  if found:
    task = dataclasses.replace(task, **found.scoring)
  if found and template == "chat":
    from r1jax import chat
    as_chat = lambda text: chat.prompt_tokens(task.tokenizer, [dict(role="user", content=text)])
    task = dataclasses.replace(task, encode=lambda texts: [as_chat(text) for text in texts])
  problems = list(found.problems if found else task.held_out)[:args.problems or None]
  out = args.out or (args.workdir / "eval" if args.workdir else Path("eval"))
  out.mkdir(parents=True, exist_ok=True)
  of = args.model.resolve().name if args.model else where.replace(" ", "-")
  name = f"{args.data.stem if args.data else task.name}-{of}"
  record = dict(policy=where, template=template, problems=len(problems), samples=args.samples,
                temperature=args.temperature, top_p=args.top_p, top_k=args.top_k, min_p=args.min_p,
                max_tokens=sampling.max_tokens, seed=args.seed)
  settings = record | dict(
    parameters=parts.fingerprint(params), questions=parts.digest(problems),
    prompt_tokens=parts.tokens_digest(rollout.encoded(problems, task.tokenizer, task.encode)),
    end_tokens=list(map(int, task.tokenizer.end_ids)), format=args.format, prompts_at_once=args.prompts_at_once,
    sampling=dataclasses.asdict(sampling), rewards=sorted(task.rewards))
  # the policy of a run may be trained anew; its evaluation then takes the old one's place in the run's folder
  parts.refuse_another(out / f"{name}.json", settings, but=() if args.out or args.model else ("parameters",))
  console = Console()
  kept = parts.Parts(out / f"{name}.parts", settings)
  if kept.dropped:
    console.print(f"starting anew: {', '.join(kept.dropped)} {'differs' if len(kept.dropped) == 1 else 'differ'} from"
                  " what an evaluation was made with that was cut off here", soft_wrap=True, markup=False)
  with Workers() if found and found.hangs else contextlib.nullcontext() as pool, metrics.progress(console) as progress:
    bar, told = progress.add_task("eval", total=len(problems), numbers=""), []

    def done(count: int) -> None:
      if not told and count:
        console.print(f"going on: {count} of {len(problems)} problems are done")
      told.append(count)
      progress.update(bar, completed=count)
    summary, table = evaluate_in_parts(kept, params, task, problems, args.samples, model=model, cfg=sampling,
                                       seed=args.seed, prompts_at_once=args.prompts_at_once, pool=pool, done=done)
  metrics.write_table(out / f"{name}.parquet", table)
  record["benchmark"] = found.format if found else task.name     # "format" is a reward's name
  right_BG = np.reshape(table["reward/accuracy"], (len(problems), args.samples)) == 1
  low, high = record["pass@1_interval"] = significance.interval(right_BG)
  subjects = significance.by_subject([p.id for p in problems], right_BG, found.subjects if found else {})
  if subjects:
    record["subjects"] = subjects
  record["settings"] = settings
  metrics.write_text(out / f"{name}.json", json.dumps(record | summary, indent=1))
  kept.remove()
  shown = Table(f"{task.name}: {where}", f"{len(problems)} problems x {args.samples}")
  for key, value in summary.items():
    shown.add_row(dict(lenient="lenient pass@1").get(key, f"strict {key}" if "@" in key else key.replace("_", " ")),
                  f"{value:.4g}" + (f" ({low:.3f} - {high:.3f})" if key == "pass@1" else ""))
  console.print(shown)
  if subjects:
    shown = Table("subject", "problems", "strict pass@1", "95% interval")
    for subject, of in subjects.items():
      low, high = of["interval"]
      shown.add_row(Text(subject), str(of["problems"]), f"{of['pass@1']:.4g}", f"{low:.3f} - {high:.3f}")
    console.print(shown)
  console.print(f"{out / name}.json and .parquet", soft_wrap=True)
  return 0
