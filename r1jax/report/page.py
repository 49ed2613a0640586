"""The page itself: HTML by Python, curves by report.js from embedded numbers.

Sampled text is hostile by nature (a policy may write anything): all text passes through `esc`, and the page's policy
header allows no script but ours.
"""

from __future__ import annotations

import base64
import fnmatch
import hashlib
import html
import json
import math
import statistics
from importlib import resources
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from r1jax.report.folder import SHARE, Run, Stage, bill_of, look_at, number, show, summary_of

POINTS = 500          # a curve on the page has no more points than this
SAMPLED_STEPS = 5     # steps whose answers are shown, first and last among them
LONG = 400            # characters: longer texts start collapsed
LONGEST = 8_000       # characters: the middle of a longer text is left out

NAMES = {"accuracy": "training answers", "length": "training answers", "reward": "total", "clip_share": "all",
         "eval/greedy_accuracy": "held-out, greedy", "eval/greedy_length": "held-out, greedy",
         "zero_variance_share": "groups that agree", "truncated_share": "answers cut off"}
HEADLINE = (
  ("Accuracy", ("accuracy", "eval/greedy_accuracy"), "share of answers that are correct"),
  ("Mean answer length", ("length", "eval/greedy_length"), "tokens"),
)
CHARTS = (   # title, metrics, what is drawn; what no line names is drawn after these, so nothing is lost
  ("Loss", ("loss",), ""),
  ("Reward and its parts", ("reward", "reward/*"), "mean over the answers of a step"),
  ("Evaluation", ("eval/greedy_accuracy", "eval/pass@*", "eval/cons@*", "eval/strict", "eval/lenient"),
   "held-out problems"),
  ("Length by correctness", ("length/*",), "mean tokens"),
  ("Verdicts", ("verdict/*",), "share of answers"),
  ("Agreeing groups, cut-off answers", ("zero_variance_share", "truncated_share"), "share of each"),
  ("KL to the reference", ("kl",), "nats a token"),
  ("Entropy of the policy", ("entropy",), "nats a token"),
  ("Clipped tokens", ("clip_share", "clip_share/*"), "share of answer tokens, and on which side"),
  ("Sampler against trainer", ("mismatch/*",), "how far their log-probabilities differ"),
  ("Gradient norm", ("grad_norm",), "before clipping"),
  ("Learning rate", ("lr",), ""),
  ("Time of a step", ("seconds/*",), "seconds by phase"),
  ("Throughput", ("tokens_per_s", "sampler/decode_tokens_per_s"), "tokens a second, of all and of sampling alone"),
  ("The sampler's rows", ("sampler/occupancy", "sampler/tail_share", "sampler/acceptance", "stale_token_share"),
   "shares: at work, of time with fewer than half at work, of guesses that were right, of tokens drawn before"),
  ("Model FLOPs utilisation", ("ledger/mfu",), "share of what the devices could do"),
  ("Device time", ("ledger/device_seconds", "ledger/device_seconds/*"), "seconds since the row before, by phase"),
  ("FLOPs", ("ledger/flops", "ledger/flops/*"), "since the row before, by phase"),
  ("Tokens", ("ledger/tokens_*",), "since the row before"),
)
LOGARITHMIC = ("Sampler against trainer", "Gradient norm", "KL to the reference")   # if values span decades


def curve(rows: list[dict], key: str) -> dict | None:
  """One metric to draw. Past POINTS steps a point is a mean of neighbours; lo and hi are their range."""
  points = [(row["step"], row[key]) for row in rows if key in row]
  if all(value is None for _, value in points):
    return None
  every = math.ceil(len(points) / POINTS)
  chunks = [points[i:i + every] for i in range(0, len(points), every)]
  finite = [[value for _, value in chunk if value is not None] for chunk in chunks]

  def each(of):   # a chunk with nothing finite in it is a gap in the line
    return [float(f"{of(values):.6g}") if values else None for values in finite]
  name = NAMES.get(key) or key.partition("/")[2] or key
  ends = dict(lo=each(min), hi=each(max)) if every > 1 else {}
  return dict(name=name.replace("_", " "), marks=key.startswith("eval/"),
              x=[chunk[len(chunk) // 2][0] for chunk in chunks], y=each(statistics.fmean), **ends)


class Figures:
  """Collects what report.js will draw, and gives the place on the page where it will draw it."""

  def __init__(self):
    self.specs: list[dict] = []

  def figure(self, stage: int, rows: list[dict], title: str, keys: list[str], note: str, tall=False) -> str:
    curves = [(key, drawn) for key in keys if (drawn := curve(rows, key))]
    if not curves:
      return ""
    share = all(SHARE.match(key) for key, _ in curves)
    self.specs.append(dict(
      stage=stage, title=title, share=share, tall=tall, log=title in LOGARITHMIC,
      x=[rows[0]["step"], rows[-1]["step"]], curves=[drawn for _, drawn in curves]))
    return (f'<figure data-chart="{len(self.specs) - 1}"><figcaption><b>{esc(title)}</b> '
            f'<span>{esc(note)}</span></figcaption></figure>')

  def headline(self, stage: int, rows: list[dict]) -> str:
    return "".join(self.figure(stage, rows, title, keys, note, tall=True) for title, keys, note in HEADLINE)

  def all(self, stage: int, rows: list[dict]) -> str:
    """Every chart that has something to show; metrics that no chart names come last, one chart each."""
    logged = list(dict.fromkeys(key for row in rows for key in row if key not in ("step", "seconds")))
    drawn, left = "", [key for key in logged if not any(key in keys for _, keys, _ in HEADLINE)]
    for title, patterns, note in CHARTS:
      keys = [key for pattern in patterns for key in logged if fnmatch.fnmatchcase(key, pattern)]
      left = [key for key in left if key not in keys]
      drawn += self.figure(stage, rows, title, list(dict.fromkeys(keys)), note)
    drawn += "".join(self.figure(stage, rows, key, [key], "") for key in left)
    every = math.ceil(len(rows) / POINTS)
    note = ("" if every == 1 else f'<p class="note">{len(rows):,} logged steps, drawn as at most {POINTS} '
            f"points: a point is the mean of up to {every} steps, and the band around it is their range.</p>")
    return f'{note}<div class="grid">{drawn}</div>'


def esc(text) -> str:
  return html.escape(str(text))


def folded(text, css: str) -> str:
  """A text as it is, white space kept; a long one starts collapsed, and the longest lose their middle."""
  text = "" if text is None else str(text)
  if len(text) > LONGEST:
    left_out = f"\n\n[… {len(text) - LONGEST:,} characters left out …]\n\n"
    text = text[:LONGEST // 2] + left_out + text[-LONGEST // 2:]
  if len(text) <= LONG and text.count("\n") < 12:
    return f'<pre class="{css}">{esc(text)}</pre>'
  start, end = " ".join(text[:LONG // 2].split()), " ".join(text[-LONG // 4:].split())
  return (f'<details class="long"><summary>{esc(start)} <i>…</i> {esc(end)} '
          f'<i>{len(text):,} characters</i></summary>'
          f'<pre class="{css}">{esc(text)}</pre></details>')


def signed(value, form=".2f") -> str:
  value = number(value)
  return "–" if value is None else format(value, form).replace("-", "−")


def answer_html(row: dict) -> str:
  good = row.get("verdict") == "correct"
  parts = ", ".join(f"{key.partition('/')[2]} {signed(value, '.3g')}" for key, value in row.items()
                    if key.startswith("reward/"))
  cut = ", cut off" if row.get("truncated") and row.get("verdict") != "truncated" else ""
  return (f'<div class="answer"><div class="facts"><b class="{"good" if good else "bad"}">'
          f'{"✓" if good else "✗"} {esc(str(row.get("verdict") or "no verdict").replace("_", " "))}{cut}</b>'
          f'<span>reward {signed(row.get("reward"), ".3g")}{esc(f" ({parts})" if parts else "")}</span>'
          f'<span>advantage {signed(row.get("advantage"), "+.2f")}</span>'
          f'<span>{esc(row.get("length", "–"))} tokens, logp {signed(row.get("logp_mean"))}, '
          f'least {signed(row.get("logp_min"))}</span></div>{folded(row.get("text"), "text")}</div>')


def sample_html(step: int, path: Path, opened: bool, notes: list[str]) -> str:
  """The first two groups of a step, then the first of the others whose rewards differ: one that teaches."""
  try:
    with pq.ParquetFile(path) as file:
      rows = file.read([name for name in file.schema_arrow.names if name != "tokens"]).to_pylist()
  except (pa.ArrowException, OSError, ValueError) as error:
    notes.append(f"{path.parent.parent.name}/samples/{path.name} could not be read: {error}")
    return ""
  groups: dict[Any, list[dict]] = {}
  for row in rows:
    groups.setdefault(row.get("problem"), []).append(row)
  shown, rest = list(groups.values())[:2], list(groups.values())[2:]
  differ = [group for group in rest if len({row.get("reward") for row in group}) > 1]
  shown += (differ or rest)[:1]
  body = "".join(
    f'<article><div class="question"><div class="facts"><b>Problem {esc(group[0].get("problem", ""))}</b>'
    f'<span>gold answer: <b>{esc(group[0].get("gold", "–"))}</b></span></div>'
    f'{folded(group[0].get("prompt"), "prompt")}</div>{"".join(map(answer_html, group))}</article>'
    for group in shown)
  right = sum(row.get("verdict") == "correct" for row in rows)
  return (f'<details class="step"{" open" * opened}><summary>Step {step} <i>{right} of {len(rows)} answers '
          f'correct; {len(shown)} of {len(groups)} groups shown</i></summary>{body}</details>')


def samples_html(stage: Stage, notes: list[str]) -> str:
  count = min(SAMPLED_STEPS, len(stage.samples))
  picked = [stage.samples[i * (len(stage.samples) - 1) // max(1, count - 1)] for i in range(count)]
  return "".join(sample_html(*sample, sample in (picked[0], picked[-1]), notes) for sample in picked)


def stage_line(stage: Stage) -> str:
  seconds = [row["seconds"] for row in stage.rows if row.get("seconds") is not None]
  return (f"{stage.name}: " + (f"step {stage.rows[-1]['step']:,}" if stage.rows else "not started")
          + (f", {show('seconds', seconds[-1])}" if seconds else ""))


def table_html(table: list[tuple]) -> str:
  head = "".join(f"<th>{esc(cell)}</th>" for cell in table[0])
  body = ["".join(f"<td>{esc(cell)}</td>" for cell in row) for row in table[1:]]
  rows = "".join(f"<tr>{row}</tr>" for row in body)
  return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def list_html(title: str, items: list[str], tag: str) -> str:
  body = "".join(f"<li>{esc(item)}</li>" for item in items)
  return f"<{tag}><h2>{title}</h2><ul>{body}</ul></{tag}>" if items else ""


def headlines(figures: Figures, stages: list[Stage]) -> str:
  """Accuracy and length side by side, in the spirit of R1-Zero's figures; a pair for each RL stage."""
  drawn = [(stage.name, body) for i, stage in enumerate(stages)
           if any("reward" in row for row in stage.rows)
           and (body := figures.headline(i, stage.rows))]
  if not drawn:
    return ""
  pairs = "".join((f"<h3>{esc(name)}</h3>" if len(drawn) > 1 else "") + f'<div class="pair">{body}</div>'
                  for name, body in drawn)
  return (f'<h2>Accuracy and length over training</h2>{pairs}<p class="note">Dots: evaluations on held-out '
          "problems. Pale: each point; strong: a running mean. The numbers above a chart are its last; point "
          "at it, or focus it and use the arrow keys, to read any other step.</p>")


def render(run: Run) -> str:
  figures, notes = Figures(), list(run.notes)
  look = [f"{stage.name}: {said}" for stage in run.stages for said in look_at(stage.rows)]
  body = headlines(figures, run.stages) + "".join(
    f'<h2>Curves of {esc(stage.name)}</h2>{figures.all(i, stage.rows)}'
    for i, stage in enumerate(run.stages) if stage.rows)
  bill, said = bill_of(run)
  if bill:
    body += f"<h2>What it cost</h2>{table_html(bill)}" + "".join(f'<p class="note">{esc(line)}</p>' for line in said)
  samples = [(stage.name, samples_html(stage, notes)) for stage in run.stages if stage.samples]
  body += "".join(f"<h2>Answers in {esc(name)}</h2>{shown}" for name, shown in samples if shown)
  if not any(shown for _, shown in samples):
    body += '<p class="note">No sample answers were found.</p>'
  css, js = (resources.files("r1jax.report").joinpath(name).read_text(encoding="utf-8")
             for name in ("report.css", "report.js"))
  ours = base64.b64encode(hashlib.sha256(js.encode()).digest()).decode()
  # "<" is the only character by which JSON could leave its script element
  data = json.dumps(figures.specs, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
  unfinished = "" if run.result is not None else "· <b>unfinished</b>, there is no result.json yet."
  progress = " · ".join(map(stage_line, run.stages)) or "no stage has run yet"
  return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{esc(run.title)}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{ours}'">
<style>{css}</style></head><body>
<header><h1>{esc(run.title)}</h1><p>{esc(progress)} {unfinished}</p></header>
<div class="top">{table_html(summary_of(run))}{list_html("What to look at", look, "aside")}</div>
<noscript><p class="note">A script inside this page draws its curves; scripts are switched off.</p></noscript>
{body}
<h2>Config</h2><details><summary>The resolved config of this run</summary>
<pre class="text">{esc(json.dumps(run.config, indent=2))}</pre></details>
{list_html("Notes on the files", notes, "section")}
<script type="application/json" id="charts">{data}</script><script>{js}</script></body></html>
"""
