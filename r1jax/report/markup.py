"""Text into HTML: everything that a run left is hostile until it has passed through here."""

from __future__ import annotations

import html
import json


def esc(text) -> str:
  return html.escape(str(text))


def table_html(table: list[tuple]) -> str:
  """Rows of strings; the first is the header."""
  head = "".join(f"<th>{esc(cell)}</th>" for cell in table[0])
  body = ["".join(f"<td>{esc(cell)}</td>" for cell in row) for row in table[1:]]
  rows = "".join(f"<tr>{row}</tr>" for row in body)
  return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def list_html(title: str, items: list[str], tag: str) -> str:
  body = "".join(f"<li>{esc(item)}</li>" for item in items)
  return f"<{tag}><h2>{title}</h2><ul>{body}</ul></{tag}>" if items else ""


def notes_html(lines: list[str]) -> str:
  return "".join(f'<p class="note">{esc(line)}</p>' for line in lines)


def json_html(id: str, value) -> str:
  """A value for the page's script. "<" is the only character by which JSON could leave its element."""
  data = json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
  return f'<script type="application/json" id="{id}">{data}</script>'
