"""What the doctor looks for in a stage's chart: one check a symptom, thresholds first.

A check takes the chart and yields findings with their numbers and the config key to try. Compared are the first fifth
of the steps and the last (advice.ends_of); a movement counts beyond two standard errors. Thresholds have their source
where there is one and "ours" where there is none: they say where to look, and are no verdict.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from typing import NamedTuple

from r1jax.report.advice import ends_of

TRUNCATED = 0.10          # ScaleRL (2510.13786): truncation of 10 to 15% predicts instability
TRUNCATED_BAD = 0.15
MISMATCH = 1e-3           # k3 between sampler and trainer; R3 (2510.11370) measured 6.4e-4 dense, 1.5e-3 MoE
MISMATCH_BAD = 1e-2       # a report has collapse within 20 steps at .013
AGREE = 0.5               # share of groups without advantage; ours
AGREE_BAD = 0.8
HARD, EASY = 0.1, 0.9     # accuracy; ScaleRL drops prompts of a pass rate of .9 and above. The lower one is ours
PARSE = 0.2               # share of answers that hold no readable one; ours
FORMAT_GAIN = 0.1         # format reward's rise at which accuracy should have risen too; ours
LENIENT_GAP = 0.1         # lenient above strict accuracy; ours. Qwen2.5-1.5B on GSM8K begins with .02 and .38
ENTROPY_FALL = 0.1        # last over first entropy; ours (Skywork-OR1, 2505.22312, on premature collapse)
KL = 0.5                  # nats a token from the reference; ours
CLIPPED = 0.2             # share of tokens whose gradient was clipped; ours. PPO's practice is below
SPIKE = 10.0              # largest over median gradient norm; ours
STILL = 1e-4              # KL to the reference, nats a token, of a policy that has hardly moved; ours
WRONG_GROWTH = 1.5        # of wrong answers' length, while right ones grow less than half as much; ours (2503.20783)
FEW_UPDATES = 50          # ours. R1-Zero: 10,400
LOST = 0.01               # share of answers that a verifier timed out on or refused; ours
TWINS = 0.5               # share of answers that repeat another of their group to the letter; ours
TWIN_TOKENS = 20          # shorter answers may well be the same


class Finding(NamedTuple):
  severity: str           # of SEVERITIES
  name: str               # short, fixed: "too hard", "truncation"
  says: str               # what the numbers are
  tries: str = ""         # config keys to try, with a value or a direction


class Chart(NamedTuple):
  """What the checks look at."""
  rows: list[dict]
  samples: list[dict]     # rows of the last sample table
  config: dict            # the whole run's
  stage: str

  def ends(self, key: str) -> tuple[float, float, float]:
    return ends_of(self.rows, key)

  def verdict(self, name: str) -> float:
    """Its share of the last answers; a row that does not name it has none."""
    judged = [{name: row.get(f"verdict/{name}") or 0.0} for row in self.rows if "accuracy" in row]
    return ends_of(judged, name)[1]

  def setting(self, path: str, default=None):
    value = self.config.get(self.stage) or {}
    for name in path.split("."):
      value = value.get(name) if isinstance(value, dict) else None
    return default if value is None else value

  def key(self, path: str) -> str:
    return f"{self.stage}.{path}"

  @property
  def solved(self) -> bool:
    return self.ends("accuracy")[1] > EASY

  @property
  def rose(self) -> bool:
    then, now, error = self.ends("reward")
    return now - then > 2 * error


def not_finite(chart: Chart):
  for key in ("loss", "grad_norm", "reward", "kl", "entropy"):
    if steps := [row["step"] for row in chart.rows if key in row and row[key] is None]:
      yield Finding("bad", "not finite", f"{key} was NaN or infinite in {len(steps)} row(s), first at step {steps[0]}",
                    f"{chart.key('optimizer.lr')} lower, {chart.key('optimizer.clip_norm')}=1.0")


def switched_off(chart: Chart):
  control = chart.setting("loss.negative_control", "none")
  rates = [row["lr"] for row in chart.rows if row.get("lr") is not None]
  if control != "none":
    yield Finding("bad", "control", f"negative_control={control}: this run is meant not to learn",
                  f"{chart.key('loss.negative_control')}=none")
  if rates and not any(rates):
    yield Finding("bad", "no rate", f"lr was 0 in all {len(rates)} rows", chart.key("optimizer.lr"))
  weights = chart.setting("rewards", {})
  if weights and not weights.get("accuracy"):
    yield Finding("warning", "no accuracy", f"rewards={weights}: nothing pays for right answers",
                  f"{chart.key('rewards.accuracy')}=1.0")


def movement(chart: Chart):
  """The complaint itself: flat, or down; and whether the policy moved at all."""
  updates = len(chart.rows) * chart.setting("minibatches", 1)
  if updates < FEW_UPDATES and not chart.solved:
    yield Finding("note", "few updates", f"{updates} updates so far; R1-Zero made 10,400, small tasks need"
                  f" {FEW_UPDATES} or more", f"{chart.key('rollouts')} higher")
  then, now, error = chart.ends("reward")
  lr = chart.setting("optimizer.lr", math.nan)
  if math.isinf(error) or math.isnan(now):
    yield Finding("note", "short", f"{len(chart.rows)} rows are too few to tell a trend from noise (20 are enough)")
    return
  if now - then < -2 * error:
    yield Finding("bad", "reward fell", f"reward {then:.3g} -> {now:.3g}, noise {error:.2g}",
                  f"{chart.key('optimizer.lr')} lower than {lr:g}, {chart.key('loss.kl_coef')} higher")
  elif not chart.rose and not chart.solved:
    yield Finding("bad", "reward flat", f"reward {then:.3g} -> {now:.3g}, noise {error:.2g}: no movement beyond it",
                  "see the findings below")
    kls = [row["kl"] for row in chart.rows if row.get("kl") is not None]
    if kls and max(kls) < STILL and chart.ends("zero_variance_share")[1] < AGREE_BAD:
      yield Finding("warning", "rate too low", f"the policy has hardly moved: KL to the reference {max(kls):.1g} nats a"
                    f" token at most (below {STILL:g}), lr {lr:g}", f"{chart.key('optimizer.lr')} 3 to 10 times higher")
  elif (accuracy := chart.ends("accuracy"))[1] < accuracy[0] - max(0.05, 2 * accuracy[2]):
    yield Finding("bad", "earned elsewhere", f"reward {then:.3g} -> {now:.3g}, but accuracy {accuracy[0]:.0%} ->"
                  f" {accuracy[1]:.0%}: another term pays", f"{chart.key('rewards')}: less weight on what rose")


def groups(chart: Chart):
  """Groups that agree have no advantage. Samples tell all-right from all-wrong ones, else mean accuracy does."""
  share, right = chart.ends("zero_variance_share")[1], chart.ends("accuracy")[1]
  if not share > AGREE:
    return
  severity = "bad" if share > AGREE_BAD else "warning"
  by_problem: dict = {}
  for row in chart.samples:
    by_problem.setdefault(row.get("problem"), []).append(row)
  agreeing = [rows for rows in by_problem.values() if len({row.get("reward") for row in rows}) == 1]
  all_right = sum(all(row.get("verdict") == "correct" for row in rows) for rows in agreeing)
  all_wrong = sum(all(row.get("verdict") != "correct" for row in rows) for rows in agreeing)
  counted = (f"; of the last {len(by_problem)} groups {all_right} are all right and {all_wrong} all wrong"
             if by_problem else "")
  said = f"{share:.0%} of groups agree and teach nothing, accuracy {right:.0%}{counted}"
  if right > EASY or (agreeing and all_right > 2 * all_wrong):
    yield Finding("note" if chart.solved else severity, "too easy", said, "task: harder problems;"
                  f" {chart.key('zero_variance')}=drop")
  elif right < HARD or (agreeing and all_wrong > 2 * all_right):
    yield Finding(severity, "too hard", said, f"task: easier problems; start: a better base; {chart.key('group_size')}"
                  f" higher than {chart.setting('group_size', '?')}")
  else:
    yield Finding(severity, "always or never", said + ": each problem is solved always or never",
                  f"{chart.key('group_size')} higher than {chart.setting('group_size', '?')};"
                  f" {chart.key('sampling.temperature')}=1.0")


def truncation(chart: Chart):
  share = chart.ends("truncated_share")[1]
  if share > TRUNCATED:
    yield Finding("bad" if share > TRUNCATED_BAD else "warning", "truncation",
                  f"{share:.0%} of answers are cut off at the limit (above {TRUNCATED:.0%} predicts instability),"
                  f" judged {chart.setting('truncated', '?')!r}",
                  f"{chart.key('sampling.max_tokens')} higher than {chart.setting('sampling.max_tokens', '?')};"
                  f" {chart.key('overlong_cushion')} above 0 (DAPO)")


def parsing(chart: Chart):
  parts = {name: chart.verdict(name) for name in ("no_answer", "unparseable")}
  share = sum(parts.values())
  if share > PARSE:
    shown = next((row for row in chart.samples if row.get("verdict") in parts), None)
    example = f", such as {str(shown.get('text'))[-60:]!r}" if shown else ""
    yield Finding("bad" if share > 0.5 else "warning", "no readable answer", ", ".join(
      f"{name} {value:.0%}" for name, value in parts.items() if value > 0) + example,
      f"{chart.key('rewards.format')} higher, with partial=True; task: a prompt that shows the form")


def format_against_content(chart: Chart):
  form, right = chart.ends("reward/format"), chart.ends("accuracy")
  gain, gained = form[1] - form[0], right[1] - right[0]
  if gain > FORMAT_GAIN and gained <= 2 * right[2] < math.inf:
    yield Finding("warning", "form, not content", f"format reward {form[0]:.2f} -> {form[1]:.2f}, accuracy"
                  f" {right[0]:.0%} -> {right[1]:.0%} (noise {right[2]:.1%})",
                  f"{chart.key('rewards.format')} lower, {chart.key('rewards.accuracy')} higher")
  strict, lenient = ([row[key] for row in chart.rows if row.get(key) is not None]
                     for key in ("eval/greedy_accuracy", "eval/greedy_lenient"))
  if strict and lenient and lenient[-1] - strict[-1] > LENIENT_GAP:
    yield Finding("warning", "strict below lenient", f"held-out: strict {strict[-1]:.0%}, lenient {lenient[-1]:.0%}:"
                  " right answers in a form that is not paid",
                  f"{chart.key('rewards.format')} higher; task: another prompt")


def entropy(chart: Chart):
  then, now, _ = chart.ends("entropy")
  temperature = chart.setting("sampling.temperature", 1.0)
  if now < ENTROPY_FALL * then and not chart.solved:
    yield Finding("bad", "entropy collapse", f"entropy {then:.2g} -> {now:.2g} nats a token at temperature"
                  f" {temperature:g}, accuracy {chart.ends('accuracy')[1]:.0%}",
                  f"{chart.key('loss.clip_high')}=0.28 with clip_low=0.2 (DAPO),"
                  f" {chart.key('optimizer.lr')} lower, {chart.key('sampling.temperature')}=1.0,"
                  f" {chart.key('minibatches')} fewer")
  texts = [(row.get("problem"), row.get("text")) for row in chart.samples if (row.get("length") or 0) >= TWIN_TOKENS]
  twins = 1 - len(set(texts)) / len(texts) if texts else 0.0
  if twins > TWINS and not chart.solved:
    yield Finding("warning", "twins", f"{twins:.0%} of the last answers repeat another of their group to the letter",
                  f"{chart.key('sampling.temperature')} higher than {temperature:g}")


def divergence(chart: Chart):
  """Too far, too fast: KL, clipping, gradients."""
  lr = chart.setting("optimizer.lr", math.nan)
  kl = chart.ends("kl")[1]
  if kl > KL:
    yield Finding("bad", "KL", f"KL to the reference is {kl:.2g} nats a token (above {KL:g})",
                  f"{chart.key('loss.kl_coef')} higher than {chart.setting('loss.kl_coef', math.nan):g},"
                  f" {chart.key('optimizer.lr')} lower than {lr:g}")
  if (share := chart.ends("clip_share")[1]) > CLIPPED:
    yield Finding("warning", "clipping", f"{share:.0%} of tokens are clipped at {chart.setting('loss.clip_low', '?')} /"
                  f" {chart.setting('loss.clip_high', '?')}", f"{chart.key('optimizer.lr')} lower than {lr:g},"
                  f" {chart.key('minibatches')} fewer than {chart.setting('minibatches', 1)},"
                  f" {chart.key('loss.clip_high')} higher")
  norms = [row["grad_norm"] for row in chart.rows if row.get("grad_norm")]
  if norms and max(norms) > SPIKE * statistics.median(norms) and not chart.rose and not chart.solved:
    yield Finding("warning", "rate too high", f"gradient norm {statistics.median(norms):.2g} in the middle,"
                  f" {max(norms):.2g} at its largest, and reward not up",
                  f"{chart.key('optimizer.lr')} lower than {lr:g}, {chart.key('optimizer.clip_norm')}=1.0")


def mismatch(chart: Chart):
  if (gap := chart.ends("mismatch/k3")[1]) > MISMATCH:
    yield Finding("bad" if gap > MISMATCH_BAD else "warning", "mismatch", f"sampler and trainer differ by k3 {gap:.1g}"
                  f" (healthy is below {MISMATCH:g})",
                  f"model.dtype=float32; {chart.key('routing_replay')}=True for MoE")


def lengths(chart: Chart):
  (wrong, wrong_now, _), (right, right_now, _) = chart.ends("length/wrong"), chart.ends("length/correct")
  growth, right_growth = wrong_now / wrong if wrong else math.nan, right_now / right if right else math.nan
  if growth > WRONG_GROWTH and not chart.solved and right_growth - 1 < (growth - 1) / 2:
    yield Finding("warning", "wrong answers grow", f"wrong answers {wrong:.4g} -> {wrong_now:.4g} tokens, right ones"
                  f" {right:.4g} -> {right_now:.4g}", f"{chart.key('loss.aggregation')}=token_mean or constant_divisor"
                  f" (now {chart.setting('loss.aggregation', '?')})")


def verifier(chart: Chart):
  for verdict in ("timeout", "refused"):
    if (share := chart.verdict(verdict)) > LOST:
      yield Finding("warning", verdict, f"the verdict on {share:.1%} of answers is {verdict!r}, paid as wrong",
                    "the verifier's time limit" if verdict == "timeout" else "the sandbox's limits; look at samples/")


CHECKS: tuple[Callable, ...] = (not_finite, switched_off, movement, groups, truncation, parsing,
                                format_against_content, entropy, divergence, mismatch, lengths, verifier)
