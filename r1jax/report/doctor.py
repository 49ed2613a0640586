"""Why reward does not move: a run's numbers read as a physician reads a chart.

`diagnose` is a pure function of a stage's metric rows, its last sample table and the config; what it looks for is in
checks.py. A finding says what is seen, not what is proven: a rising length and truncation, say, often come together
and have one cause.
"""

from __future__ import annotations

import math

from r1jax.report.checks import CHECKS, Chart, Finding, not_finite

SEVERITIES = ("bad", "warning", "note", "good")


def diagnose(rows: list[dict], samples: list[dict], config: dict, stage: str = "reasoning_rl") -> list[Finding]:
  """Findings on one stage, worst first; a healthy one has a single "good" finding and perhaps notes."""
  if not rows:
    return [Finding("bad", "no rows", f"stage {stage} has logged nothing yet")]
  chart = Chart(rows, samples, config, stage)
  findings = [finding for check in (CHECKS if any("reward" in row for row in rows) else (not_finite,))
              for finding in check(chart)]
  if not any(finding.severity in ("bad", "warning") for finding in findings):
    findings.append(Finding("good", "healthy", vital_signs(chart)))
  return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))


def vital_signs(chart: Chart) -> str:
  """The numbers in one line, first fifth -> last fifth, or the last value where there are too few rows."""
  said = []
  for name, form in (("reward", ".3g"), ("accuracy", ".0%"), ("loss", ".3g"), ("length", ".4g"), ("entropy", ".2g"),
                     ("kl", ".2g"), ("zero_variance_share", ".0%"), ("truncated_share", ".0%"), ("mismatch/k3", ".1g")):
    values = [row[name] for row in chart.rows if row.get(name) is not None]
    if values:
      then, now, _ = chart.ends(name)
      said.append(f"{name} {values[-1]:{form}}" if math.isnan(now) else f"{name} {then:{form}} -> {now:{form}}")
  return f"{len(chart.rows)} rows: " + ", ".join(said)
