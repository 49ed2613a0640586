r"""IFEval (2311.07911): instructions that a rule can check. `prompt`, `instruction_id_list`, `kwargs`, one for each.

An answer is right if it follows all instructions of its prompt; the reward `instructions` is the share followed. Read
is the answer after the last </think>, inside <answer>..</answer> where there is one. STRICT reads it as it is;
LENIENT is the benchmark's loose accuracy: an instruction is followed if it is in one of eight readings, without the
first line, the last line, both or none, and with or without asterisks.

The rules are those of the benchmark's own program, so that scores can be compared: also that keywords are regular
expressions, that a bold text is a highlight too, that bullets begin with - or one *.
Five of the 25 are told by langdetect and NLTK (linguistic.py), as the released file of 541 prompts needs; a file that
has none of the five does without.
"""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path

from r1jax.data import read_jsonl
from r1jax.evals import linguistic
from r1jax.evals.formats import Benchmark, put, text_of
from r1jax.problem import Problem, Score

TOLD_BY = {"language:response_language": "langdetect", "change_case:english_capital": "langdetect",
           "change_case:english_lowercase": "langdetect", "length_constraints:number_sentences": "nltk",
           "change_case:capital_word_frequency": "nltk"}
RELATIONS = ("less than", "at least")
OPTIONS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")


def load(path: str | Path, template: str) -> Benchmark:
  """NotImplementedError, with their names, for instructions that are unknown, or that want what is not installed."""
  problems, unknown, without = [], {}, 0
  missing = functools.cache(linguistic.missing)
  for number, row in read_jsonl(path):
    prompt, ids, kwargs = text_of(path, number, row, "prompt"), row.get("instruction_id_list"), row.get("kwargs")
    if not isinstance(ids, list) or not ids or not isinstance(kwargs, list) or len(ids) != len(kwargs) or not all(
        isinstance(i, str) and isinstance(k, dict | None) for i, k in zip(ids, kwargs, strict=True)):
      raise ValueError(f"{path}:{number}: 'instruction_id_list' and 'kwargs' must be lists of one length, of names and"
                       f" objects")
    if strange := [i for i in ids if i not in CHECKS]:
      unknown |= dict.fromkeys(strange)
      without += 1
      continue
    for i in ids:
      if i in TOLD_BY and (lacking := missing(TOLD_BY[i])):
        raise NotImplementedError(f"{path}:{number}: {i} needs {lacking}")
    gold = [dict(id=i, args={name: value for name, value in (k or {}).items() if value is not None})
            for i, k in zip(ids, kwargs, strict=True)]
    for instruction in gold:
      try:
        check(instruction["id"], "some words", instruction["args"])
      except (ValueError, OverflowError, re.error) as error:
        raise ValueError(f"{path}:{number}: {instruction['id']}: {error}") from error
    problems.append(Problem(number - 1, put(template, prompt), json.dumps(gold)))
  if unknown:
    raise NotImplementedError(f"{path}: {without} of {without + len(problems)} prompts have instructions that are not"
                              f" checked here: {', '.join(sorted(unknown))}")
  # some rules take quadratic time on hostile text, such as many brackets that never close
  return Benchmark("ifeval", problems, dict(rewards=dict(accuracy=accuracy, instructions=share),
                                            lenient=functools.partial(accuracy, strict=False)), hangs=True)


def accuracy(problem: Problem, text: str, *, strict: bool = True) -> Score:
  followed = _followed(problem, text, strict)
  if followed is None:
    return Score(0.0, "no_answer")
  return Score(float(all(followed)), "correct" if all(followed) else "wrong")


def share(problem: Problem, text: str) -> Score:
  """How many of the instructions are followed, strictly."""
  followed = _followed(problem, text, True) or [False]
  return Score(sum(followed) / len(followed))


def check(id: str, text: str, args: dict) -> bool:
  """Whether a text follows one instruction. ValueError for arguments that the instruction does not take."""
  rule, kinds = CHECKS[id]
  if args.keys() != kinds.keys():
    raise ValueError(f"takes {', '.join(kinds) or 'no arguments'}, got {', '.join(args) or 'none'}")
  for name, value in args.items():
    kind = kinds[name]
    fine = ((value in RELATIONS if kind == "relation" else
             isinstance(value, int) and not isinstance(value, bool) and value >= 0) if kind in ("relation", int)
            else isinstance(value, list) and value and all(isinstance(v, str) and v for v in value) if kind is list
            else isinstance(value, str) and value.strip())
    if not fine:
      raise ValueError(f"{name}={str(value)[:80]!r} is not {getattr(kind, '__name__', ' or '.join(RELATIONS))}")
  return bool(text.strip()) and rule(text, **args)


def _followed(problem: Problem, text: str, strict: bool) -> list[bool] | None:
  said = text.rpartition("</think>")[2]
  if "<answer>" in said:
    said = said.partition("<answer>")[2].partition("</answer>")[0]
  if not said.strip():
    return None
  readings = [said] if strict else _loose(said)
  return [any(check(i["id"], reading, i["args"]) for reading in readings) for i in json.loads(problem.answer)]


def _loose(text: str) -> list[str]:
  lines = text.split("\n")
  parts = [text, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
  return parts + [part.replace("*", "") for part in parts]


def _in_language(text, language):
  if language not in linguistic.languages():
    raise ValueError(f"language={language[:80]!r} is none of {', '.join(sorted(linguistic.languages()))}")
  return linguistic.in_language(text, language)


def _compare(count: int, relation: str, wanted: int) -> bool:
  return count < wanted if relation == "less than" else count >= wanted


def _all_there(text, keywords):
  patterns = [re.compile(word, re.IGNORECASE) for word in keywords]      # all of them: `load` hears of any bad one
  return all(pattern.search(text) for pattern in patterns)


def _keyword_count(text, keyword, frequency, relation):
  return _compare(len(re.findall(keyword.strip(), text, re.IGNORECASE)), relation, frequency)


def _none_there(text, forbidden_words):
  patterns = [re.compile(rf"\b{word}\b", re.IGNORECASE) for word in forbidden_words]
  return not any(pattern.search(text) for pattern in patterns)


def _letter_count(text, letter, let_frequency, let_relation):
  if len(letter.strip()) != 1:
    raise ValueError(f"letter={letter[:80]!r} is not one letter")
  return _compare(text.lower().count(letter.strip().lower()), let_relation, let_frequency)


def _word_count(text, num_words, relation):
  return _compare(len(re.findall(r"\w+", text)), relation, num_words)


def _paragraphs(text, num_paragraphs):
  parts = [bool(part.strip()) for part in re.split(r"\s?\*\*\*\s?", text)]
  return all(parts[1:-1]) and sum(parts) == num_paragraphs


def _first_word(text, num_paragraphs, nth_paragraph, first_word):
  parts = text.split("\n\n")
  count = sum(bool(part.strip()) for part in parts)
  if not 1 <= nth_paragraph <= num_paragraphs:
    raise ValueError(f"nth_paragraph={nth_paragraph} must be within 1 and num_paragraphs={num_paragraphs}")
  if count != num_paragraphs or not parts[nth_paragraph - 1].strip():
    return False
  word = parts[nth_paragraph - 1].split()[0].lstrip("'").lstrip('"')
  return re.split("""[.,?!'"]""", word)[0].lower() == first_word.lower()


def _bullets(text, num_bullets):
  stars, dashes = r"^\s*\*[^\*].*$", r"^\s*-.*$"
  return sum(len(re.findall(p, text, re.MULTILINE)) for p in (stars, dashes)) == num_bullets


def _highlights(text, num_highlights):
  single = [part.strip("*") for part in re.findall(r"\*[^\n\*]*\*", text)]
  double = [part.removeprefix("**").removesuffix("**") for part in re.findall(r"\*\*[^\n\*]*\*\*", text)]
  return sum(bool(part.strip()) for part in single + double) >= num_highlights


def _sections(text, section_spliter, num_sections):
  return len(re.findall(rf"\s?{section_spliter.strip()}\s?\d+\s?", text)) >= num_sections


def _postscript(text, postscript_marker):
  marker = postscript_marker.strip()
  pattern = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}.get(marker, marker.lower())
  return bool(re.search(pattern, text.lower()))


def _json(text):
  inside = text.strip()
  for fence in ("```json", "```Json", "```JSON", "```"):
    inside = inside.removeprefix(fence)
  try:
    json.loads(inside.removesuffix("```").strip())
  except (ValueError, RecursionError):
    return False
  return True


def _two(text):
  parts = [part.strip() for part in text.split("******")]
  said = [part for part in parts if part]
  return all(parts[1:-1]) and len(said) == 2 and said[0] != said[1]


# instruction -> (rule, its arguments)
CHECKS = {
  "keywords:existence": (_all_there, dict(keywords=list)),
  "keywords:frequency": (_keyword_count, dict(keyword=str, frequency=int, relation="relation")),
  "keywords:forbidden_words": (_none_there, dict(forbidden_words=list)),
  "keywords:letter_frequency": (_letter_count, dict(letter=str, let_frequency=int, let_relation="relation")),
  "length_constraints:number_words": (_word_count, dict(num_words=int, relation="relation")),
  "length_constraints:number_paragraphs": (_paragraphs, dict(num_paragraphs=int)),
  "length_constraints:nth_paragraph_first_word": (_first_word, dict(num_paragraphs=int, nth_paragraph=int,
                                                                    first_word=str)),
  "detectable_content:number_placeholders": (lambda text, num_placeholders: len(re.findall(r"\[.*?\]", text))
                                             >= num_placeholders, dict(num_placeholders=int)),
  "detectable_content:postscript": (_postscript, dict(postscript_marker=str)),
  "detectable_format:number_bullet_lists": (_bullets, dict(num_bullets=int)),
  "detectable_format:constrained_response": (lambda text: any(option in text for option in OPTIONS), {}),
  "detectable_format:number_highlighted_sections": (_highlights, dict(num_highlights=int)),
  "detectable_format:multiple_sections": (_sections, dict(section_spliter=str, num_sections=int)),
  "detectable_format:json_format": (_json, {}),
  "detectable_format:title": (lambda text: any(t.lstrip("<").rstrip(">").strip()
                                               for t in re.findall(r"<<[^\n]+>>", text)), {}),
  "combination:two_responses": (_two, {}),
  "combination:repeat_prompt": (lambda text, prompt_to_repeat: text.strip().lower().startswith(
    prompt_to_repeat.strip().lower()), dict(prompt_to_repeat=str)),
  "startend:end_checker": (lambda text, end_phrase: text.strip().strip('"').lower().endswith(
    end_phrase.strip().lower()), dict(end_phrase=str)),
  "startend:quotation": (lambda text: len(text.strip()) > 1 and text.strip()[0] == text.strip()[-1] == '"', {}),
  "punctuation:no_comma": (lambda text: "," not in text, {}),
  "language:response_language": (_in_language, dict(language=str)),
  "change_case:english_capital": (lambda text: text.isupper() and linguistic.in_language(text, "en"), {}),
  "change_case:english_lowercase": (lambda text: text.islower() and linguistic.in_language(text, "en"), {}),
  "change_case:capital_word_frequency": (
    lambda text, capital_frequency, capital_relation: _compare(linguistic.capital_words(text), capital_relation,
                                                               capital_frequency),
    dict(capital_frequency=int, capital_relation="relation")),
  "length_constraints:number_sentences": (
    lambda text, num_sentences, relation: _compare(linguistic.sentences(text), relation, num_sentences),
    dict(num_sentences=int, relation="relation")),
}
