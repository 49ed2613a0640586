"""Chats: messages become one text by the model's own jinja template, and that text becomes tokens.

A template comes with a model and is not trusted: it runs in jinja's immutable sandbox, as in transformers. Messages are
not trusted either: control tokens in them stay text. Two things that transformers leaves to the caller are done here,
as R1's template cuts the reasoning out of every earlier answer and later releases of it open the answer with <think>:
`prompt_tokens` opens the reasoning or not, and `training_tokens` keeps the reasoning and says what to train on.
"""

from __future__ import annotations

import datetime
import functools
import json
import re
import traceback
from collections.abc import Callable, Mapping, Sequence

import jinja2
import jinja2.ext
import jinja2.sandbox

from r1jax.tokenizer import Tokenizer

THINK, THINK_END = "<think>\n", "</think>"
MARKS = "generation_marks"   # the name under which a template's context holds what to put around {% generation %}
RARE = range(0x20000, 0x2A6D0)   # ideographs that few texts hold; as letters, they survive repr, trim, upper and tojson


class _Generation(jinja2.ext.Extension):
  """{% generation %}...{% endgeneration %}, transformers' tag for what the assistant says: renders what it holds."""
  tags = frozenset({"generation"})

  def parse(self, parser):
    line = next(parser.stream).lineno
    body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
    call = self.call_method("_marked", [jinja2.nodes.ContextReference()])
    return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

  def _marked(self, context, caller):
    before, after = context.get(MARKS, ("", ""))
    return before + caller() + after


def render(template: str, messages: Sequence[Mapping], *, add_generation_prompt: bool = True, bos_token: str = "",
           eos_token: str = "", tools: Sequence[Mapping] | None = None, **extra) -> str:
  """The chat's text. Messages, tools and extra are JSON-like; the template sees copies.

  Raises ValueError, with the template's line, for whatever goes wrong in the template: syntax, a forbidden access, its
  own raise_exception. The sandbox bounds range() to 100,000; it does not bound time.
  """
  try:
    compiled = _compile(template)
    return compiled.render(messages=_plain(messages), tools=_plain(tools), documents=None, bos_token=bos_token,
                           eos_token=eos_token, add_generation_prompt=add_generation_prompt, **_plain(extra))
  except _NotPlain as error:
    raise ValueError(str(error)) from None
  except Exception as error:   # a template can raise anything: TypeError, ZeroDivisionError, RecursionError
    lines = [getattr(error, "lineno", None)]
    lines += [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == "<template>"]
    raise ValueError(f"chat template, line {lines[-1] or '?'}: {error or type(error).__name__}") from error


@functools.lru_cache(maxsize=16)
def _compile(template: str) -> jinja2.Template:
  env = jinja2.sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols])

  def raise_exception(message):
    raise jinja2.TemplateError(message)

  def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    # jinja's own writes < as \u003c, for HTML
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

  env.filters["tojson"] = tojson
  env.globals["raise_exception"] = raise_exception
  env.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
  return env.from_string(template)


class _NotPlain(ValueError):
  pass


def _plain(value, change: Callable[[str], str] = lambda text: text):
  """A copy with every string changed. Nothing else than JSON's types: a template may call an object's methods."""
  if value is None or type(value) in (bool, int, float):
    return value
  if isinstance(value, str):
    return change(str.__str__(value))
  if isinstance(value, Mapping):
    return {_plain(k, change): _plain(v, change) for k, v in value.items()}
  if isinstance(value, list | tuple):
    return [_plain(v, change) for v in value]
  raise _NotPlain(f"a chat holds text, numbers, lists and dicts, not {type(value).__name__} ({str(value)[:60]})")


def encode(tokenizer: Tokenizer, messages: Sequence[Mapping], *, add_generation_prompt: bool = True,
           tools: Sequence[Mapping] | None = None, **extra) -> list[int]:
  """Tokens of a chat: those of transformers' apply_chat_template, unless the chat's words contain a control token.

  Such words (`Tokenizer.controls`; in messages, tools and extra) stay text: the string is cut after its first
  character before the template sees it, and the rendered text is encoded in parts, so that no part holds it. Where a
  tokenizer puts a space before every text (SentencePiece), one appears at the cut. Not covered: a template that itself
  builds control tokens out of the chat's words, as '<|' + role + '|>'; roles are the caller's to check.
  """
  drawing = _Drawing(tokenizer, messages, tools, extra)
  return tokenizer.encode_markup(drawing.text(messages, add_generation_prompt), drawing.cut)[0]


def prompt_tokens(tokenizer: Tokenizer, messages: Sequence[Mapping], think_prefill: bool | None = None, *,
                  tools: Sequence[Mapping] | None = None, **extra) -> list[int]:
  """Tokens after which the assistant speaks. think_prefill: the prompt ends with "<think>\\n" (True), it does not
  (False), or as the template has it (None)."""
  drawing = _Drawing(tokenizer, messages, tools, extra)
  return tokenizer.encode_markup(drawing.prompt(messages, think_prefill), drawing.cut)[0]


def training_tokens(tokenizer: Tokenizer, messages: Sequence[Mapping], keep_reasoning: bool = True, *,
                    think_prefill: bool | None = None, tools: Sequence[Mapping] | None = None, **extra
                    ) -> tuple[list[int], list[int]]:
  """(ids, mask) of a whole chat; mask is 1 on what the assistant must produce: its words and the end token.

  keep_reasoning: where the template would drop an answer's reasoning, the part up to </think> is swapped for one
  unused character, which a template can neither split nor trim, and put back after rendering. Where the template
  writes the reasoning (of the last answer, say), all is as in transformers. False: as the template has it.

  The mask is the template's own where it has {% generation %}. Else an answer begins where the prompt before it ends
  (with think_prefill, as in `prompt_tokens`: an opening <think> that the prompt gives is not trained on) and ends with
  the first end token that the template writes. A token across such a border counts as the assistant's.
  Raises ValueError where that cannot be told.
  """
  drawing = _Drawing(tokenizer, messages, tools, extra)
  if keep_reasoning:
    messages = drawing.hide_reasoning(messages)
  marked = drawing.text(messages, False, marks=True)
  text = re.sub(f"[{drawing.begin}{drawing.end}]", "", marked)
  spans = drawing.generation_spans(marked) if drawing.begin in marked else [
    drawing.answer_span(text, messages, i, think_prefill) for i, m in enumerate(messages) if m["role"] == "assistant"]
  ids, places = tokenizer.encode_markup(text, drawing.cut)
  said = bytearray(len(text) - text.count(drawing.cut))
  for span in spans:
    begin, end = (at - text.count(drawing.cut, 0, at) for at in span)   # a cut is no character
    said[begin:end] = b"\1" * (end - begin)
  return ids, [int(any(said[begin:end])) for begin, end in places]


class _Drawing:
  """Renders parts of one chat, all with the same marks: characters that occur nowhere in the chat."""

  def __init__(self, tokenizer: Tokenizer, messages, tools, extra):
    _check(messages)
    self.tokenizer = tokenizer
    name = "tool_use" if tools is not None and "tool_use" in tokenizer.templates else "default"   # as transformers does
    if name not in tokenizer.templates:
      raise ValueError("this tokenizer has no chat template (chat_template of tokenizer_config.json)")
    self.template = tokenizer.templates[name]
    used = set(self.template)
    _plain([messages, tools, extra], lambda text: used.update(text) or text)
    free = (chr(c) for c in RARE if chr(c) not in used)
    self.cut, self.begin, self.end = (next(free) for _ in range(3))
    self.veils = [next(free) for _ in messages]   # one for each message's reasoning
    self.hidden: dict[str, str] = {}              # veil -> what is behind it
    guard = functools.partial(tokenizer.guard, mark=self.cut)
    self.guard = functools.partial(_plain, change=guard)
    self.options = tokenizer.special_texts | self.guard(extra) | dict(tools=self.guard(tools))

  def text(self, messages, add_generation_prompt: bool, marks: bool = False) -> str:
    """The chat's text, with cuts inside control tokens that are words, and marks around {% generation %} if wanted."""
    options = self.options | ({MARKS: (self.begin, self.end)} if marks else {})
    text = render(self.template, self.guard(messages), add_generation_prompt=add_generation_prompt, **options)
    for veil, words in self.hidden.items():
      text = text.replace(veil, self.guard(words))
    return text

  def prompt(self, messages, think_prefill: bool | None) -> str:
    text = self.text(messages, True)
    if think_prefill is None:
      return text
    # only what the prompt adds is looked at: a message may end with <think> too
    opening = text[_shared(text, self.text(messages, False)):]
    found = re.search(r"<think>\n?\Z", opening)
    if think_prefill:
      return text if found else text + THINK
    return text.removesuffix(found[0]) if found else text

  def hide_reasoning(self, messages) -> list[dict]:
    """The messages, with a veil in place of each reasoning that the template would drop."""
    probe, shown = [dict(m) for m in messages], [dict(m) for m in messages]
    for m, veil in zip(probe, self.veils, strict=True):
      before, tag, after = _content_of(m).rpartition(THINK_END)
      if tag:
        m["content"] = before + veil + tag + after
      elif _reasons_apart(m):
        m["reasoning_content"] += veil
    text, hidden = self.text(probe, False), {}
    for i, (m, veil) in enumerate(zip(shown, self.veils, strict=True)):
      before, tag, after = _content_of(m).rpartition(THINK_END)
      if veil in text or not (tag or _reasons_apart(m)):
        continue
      if not tag:
        raise ValueError(f"message {i} has reasoning_content, which the template does not write:"
                         " put it into the content, between <think> and </think>")
      m["content"], hidden[veil] = veil + after, before + tag
    text = self.text(shown, False)
    if missing := [i for i, veil in enumerate(self.veils) if veil in hidden and veil not in text]:
      raise ValueError(f"the template does not write the content of messages {missing}")
    self.hidden = hidden
    return shown

  def generation_spans(self, marked: str) -> list[tuple[int, int]]:
    """Where {% generation %} was, in the text without marks."""
    spans, at = [], 0
    for piece in re.split(f"([{self.begin}{self.end}])", marked):
      if piece == self.begin:
        spans.append([at, at])
      elif piece == self.end:
        spans[-1][1] = at
      else:
        at += len(piece)
    return spans

  def answer_span(self, text: str, messages, i: int, think_prefill: bool | None) -> tuple[int, int]:
    """Where message i is in the whole chat's text: from the end of the prompt before it through its end token."""
    prompts = (self.prompt(messages[:i], prefill) for prefill in (think_prefill, False))
    start = next((len(prompt) for prompt in prompts if text.startswith(prompt)), None)
    if start is None:
      raise ValueError(f"cannot tell where message {i} begins: the prompt before it is not how the whole chat's text"
                       " begins. A template says it with {% generation %}")
    upto = self.text(messages[:i + 1], False)
    limit = len(upto) if text.startswith(upto) else len(text)
    ends = [self.tokenizer.backend.id_to_token(e) for e in self.tokenizer.end_ids]
    found = re.compile("|".join(map(re.escape, ends))).search(text, start, limit)
    if not found:
      raise ValueError(f"the template writes none of the end tokens {ends} after message {i}:"
                       " the assistant would never learn to stop")
    return start, found.end()


def _check(messages) -> None:
  if not isinstance(messages, list | tuple) or not messages:
    raise ValueError("a chat needs at least one message, in a list")
  for i, m in enumerate(messages):
    if not isinstance(m, Mapping) or not isinstance(m.get("role"), str):
      raise ValueError(f"message {i} needs a role, and a content: {str(m)[:60]}")


def _shared(a: str, b: str) -> int:
  """Characters that both begin with."""
  return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _content_of(m: Mapping) -> str:
  return m["content"] if m["role"] == "assistant" and isinstance(m.get("content"), str) else ""


def _reasons_apart(m: Mapping) -> bool:
  return m["role"] == "assistant" and isinstance(m.get("reasoning_content"), str)
