"""The page itself: HTML by Python, curves and the browser of answers by scripts, from embedded numbers and texts.

Sampled text is hostile by nature (a policy may write anything): all text passes through `esc` or `json_html`, and the
page's policy header allows no script but ours.
"""

from __future__ import annotations

import base64
import hashlib
import json
from importlib import resources

from r1jax.report import browser, hacking, stages
from r1jax.report.advice import look_at
from r1jax.report.figures import Figures
from r1jax.report.folder import Run, Stage, bill_of, show, summary_of
from r1jax.report.markup import esc, json_html, list_html, notes_html, table_html

SCRIPTS = ("lib.js", "charts.js", "browser.js")      # one script on the page
STYLES = ("report.css", "browser.css")
OPEN = 3               # of so many stages the curves are shown at once, those of more are folded up


def stage_line(stage: Stage) -> str:
  seconds = [row["seconds"] for row in stage.rows if row.get("seconds") is not None]
  return (f"{stage.name}: " + (f"step {stage.rows[-1]['step']:,}" if stage.rows else "not started")
          + (f", {show('seconds', seconds[-1])}" if seconds else ""))


def progress_line(run: Run) -> str:
  """How far the run is: stage by stage, or in one number where there are many."""
  if run.is_pipeline:
    done = sum(map(stages.finished, run.stages))
    seconds = sum(stages.seconds_of(stage) or 0 for stage in run.stages)
    return f"{done} of {len(run.stages)} stages finished · {show('seconds', seconds)} in stages"
  return " · ".join(map(stage_line, run.stages)) or "no stage has run yet"


def headlines(figures: Figures, run: Run) -> str:
  """Accuracy and length side by side, as in R1-Zero's figures; several RL stages one after the other on one axis."""
  of = [(i, stage) for i, stage in enumerate(run.stages) if stage.is_rl]
  drawn = figures.joined([(stage.name, stage.rows) for _, stage in of]) if len(of) > 1 else "".join(
    figures.headline(i, stage.rows) for i, stage in of)
  if not drawn:
    return ""
  joined = " Stages stand one after the other on the axis of updates; a line marks where each begins." * (len(of) > 1)
  return (f'<h2>Accuracy and length over training</h2><div class="pair">{drawn}</div><p class="note">Dots: evaluations '
          f"on held-out problems. Pale: each point; strong: a running mean.{joined} The numbers above a chart are its "
          "last; point at it, or focus it and use the arrow keys, to read any other step.</p>")


def curves_html(figures: Figures, run: Run) -> str:
  with_rows = [(i, stage) for i, stage in enumerate(run.stages) if stage.rows]
  several = sum(stage.is_rl for _, stage in with_rows) > 1      # then the pair at the top is of all of them

  def pair(i: int, stage: Stage) -> str:
    return f'<div class="pair">{figures.headline(i, stage.rows)}</div>' if several and stage.is_rl else ""
  drawn = [(stage.name, pair(i, stage) + figures.all(i, stage.rows)) for i, stage in with_rows]
  if len(drawn) <= OPEN:
    return "".join(f"<h2>Curves of {esc(name)}</h2>{body}" for name, body in drawn)
  return "<h2>Curves, stage by stage</h2>" + "".join(
    f'<details class="step"><summary>{esc(name)} <i>{esc(stage_line(stage).partition(": ")[2])}</i></summary>{body}'
    "</details>" for (name, body), (_, stage) in zip(drawn, with_rows, strict=True))


def bill_html(run: Run) -> str:
  bill, said = bill_of(run)
  return f"<h2>What it cost</h2>{table_html(bill)}{notes_html(said)}" if bill else ""


def render(run: Run) -> str:
  figures, notes = Figures(), list(run.notes)
  look = [f"{stage.name}: {said}" for stage in run.stages for said in look_at(stage.rows)] + hacking.hacked(run)
  aside = list_html("What to look at", look, "aside")
  top = (stages.table_html(run) + aside if run.is_pipeline and run.evals else
         f'<div class="top">{table_html(summary_of(run))}{aside}</div>')
  answers, answers_data = browser.section(run, notes)
  body = (headlines(figures, run) + stages.lineage_html(run) + stages.filters_html(run)
          + hacking.section(run, figures) + curves_html(figures, run) + bill_html(run) + answers)
  css, js = ("\n".join(resources.files("r1jax.report").joinpath(name).read_text(encoding="utf-8") for name in names)
             for names in (STYLES, SCRIPTS))
  ours = base64.b64encode(hashlib.sha256(js.encode()).digest()).decode()
  unfinished = "" if run.result is not None else "· <b>unfinished</b>, there is no result.json yet."
  return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{esc(run.title)}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{ours}'">
<style>{css}</style></head><body>
<header><h1>{esc(run.title)}</h1><p>{esc(progress_line(run))} {unfinished}</p></header>
{top}
<noscript><p class="note">A script inside this page draws its curves and shows its answers; scripts are switched off.
</p></noscript>
{body}
<h2>Config</h2><details><summary>The resolved config of this run</summary>
<pre class="text">{esc(json.dumps(run.config, indent=2))}</pre></details>
{list_html("Notes on the files", notes, "section")}
{json_html("charts", figures.specs)}{answers_data}<script>{js}</script></body></html>
"""
