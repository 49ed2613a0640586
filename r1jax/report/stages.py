"""A pipeline's stages: what starts from what, how long it took, why it was redone, what the filters left out."""

from __future__ import annotations

from r1jax.report.folder import NO_POLICY, Run, Stage, label, number, show
from r1jax.report.hacking import seen
from r1jax.report.markup import esc, notes_html

ROW, LANE, TOP = 36, 20, 36         # pixels: a row of the table, between two lines of the drawing, the table's header


def table_html(run: Run) -> str:
  """Figures down, policies across, as the paper's table of stages. The best of a row stands out if more is better."""
  policies = list(run.evals)
  names = list(dict.fromkeys(name for figures in run.evals.values() for name in figures))
  better = seen(names)
  rows = ""
  for name in names:
    values = [run.evals[policy].get(name) for policy in policies]
    best = max((v for v in map(number, values) if v is not None), default=None) if name in better else None
    tied = [number(v) for v in values].count(best)
    css = ['class="best"' if best is not None and number(v) == best and tied <= len(values) / 2 else "" for v in values]
    cells = "".join(f"<td {c}>{esc(show(name, v)) if v is not None else ''}</td>"
                    for c, v in zip(css, values, strict=True))
    rows += f"<tr><td>{esc(label(name))}</td>{cells}</tr>"
  head = "".join(f"<th>{esc(policy)}</th>" for policy in ("", *policies))
  return f'<div class="wide"><table class="stages"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def lanes(parents: list[list[int]]) -> list[int]:
  """The column of each row's dot, where row i comes from the rows parents[i], its policy's first.

  A dot keeps its column until its last child; a last child of a policy stands below it, others in the first free one.
  """
  last = list(range(len(parents)))
  for i, of in enumerate(parents):
    for parent in of:
      last[parent] = i
  lane: list[int] = []
  for i, of in enumerate(parents):
    if of and last[of[0]] == i:
      lane.append(lane[of[0]])
      continue
    busy = {lane[j] for j in range(i) if last[j] >= i}
    lane.append(next(x for x in range(i + 1) if x not in busy))
  return lane


def came_from(stages: list[Stage]) -> list[list[int]]:
  """Rows that each stage comes from: that of its policy, then that of its data."""
  rows = {stage.name: i for i, stage in enumerate(stages)}
  return [[rows[name] for name in dict.fromkeys((stage.start, stage.data)) if rows.get(name, i) < i]
          for i, stage in enumerate(stages)]


def drawing(stages: list[Stage]) -> str:
  """The lineage as an SVG beside the table's rows: policies along lines, data along dashes."""
  parents = came_from(stages)
  lane = lanes(parents)
  at = lambda i: (LANE * (lane[i] + 0.5), TOP + ROW * (i + 0.5))
  lines = dots = ""
  for i, stage in enumerate(stages):
    x, y = at(i)
    for parent in parents[i]:
      px, py = at(parent)
      data = stages[parent].name == stage.data and stages[parent].name != stage.start
      bend = f"V{y - 10} Q{px} {y} {px + (8 if x > px else -8)} {y} H{x}" if px != x else f"V{y}"
      lines += f'<path d="M{px} {py} {bend}" class="{"data" if data else "policy"}"/>'
    state = "done" if finished(stage) else "begun" if stage.rows or stage.samples else "waits"
    shape = (f'<rect x="{x - 5}" y="{y - 5}" width="10" height="10"' if stage.kind in NO_POLICY
             else f'<circle cx="{x}" cy="{y}" r="6"')
    dots += f'{shape} class="{state}"/>'
  width, height = LANE * (max(lane) + 1), TOP + ROW * len(stages)
  return f'<svg width="{width}" height="{height}" aria-hidden="true">{lines}{dots}</svg>'


def finished(stage: Stage) -> bool:
  return bool(stage.info.get("finished"))


def seconds_of(stage: Stage) -> float | None:
  """By stage.json, or by its last row."""
  logged = [row["seconds"] for row in stage.rows if row.get("seconds") is not None]
  told = stage.info.get("seconds")
  return told if isinstance(told, int | float) else logged[-1] if logged else None


def lineage_html(run: Run) -> str:
  """One line a stage; "" for a plain chain, of which there is nothing to tell."""
  if not run.is_pipeline or not run.stages:
    return ""
  rows = ""
  for stage in run.stages:
    steps = f"step {stage.rows[-1]['step']:,}" if stage.rows else ""
    state = "finished" if finished(stage) else f"under way, {steps}" if steps else "not begun"
    cells = (stage.name, stage.kind, stage.start, stage.data, show("seconds", seconds_of(stage)), state)
    rows += f"<tr>{''.join(f'<td>{esc(cell)}</td>' for cell in cells)}</tr>"
  head = "".join(f"<th>{name}</th>" for name in ("stage", "does", "starts from", "learns from", "time", "state"))
  why = [f"<li>{esc(stage.name)} was redone: {esc(stage.info['redone'])}</li>" for stage in run.stages
         if stage.info.get("redone")]
  redone = (f'<details class="note"{" open" * (len(why) < 4)}><summary>Why {len(why)} of the stages '
            f'{"was" if len(why) == 1 else "were"} redone</summary><ul>{"".join(why)}</ul></details>') if why else ""
  key = ("Lines: whose policy a stage starts from. Dashes: whose data it learns from. Discs are policies; squares are "
         "data and reward models; hollow is not finished.")
  return (f'<h2>Stages</h2><div class="lineage wide">{drawing(run.stages)}<table><thead><tr>{head}</tr></thead>'
          f"<tbody>{rows}</tbody></table></div>{redone}{notes_html([key])}")


def counts_of(stage: Stage) -> tuple[int, int, dict[str, int]] | None:
  """(sampled, kept, {filter: dropped}) of filters.json; None where there are none to be read."""
  found = stage.filters or {}
  dropped = found.get("dropped")
  whole = lambda x: isinstance(x, int) and x >= 0
  if not (whole(found.get("sampled")) and whole(found.get("kept")) and isinstance(dropped, dict)):
    return None
  return found["sampled"], found["kept"], {str(name): n for name, n in dropped.items() if whole(n)}


def filters_html(run: Run) -> str:
  """What became of the answers of each rejection stage: kept, or dropped by which filter."""
  counts = {stage.name: found for stage in run.stages if (found := counts_of(stage))}
  if not counts:
    return ""
  names = list(dict.fromkeys(name for _, _, dropped in counts.values() for name in dropped))
  css = {name: f"s{(1, 3, 4, 5, 0, 7)[i % 6]}" for i, name in enumerate(names)}     # the others are green, as kept is
  head = "".join(f'<th><i class="swatch {css.get(name, "kept")}"></i>{esc(name)}</th>' for name in ("kept", *names))
  rows = ""
  for stage, (sampled, kept, dropped) in counts.items():
    share = lambda n, of=sampled: f"{n:,} <i>{n / max(of, 1):.1%}</i>" if n is not None else ""
    cells = "".join(f"<td>{share(n)}</td>" for n in (kept, *(dropped.get(name) for name in names)))
    rows += f"<tr><td>{esc(stage)}{bar(sampled, kept, dropped, css)}</td><td>{sampled:,}</td>{cells}</tr>"
  others = {stage.name: stage.filters.get("other") for stage in run.stages if stage.name in counts}
  added = [f"{name}: {n:,} samples of other data were added to what was kept." for name, n in others.items()
           if isinstance(n, int) and n > 0]
  return (f'<h2>What rejection sampling left out</h2><div class="wide"><table class="filters"><thead><tr><th>stage</th>'
          f"<th>sampled</th>{head}</tr></thead><tbody>{rows}</tbody></table></div>{notes_html(added)}")


def bar(sampled: int, kept: int, dropped: dict[str, int], css: dict[str, str]) -> str:
  """The shares as one bar."""
  parts, at = "", 0.0
  for name, n in (("kept", kept), *dropped.items()):
    width = 100 * n / max(sampled, 1)
    parts += f'<rect x="{at:.3f}" y="0" width="{width:.3f}" height="1" class="{css.get(name, "kept")}"/>'
    at += width
  return f'<svg class="bar" viewBox="0 0 100 1" preserveAspectRatio="none" aria-hidden="true">{parts}</svg>'
