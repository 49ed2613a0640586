"""Which curves are drawn, and of what numbers; charts.js draws them."""

from __future__ import annotations

import fnmatch
import math
import statistics
from collections.abc import Sequence

from r1jax.report.folder import SHARE
from r1jax.report.markup import esc

POINTS = 500          # a curve on the page has no more points than this

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
  ("Held-out, beside accuracy", ("eval/language", "eval/format", "eval/general/*", "eval/unsafe/*"),
   "figures of evaluation"),
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
  ("Staleness", ("staleness",), "rollouts that the policy which drew the answers was behind, a mean over decode steps"),
  ("Model FLOPs utilisation", ("ledger/mfu",), "share of what the devices could do"),
  ("Device time", ("ledger/device_seconds", "ledger/device_seconds/*"), "seconds since the row before, by phase"),
  ("FLOPs", ("ledger/flops", "ledger/flops/*"), "since the row before, by phase"),
  ("Tokens", ("ledger/tokens_*",), "since the row before"),
)
LOGARITHMIC = ("Sampler against trainer", "Gradient norm", "KL to the reference")   # if values span decades


def curve(rows: list[dict], key: str, most: int = POINTS) -> dict | None:
  """One metric to draw. Past `most` steps a point is a mean of neighbours; lo and hi are their range."""
  points = [(row["step"], row[key]) for row in rows if key in row]
  if all(value is None for _, value in points):
    return None
  every = math.ceil(len(points) / most)
  chunks = [points[i:i + every] for i in range(0, len(points), every)]
  finite = [[value for _, value in chunk if value is not None] for chunk in chunks]

  def each(of):   # a chunk with nothing finite in it is a gap in the line
    return [float(f"{of(values):.6g}") if values else None for values in finite]
  name = NAMES.get(key) or key.partition("/")[2] or key
  ends = dict(lo=each(min), hi=each(max)) if every > 1 else {}
  return dict(name=name.replace("_", " "), marks=key.startswith("eval/"),
              x=[chunk[len(chunk) // 2][0] for chunk in chunks], y=each(statistics.fmean), **ends)


class Figures:
  """Collects what charts.js will draw, and gives the place on the page where it will draw it."""

  def __init__(self):
    self.specs: list[dict] = []

  def add(self, title: str, note: str, curves: list[dict], share: bool, **spec) -> str:
    spec = dict(title=title, share=share, tall=False, log=title in LOGARITHMIC, curves=curves) | spec
    self.specs.append(spec)
    return (f'<figure data-chart="{len(self.specs) - 1}"><figcaption><b>{esc(title)}</b> '
            f'<span>{esc(note)}</span></figcaption></figure>')

  def figure(self, stage: int, rows: list[dict], title: str, keys: Sequence[str], note: str, **spec) -> str:
    curves = [(key, drawn) for key in keys if (drawn := curve(rows, key))]
    if not curves:
      return ""
    return self.add(title, note, [drawn for _, drawn in curves], all(SHARE.match(key) for key, _ in curves),
                    stage=stage, x=[rows[0]["step"], rows[-1]["step"]], **spec)

  def headline(self, stage: int, rows: list[dict]) -> str:
    return "".join(self.figure(stage, rows, title, keys, note, tall=True) for title, keys, note in HEADLINE)

  def joined(self, stages: list[tuple[str, list[dict]]]) -> str:
    """The headline pair over several stages, one after the other on one axis, as the paper's Figure 1 has one."""
    return "".join(self._joined(stages, *figure) for figure in HEADLINE)

  def _joined(self, stages, title: str, keys: Sequence[str], note: str) -> str:
    curves: dict[str, dict] = {}
    bounds, end = [], 0
    for name, rows in stages:
      bounds.append(dict(at=end, name=name))
      for key in keys:
        if drawn := curve(rows, key, max(20, POINTS // len(stages))):
          whole = curves.setdefault(key, drawn | dict(x=[], y=[], lo=[], hi=[]))
          whole["x"] += [end + x for x in drawn["x"]]
          for edge in ("y", "lo", "hi"):
            whole[edge] += drawn.get(edge, drawn["y"])
      steps = [row["step"] for row in rows]
      end += steps[-1] + max(1, steps[-1] - steps[-2] if len(steps) > 1 else 1)
    for whole in curves.values():
      if whole["lo"] == whole["hi"]:
        del whole["lo"], whole["hi"]
    return self.add(title, note, list(curves.values()), all(map(SHARE.match, curves)), stage=-1, x=[0, end],
                    tall=True, bounds=bounds) if curves else ""

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
