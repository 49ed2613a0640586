"""reasoning-gym as a task: numbering, seeds, answers; every dataset's gold answer under its own scorer."""

import os
import pickle
import random
import subprocess
import sys
import types

import numpy as np
import pytest

pytest.importorskip("reasoning_gym")

from reasoning_gym.factory import DATASETS

from r1jax.rewards.format import think_answer_format
from r1jax.tasks import TASKS
from r1jax.tasks import reasoning_gym as gym
from r1jax.types import Score

NO_DATA = types.SimpleNamespace(train=None, test=None, tokenizer=None, end_token=None)
NAMES = sorted(set(DATASETS) - set(gym.UNSOUND))
SLOW = ("futoshiki", "knight_swap", "quantum_lock", "zebra_puzzles")       # seconds to make a problem
EASIER = dict(futoshiki=dict(min_board_size=4, max_board_size=5))
NO_GOLD = ("boxnet", "rush_hour")      # puzzles of many answers, of which the package shows none


@pytest.fixture(autouse=True)
def hash_seed(monkeypatch):
  """As if the variable had been set: what is tested within one process does not differ."""
  monkeypatch.setenv("PYTHONHASHSEED", os.environ.get("PYTHONHASHSEED", "0"))


def tagged(answer):
  return f"<think>hm</think><answer>{answer}</answer>"


def score(cfg, text, id=0, **options):
  return gym.own_score(gym.problem(cfg, id), text, cfg=cfg, **options)


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in NAMES])
def test_a_gold_answer_is_correct_by_the_datasets_own_scorer(name):
  cfg = gym.Config(name, config=EASIER.get(name, {}), size=20, held_out=20)
  for id in (0, gym.HELD_OUT + 19) if name in SLOW else (0, 19, gym.HELD_OUT, gym.HELD_OUT + 19):
    problem = gym.problem(cfg, id)
    assert (problem.answer == "") == (name in NO_GOLD)
    if name not in NO_GOLD:
      assert gym.own_score(problem, tagged(problem.answer), cfg=cfg) == Score(1.0, "correct")
      assert gym.own_score(problem, f" <answer>\n{problem.answer}</answer>", cfg=cfg, strict=False).verdict == "correct"
    wrong = gym.own_score(problem, tagged("surely not this"), cfg=cfg)
    assert wrong.value < 1 and wrong.verdict in ("wrong", "unparseable", "refused")


def test_the_task_is_listed_and_has_problems_rewards_and_held_out_ones():
  task = TASKS["reasoning_gym"].make(gym.Config("spell_backward", held_out=16, size=50), NO_DATA)
  assert task.size == 50 and len(task.held_out) == 16 and [p.id for p in task.held_out[:2]] == [2**30, 2**30 + 1]
  problem = task.problem(3)
  word = problem.prompt.rpartition("User:")[2].partition("Assistant:")[0].split()[-1]
  assert problem.prompt.startswith("A conversation between User and Assistant.") and problem.answer == word[::-1]
  assert task.rewards["accuracy"](problem, tagged(word[::-1])) == Score(1.0, "correct")
  assert task.rewards["format"] is think_answer_format and task.problem(3) == problem
  plain = gym.make(gym.Config("spell_backward", template=False), NO_DATA)
  assert "conversation" not in plain.problem(0).prompt and "format" not in plain.rewards
  assert plain.rewards["accuracy"](plain.problem(0), f" {plain.problem(0).answer}\n") == Score(1.0, "correct")


def test_training_and_held_out_problems_share_no_seed_and_no_question():
  cfg = gym.Config("coin_flip", held_out=40, size=40)         # few questions: some are drawn in both
  task = gym.make(cfg, NO_DATA)
  held = {p.prompt for p in task.held_out}
  plain = [gym.problem(cfg, i) for i in range(40)]
  assert held & {p.prompt for p in plain}                     # so they would meet
  train = [task.problem(i) for i in range(40)]
  assert not held & {p.prompt for p in train} and len({p.id for p in train}) == 40
  moved = next(i for i in range(40) if plain[i].prompt in held)
  id = train[moved].id
  assert id >= 40 and train[moved].prompt == plain[id % 40].prompt
  assert task.rewards["accuracy"](train[moved], tagged(train[moved].answer)).verdict == "correct"
  # item i of a dataset is drawn by seed + i
  assert 2 * gym.BLOCK * 2046 + gym.BLOCK + 1_000_000 < 2**32 and gym.BLOCK > 1_000_000
  other = gym.Config("coin_flip", held_out=40, size=40, seed=1)
  assert [gym.problem(other, i) for i in range(5)] != plain[:5]


def test_too_few_questions_for_what_is_held_out():
  task = gym.make(gym.Config("coin_flip", config=dict(min_trials=3, max_trials=3), held_out=200, size=20), NO_DATA)
  with pytest.raises(ValueError, match="too few for held_out=200"):
    task.problem(0)


@pytest.mark.parametrize("text, strict, lenient", [
  (tagged("cba"), "cba", "cba"), ("<answer>\n cba </answer> done", "cba", "cba"), ("cba", None, "cba"),
  (tagged("x") + tagged("cba"), None, "cba"), ("<answer>cba", None, "<answer>cba"), ("</answer>cba<answer>", None,
                                                                                  "</answer>cba<answer>"),
  (tagged(" "), None, None), ("", None, None)])
def test_what_counts_as_the_answer(text, strict, lenient):
  assert gym.answer_of(text, True)[0] == strict
  assert gym.answer_of(text, True, strict=False)[0] == lenient


def test_verdicts_of_answers_that_are_none():
  cfg = gym.Config("spell_backward")
  assert score(cfg, tagged("a") + tagged("b")) == Score(0.0, "unparseable")
  assert score(cfg, "no tags") == Score(0.0, "no_answer")


def test_partial_credit_is_wrong_and_can_be_left_out():
  gold = gym.problem(gym.Config("spell_backward"), 0).answer
  nearly = tagged(gold[:-1] + "?")
  assert 0 < score(gym.Config("spell_backward"), nearly).value < 1
  assert score(gym.Config("spell_backward"), nearly).verdict == "wrong"
  assert score(gym.Config("spell_backward", partial=False), nearly) == Score(0.0, "wrong")


@pytest.mark.parametrize("name", gym.LITERALS + gym.EXPRESSIONS)
def test_an_answer_is_never_run(name, tmp_path):
  cfg = gym.Config(name, size=4)
  mark = tmp_path / "ran"
  open_mark = f"open({str(mark)!r}, 'w')"
  built = "+".join(f"chr({ord(c)})" for c in str(mark))       # without a quote
  for attack in (open_mark, f"[{open_mark}]", f"__import__('os').mkdir({str(mark)!r})", f"open({built}, chr(119))",
                 f"x.func.__globals__['__builtins__']['open']({built}, chr(119))", f"[c for c in [{open_mark}]]",
                 f"(lambda: {open_mark})()", f"x + exec({open_mark!r})"):
    assert score(cfg, tagged(attack)).value < 1
    assert not mark.exists(), attack
  assert name in gym.LITERALS or score(cfg, tagged("open(x)")) == Score(0.0, "refused")


@pytest.mark.parametrize("answer, plain", [
  ("x**2/2 + C", True), ("-3*x*sin(2*x) + exp(x)/5", True), ("(7 - 3)*6*1", True), ("1.5*x", True),
  ("log(x + 1.)", True),
  ("", True), ("x.diff(x)", False), ("__import__", False), ("chr(1)", False), ("exec(x)", False), ("'x'", False),
  ("x[0]", False), ("1 .real", False), ("xx", False), ("sinx", False), ("lambda: 1", False), ("x_", False)])
def test_what_is_a_plain_formula(answer, plain):
  assert bool(gym._FORMULA.fullmatch(answer)) == plain


def test_problems_do_not_depend_on_what_was_drawn_before_nor_touch_the_global_generators():
  cfg = gym.Config("list_functions", size=400)
  ids = range(150)                           # a few of them the package makes from the global generator
  random.seed(1)
  once = [gym.problem(cfg, id) for id in ids]
  gym._item.cache_clear()
  random.seed(7)
  drawn = random.random()
  random.seed(7)
  np.random.seed(2)
  state = np.random.get_state()
  assert [gym.problem(cfg, id) for id in reversed(ids)] == once[::-1]
  assert random.random() == drawn
  gym.problem(gym.Config("pool_matrix"), 3)
  assert (np.random.get_state()[1] == state[1]).all()


def test_a_scorer_that_trips_over_an_answer_costs_that_answer_only():
  assert score(gym.Config("prime_factorization"), tagged("two × three")) == Score(0.0, "unparseable")


def test_a_foreign_problem_is_an_error():
  cfg = gym.Config("spell_backward")
  problem = gym.problem(cfg, 0)
  with pytest.raises(ValueError, match="problem id=0 is not that of"):
    gym.own_score(problem.__class__(0, problem.prompt, "else"), tagged("x"), cfg=cfg)


def test_the_reward_can_be_sent_to_a_worker():
  task = gym.make(gym.Config("spell_backward", held_out=2), NO_DATA)
  reward = pickle.loads(pickle.dumps(task.rewards["accuracy"]))
  assert reward(task.held_out[1], tagged(task.held_out[1].answer)) == Score(1.0, "correct")


@pytest.mark.parametrize("options, message", [
  (dict(dataset="nope"), "'nope' is none of ab, acre"), (dict(dataset="composite"), "is a mixture"),
  (dict(dataset="codeio"), "another question each time"),
  (dict(dataset="game_of_life_halting"), "any answer full marks"), (dict(dataset="coin_flip", size=0), "size=0"),
  (dict(dataset="coin_flip", held_out=2_000_000), "held_out=2000000"),
  (dict(dataset="coin_flip", seed=2047), "seed=2047"),
  (dict(dataset="coin_flip", config=dict(seed=3)), "give task.seed instead"),
  (dict(dataset="coin_flip", config=dict(sides=3)), "does not fit reasoning_gym's coin_flip"),
  (dict(dataset="coin_flip", config=dict(min_trials=-1)), "does not fit reasoning_gym's coin_flip")])
def test_wrong_settings_are_refused(options, message):
  with pytest.raises(ValueError, match=message):
    gym.make(gym.Config(**options), NO_DATA)


def test_without_the_package_it_says_what_to_install(monkeypatch):
  gym._open.cache_clear()
  monkeypatch.setitem(sys.modules, "reasoning_gym.factory", None)
  with pytest.raises(ValueError, match=r"r1jax\[gym\]"):
    gym.make(gym.Config("coin_flip"), NO_DATA)


def test_a_dataset_that_depends_on_the_order_of_sets_needs_a_fixed_one(monkeypatch):
  monkeypatch.delenv("PYTHONHASHSEED")
  with pytest.raises(ValueError, match="set PYTHONHASHSEED=0"):
    gym.Config("word_ladder")
  gym.Config("coin_flip")


@pytest.mark.slow
def test_the_others_do_not_depend_on_it():
  script = ("import hashlib\nfrom r1jax.tasks import reasoning_gym as gym\n"
            f"for name in {[name for name in NAMES if name not in SLOW]}:\n"
            "  cfg = gym.Config(name, size=20, held_out=20)\n"
            "  text = repr([gym.problem(cfg, i) for i in range(8)])\n"
            "  print(name, hashlib.sha256(text.encode()).hexdigest())")
  one, two = (subprocess.run([sys.executable, "-c", script], env=os.environ | dict(PYTHONHASHSEED=seed), check=True,
                             capture_output=True, text=True).stdout.split("\n") for seed in ("1", "2"))
  assert {a.split()[0] for a, b in zip(one, two, strict=True) if a != b} <= set(gym.HASH_ORDER)
