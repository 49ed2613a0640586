"""Greatest common divisors by examples: prompts, gold answers, rewards, pairs kept out."""

import math
import types

import pytest

from r1jax import tokenizer
from r1jax.tasks import gcd


@pytest.fixture(scope="module")
def task(tmp_path_factory):
  folder = tmp_path_factory.mktemp("tok")
  tokenizer.byte_tokenizer().save_dir(folder)
  return gcd.make(gcd.Config(held_out=64), types.SimpleNamespace(tokenizer=str(folder), end_token="\n"))


def test_a_prompt_is_solved_examples_and_an_open_question(task):
  lines = task.held_out[3].prompt.splitlines()
  assert len(lines) == 2 * len(gcd.EXAMPLES) + 2 and lines[-1] == "Answer:"
  assert lines[1] == "Answer: 6" and "of 12 and 18?" in lines[0]
  a, b = map(int, gcd.NUMBER.findall(lines[-2]))
  assert task.held_out[3].answer == str(math.gcd(a, b))


def test_answers_end_at_the_line_break_or_the_models_own_end(task):
  tok = task.tokenizer
  assert tok.end_ids == (*tok.encode("\n"), 256) and tok.end_id == tok.end_ids[0] != 256
  assert tok.decode([*tok.encode(" 6"), tok.end_id]) == " 6"


def test_training_never_shows_a_held_out_pair(task):
  pairs = lambda p: tuple(sorted(map(int, gcd.NUMBER.findall(p.prompt.splitlines()[-2]))))
  kept = {pairs(p) for p in task.held_out}
  train = [task.problem(i) for i in range(400)]
  assert not kept & {pairs(p) for p in train}
  assert task.problem(5) == train[5] and len({pairs(p) for p in train}) > 200
  ones = sum(p.answer == "1" for p in train) / 400
  assert 0.1 < ones < 0.6 and len({p.answer for p in train}) > 10


@pytest.mark.parametrize("text, strict, lenient", [
  (" 6", 1, 1), ("6", 1, 1), (" 06", 1, 1), (" 5", 0, 0), ("", 0, 0), (" the answer is 6", 0, 1), (" 6.", 0, 1),
  (" 6 or 12", 0, 0), (" 12 6", 0, 1), ("-6", 0, 1), (" 6" * 9, 0, 1), ("9" * 5000, 0, 0), ("٦", 0, 0)])
def test_strict_and_lenient(text, strict, lenient):
  problem = gcd.problem(0, 12, 30)
  assert (gcd.exact(problem, text).value, gcd.last_number(problem, text).value) == (strict, lenient)


def test_wrong_settings_are_refused():
  with pytest.raises(ValueError, match="largest=4 must be at least 8"):
    gcd.Config(largest=4)
  with pytest.raises(ValueError, match="at most 442, a quarter"):
    gcd.Config(held_out=5000)
  with pytest.raises(ValueError, match="give start=DIR"):
    gcd.make(gcd.Config(), types.SimpleNamespace(tokenizer=None, end_token=None))
