"""Folders of runs for the report's tests: what a stage writes, and a whole small pipeline."""

import json
import math

import pyarrow as pa
import pyarrow.parquet as pq

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)> & \u2028 \u202e"


def sample(step, **fields):
  return dict(stage="reasoning_rl", step=step, problem=7, sample=0, prompt="What is 17 + 25?", gold="42",
              text="<think>carry</think> 42", tokens=[1, 2], length=9, truncated=False, verdict="correct",
              reward=1.1, advantage=0.75, logp_mean=-0.25, logp_min=-3.5) | {"reward/format": 1.0} | fields


def write_table(path, rows):
  path.parent.mkdir(parents=True, exist_ok=True)
  pq.write_table(pa.Table.from_pylist(rows), path)


def write_samples(run, step, rows, stage="reasoning_rl"):
  write_table(run / stage / "samples" / f"step_{step:06d}.parquet", rows)


def write_rows(run, stage, rows, tail=""):
  (run / stage).mkdir(parents=True, exist_ok=True)
  (run / stage / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + tail)


def rl_rows(steps=60):
  return [{"step": i, "seconds": 1.5 * i, "reward": 0.5 + i / 200, "accuracy": 0.4 + i / 200,
           "length": 9 + i / 10, "reward/format": 1.0, "kl": 0.001 * i, "entropy": 0.5, "verdict/wrong": 0.1,
           "novel_metric": i,
           **({"eval/greedy_accuracy": 0.5, "eval/greedy_length": 10.0} if i % 20 == 0 else {})}
          for i in range(steps)]


# name: (kind, starts from, learns from)
R1 = dict(base=("pretrain", "", ""), zero=("reasoning_rl", "base", ""),
          cold_start_data=("rejection", "zero", ""), dev1=("sft", "base", "cold_start_data"),
          dev2=("reasoning_rl", "dev1", ""), sft_data=("rejection", "dev2", ""), dev3=("sft", "base", "sft_data"),
          helpful=("reward_model", "dev3", ""), safety=("reward_model", "dev3", ""),
          r1=("all_scenarios_rl", "dev3", ""))
FIGURES = dict(base=(0.31, 0.97, 9), zero=(0.92, 0.61, 31), dev1=(0.55, 0.98, 20), dev2=(0.91, 0.97, 30),
               dev3=(0.88, 0.98, 28), r1=(0.93, 0.98, 27))      # accuracy, language, length


def write_pipeline(run, until="r1"):
  """The tiny R1 run, of stages up to `until`; r1's preference reward is hacked in its last third."""
  config = dict(name="r1 tiny", stages=list(R1), seed=0)
  for name, (kind, start, data) in R1.items():
    config[name] = dict(stage=kind) | (dict(start=start) if start else {}) | (dict(data=data) if data else {})
  (run / "config.json").write_text(json.dumps(config))
  for name in list(R1)[:list(R1).index(until) + 1]:
    write_stage(run, name, *R1[name])
  if until == "r1":
    result = {}
    for name in FIGURES:
      result |= json.loads((run / "eval" / f"{name}.json").read_text())
    (run / "result.json").write_text(json.dumps(result | {"seconds/total": 1500.0}))


def write_stage(run, name, kind, start, data):
  folder = run / name
  folder.mkdir(parents=True, exist_ok=True)
  info = dict(name=name, stage=kind, start=start, data=data, hash="0" * 16, inputs={}, seconds=95.5, finished=True)
  if name == "dev3":
    info["redone"] = "sft_data/data.jsonl changed"
  (folder / "stage.json").write_text(json.dumps(info))
  if kind in ("reasoning_rl", "all_scenarios_rl"):
    write_rows(run, name, [trained(name, i) for i in range(60)])
    for step in range(0, 60, 12):
      write_samples(run, step, answers(name, step), name)
  elif kind == "rejection":
    rows = [row | dict(dropped="" if row["verdict"] == "correct" else "wrong") for row in answers(name, 0)]
    write_samples(run, 0, rows, name)
    (folder / "filters.json").write_text(json.dumps(
      dict(sampled=400, kept=170, other=50, dropped=dict(wrong=180, language=40, repetition=10))))
    (folder / "data.jsonl").write_text("{}\n")
  else:
    write_rows(run, name, [dict(step=i, seconds=i * 2.0, loss=3 / (1 + i)) for i in range(30)])
  if name in FIGURES:
    accuracy, language, length = FIGURES[name]
    (run / "eval").mkdir(exist_ok=True)
    figures = {"pass@1": accuracy, "greedy_accuracy": accuracy + 0.01, "language": language, "length": length,
               "general/helpful": 0.4 if name != "r1" else 0.1, "unsafe/safe": 0.5 + accuracy / 4}
    (run / "eval" / f"{name}.json").write_text(json.dumps(
      {f"{name}/{key}": value for key, value in figures.items()} | {f"seconds/eval_{name}": 12.0}))
    write_table(run / "eval" / f"{name}.parquet", answers(name, 0, 200))


def trained(name, i):
  low, high = {"zero": (0.3, 0.92), "dev2": (0.55, 0.91), "r1": (0.88, 0.93)}[name]
  right = high - (high - low) * math.exp(-i / 12)
  row = {"step": i, "seconds": 1.5 * i, "accuracy": right, "reward": right + 1, "reward/accuracy": right,
         "reward/format": 1.0, "length": 9 + 22 * (1 - math.exp(-i / 20)), "length/correct": 9 + i / 4,
         "length/wrong": 10 + i / 3, "entropy": 0.5, "kl": 0.001 * i, "zero_variance_share": 0.3}
  if i % 5 == 4:
    row |= {"eval/greedy_accuracy": right - 0.02, "eval/greedy_length": row["length"] + 1}
  if name == "r1":
    row["reward/helpful"] = i / 60
    row["reward"] += i / 60
    if i % 5 == 4:
      row["eval/general/helpful"] = 0.5 + 0.01 * min(i, 40) - 0.03 * max(0, i - 40)
  return row


def answers(stage, step, problems=12):
  rows = []
  for problem in range(problems):
    scenario = ("reasoning", "reasoning", "general", "unsafe")[problem % 4] if stage == "r1" else "reasoning"
    for g in range(4):
      right = (problem + g + step) % 3 != 0
      text = f"<think>\n{problem} + 5 needs a carry\n</think>\n<answer>{problem + 5 + (not right)}</answer>"
      row = sample(step, stage=stage, problem=problem, sample=g, prompt=f"What is {problem} + 5?",
                   gold=str(problem + 5), text=text + " zebra" * (problem == 11), scenario=scenario,
                   verdict="correct" if right else "wrong", reward=float(right) + 1, advantage=right - 0.5)
      row["reward/accuracy"] = float(right)
      if scenario != "reasoning":
        row |= {"verdict": "not_asked", "gold": "", "reward": 0.8, "reward/accuracy": 0.0, "reward/helpful": 0.8}
      else:
        row["reward/helpful"] = 0.0
      rows.append(row | {"verdict/helpful": "not_asked" if scenario == "reasoning" else ""})
  return rows
