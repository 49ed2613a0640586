"""IFEval: its rows, its rules, its two accuracies."""

import importlib.util
import json

import nltk
import pytest

from r1jax.evals import formats, ifeval
from r1jax.rewards import sending

IF = dict(key=1, prompt="Write.", instruction_id_list=["punctuation:no_comma", "length_constraints:number_words"],
          kwargs=[{}, dict(num_words=3, relation="at least", keyword=None)])


@pytest.fixture(scope="module", autouse=True)
def sentences(tmp_path_factory):
  """A model of English sentences, in the files that NLTK's own comes in: it knows one abbreviation."""
  folder = tmp_path_factory.mktemp("nltk")
  english = folder / "tokenizers" / "punkt_tab" / "english"
  english.mkdir(parents=True)
  for name, text in {"abbrev_types.txt": "mr\n", "sent_starters.txt": "", "collocations.tab": "",
                     "ortho_context.tab": ""}.items():
    (english / name).write_text(text)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(nltk.data, "path", [str(folder)])
    yield


def write(path, *rows):
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return path


def verdict(found, text, i=0):
  return found.scoring["rewards"]["accuracy"](found.problems[i], text).verdict


def test_ifeval_counts_all_instructions_and_their_share(tmp_path):
  found = formats.read(write(tmp_path / "a.jsonl", IF), "{question}")
  problem, scoring = found.problems[0], found.scoring
  assert problem.prompt == "Write." and found.hangs
  assert sending.dump(scoring["rewards"] | dict(lenient=scoring["lenient"]))      # for the workers
  both, one = "<think>a, b</think>three words here", "<answer>two, words</answer>"
  assert verdict(found, both) == "correct" and verdict(found, one) == "wrong"
  assert verdict(found, "<think>x</think>") == "no_answer"
  assert scoring["rewards"]["instructions"](problem, both).value == 1
  assert scoring["rewards"]["instructions"](problem, "yes").value == 0.5
  assert verdict(found, "Sure, here:\nthree words here") == "wrong"
  assert scoring["lenient"](problem, "Sure, here:\nthree words here").verdict == "correct"


@pytest.mark.parametrize("instruction, name, words", [
  ("keywords:existence", "keywords", ["zzz", "("]), ("keywords:forbidden_words", "forbidden_words", ["some", "("]),
  ("keywords:existence", "keywords", ["a{99999999999}"])])
def test_ifeval_refuses_any_pattern_that_is_none(instruction, name, words, tmp_path):
  row = IF | dict(instruction_id_list=[instruction], kwargs=[{name: words}])
  with pytest.raises(ValueError, match=rf"a.jsonl:2: {instruction}: (missing \)|the repetition number)"):
    formats.read(write(tmp_path / "a.jsonl", IF, row), "{question}")


def test_ifeval_refuses_what_it_cannot_check_by_name(tmp_path):
  other = IF | dict(instruction_id_list=["change_case:english_capital", "new:one", "another:one"], kwargs=[{}, {}, {}])
  with pytest.raises(NotImplementedError, match=r"1 of 2 prompts .*: another:one, new:one"):
    formats.read(write(tmp_path / "a.jsonl", IF, other), "{question}")
  for kwargs, reason in (
      ([{}], "lists of one length"), ([{}, dict(num_words=3)], "takes num_words, relation, got num_words"),
      ([{}, dict(num_words=3, relation="about")], "relation='about' is not less than or at least")):
    with pytest.raises(ValueError, match=reason):
      formats.read(write(tmp_path / "a.jsonl", IF | dict(kwargs=kwargs)), "{question}")


def test_what_is_not_installed_is_named_with_its_command(tmp_path, monkeypatch):
  both = IF | dict(instruction_id_list=["change_case:english_capital", "length_constraints:number_sentences"],
                   kwargs=[{}, dict(num_sentences=3, relation="at least")])
  path = write(tmp_path / "a.jsonl", IF, both)
  assert len(formats.read(path, "{question}").problems) == 2
  with monkeypatch.context() as patch:
    patch.setattr(nltk.data, "path", [])
    with pytest.raises(NotImplementedError, match=r"a.jsonl:2: .*number_sentences needs .*nltk.downloader punkt_tab"):
      formats.read(path, "{question}")
  find = importlib.util.find_spec
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "langdetect" else find(name))
  with pytest.raises(NotImplementedError, match=r"a.jsonl:2: .* needs langdetect: pip install \"r1jax\[ifeval\]\""):
    formats.read(path, "{question}")
  assert len(formats.read(write(path, IF), "{question}").problems) == 1            # a file without them needs neither


def test_languages_are_those_that_can_be_told(tmp_path):
  german = IF | dict(instruction_id_list=["language:response_language"], kwargs=[dict(language="de")])
  path = write(tmp_path / "a.jsonl", german)
  found = formats.read(path, "{question}")
  text = "Das ist leider nicht so einfach, sagte sie und ging."
  assert len({verdict(found, text) for _ in range(20)}) == 1 and verdict(found, text) == "correct"
  assert verdict(found, "That is not so simple, she said, and left.") == "wrong"
  german["kwargs"] = [dict(language="German")]
  with pytest.raises(ValueError, match=r"a.jsonl:1: .*language='German' is none of .*de, .*zh-cn"):
    formats.read(write(path, german), "{question}")


@pytest.mark.parametrize("id, args, good, bad", [
  ("keywords:existence", dict(keywords=["Cat", "dog"]), "a cat, dogs", "a cat"),
  ("keywords:frequency", dict(keyword="to ", frequency=2, relation="less than"), "to", "Tomato"),
  ("keywords:forbidden_words", dict(forbidden_words=["cat"]), "cats", "a CAT."),
  ("keywords:letter_frequency", dict(letter="A", let_frequency=2, let_relation="at least"), "aA", "a"),
  ("length_constraints:number_words", dict(num_words=3, relation="less than"), "it's", "it's me"),
  ("length_constraints:number_paragraphs", dict(num_paragraphs=2), "***a\n***\nb", "a\n***\n***\nb"),
  ("length_constraints:nth_paragraph_first_word", dict(num_paragraphs=2, nth_paragraph=2, first_word="Hi"),
   "a\n\n\"hi, you", "a\n\nhim"),
  ("detectable_content:number_placeholders", dict(num_placeholders=2), "[a] [b]", "[a b]"),
  ("detectable_content:postscript", dict(postscript_marker="P.S."), "x\np. s. y", "x PS"),
  ("detectable_content:postscript", dict(postscript_marker="P.P.S"), "x\nP.P.S. y", "x\nP.S. y"),
  ("detectable_format:number_bullet_lists", dict(num_bullets=2), "* a\n - b\n**c**", "* a"),
  ("detectable_format:constrained_response", {}, "Well: My answer is no.", "no"),
  ("detectable_format:number_highlighted_sections", dict(num_highlights=2), "*a* *b*", "*a* * *"),
  ("detectable_format:number_highlighted_sections", dict(num_highlights=2), "*a* **b**", "**a** ** **"),
  ("detectable_format:multiple_sections", dict(section_spliter="SECTION", num_sections=2), "SECTION 1 a\nSECTION 2",
   "SECTION 1"),
  ("detectable_format:json_format", {}, "```json\n{\"a\": 1}\n```", "a {}"),
  ("detectable_format:title", {}, "<<a>>", "<< >>"),
  ("combination:two_responses", {}, "a\n******\nb", "a******a"),
  ("combination:repeat_prompt", dict(prompt_to_repeat="Say It"), " say it. Yes", "I say it"),
  ("startend:end_checker", dict(end_phrase="The end."), "x. the END.\"", "the end. x"),
  ("startend:quotation", {}, ' "a" ', '"'),
  ("punctuation:no_comma", {}, "a b", "a, b"),
  ("language:response_language", dict(language="fr"), "Je ne sais pas ce que vous voulez dire.", "I do not know that."),
  ("language:response_language", dict(language="ja"), "これは日本語の文です。", "This is a sentence."),
  ("language:response_language", dict(language="sw"), "12", "This is a sentence."),      # no language in it: followed
  ("change_case:english_capital", {}, "THIS IS WHAT SHE SAID.", "THIS IS WHAT SHE SAiD."),
  ("change_case:english_capital", {}, "WHAT IS IT?", "DAS IST LEIDER NICHT SO EINFACH."),
  ("change_case:english_lowercase", {}, "this is what she said, in 2 words.", "this is what she Said."),
  ("change_case:english_lowercase", {}, "what is it?", "das ist leider nicht so einfach."),
  ("change_case:capital_word_frequency", dict(capital_frequency=2, capital_relation="at least"), "A well-known NASA.",
   "Well-KNOWN NASA"),
  ("change_case:capital_word_frequency", dict(capital_frequency=1, capital_relation="less than"), "Nothing", "I, too"),
  ("length_constraints:number_sentences", dict(num_sentences=2, relation="at least"), "Mr. Smith left. He did!",
   "Mr. Smith left, he did"),
  ("length_constraints:number_sentences", dict(num_sentences=2, relation="less than"), "Mr. Smith left", "No. Yes.")])
def test_an_instruction_by_hand(id, args, good, bad):
  assert ifeval.check(id, good, args) and not ifeval.check(id, bad, args) and not ifeval.check(id, " ", args)


def test_every_instruction_of_ifeval_is_checked():
  assert len(ifeval.CHECKS) == 25 and set(ifeval.TOLD_BY) < set(ifeval.CHECKS)
