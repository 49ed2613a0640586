"""Worker processes for rewards: what hangs, eats memory, dies or raises, and what stays behind (nothing)."""

import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest
import worker_rewards
from worker_rewards import Suffix, length, obedient

from r1jax.problem import Problem, Score
from r1jax.rewards import preference, total_reward, total_rewards
from r1jax.rewards.accuracy import math_accuracy
from r1jax.rewards.format import think_answer_format
from r1jax.rewards.workers import Workers, in_parent
from r1jax.tasks import find

ROOT = Path(__file__).parents[1]
OBEY = dict(accuracy=(1.0, obedient))
MATH = dict(accuracy=(1.0, math_accuracy), format=(0.5, think_answer_format))


def problems(n: int) -> list[Problem]:
  return [Problem(i, "", "7") for i in range(n)]


def score(pool, *texts: str, terms=OBEY):
  return pool.score(terms, problems(len(texts)), texts)


def verdicts(results) -> list[str]:
  return [parts["accuracy"].verdict for _, parts in results]


def alive(pid: int) -> bool:
  try:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
  except FileNotFoundError:
    return False


def gone(*pids: int) -> bool:
  """Whether these processes end within some seconds."""
  until = time.monotonic() + 10
  while any(map(alive, pids)) and time.monotonic() < until:
    time.sleep(0.02)
  return not any(map(alive, pids))


@pytest.fixture(scope="module")
def pool():
  with Workers(2, timeout=20) as pool:
    yield pool


@pytest.fixture(scope="module")
def impatient():
  with Workers(2, timeout=1) as pool:
    yield pool


@pytest.fixture
def small():
  with Workers(2, timeout=60, memory=2**28) as pool:
    yield pool


def test_the_same_as_in_this_process_in_the_order_of_the_texts(pool):
  texts = [f"<think></think><answer>{i % 9}</answer>" for i in range(100)] + ["7", ""]
  assert score(pool, *texts, terms=MATH) == [
    total_reward(MATH, problem, text) for problem, text in zip(problems(len(texts)), texts, strict=True)]


def test_order_does_not_depend_on_who_is_done_first(pool):
  texts = [f"sleep {0.2 if i < 2 else 0}" for i in range(12)]
  assert verdicts(score(pool, *texts)) == [f"{i} {text}" for i, text in enumerate(texts)]


def test_groups_are_scored_while_others_are_still_sampled(pool):
  slow, quick = (pool.submit(OBEY, problems(1), [text]) for text in ("sleep 0.3", "x"))
  assert quick.result() == [(1.0, {"accuracy": Score(1.0, "0 x")})]
  assert not slow.done()
  assert verdicts(slow.result()) == ["0 sleep 0.3"]


def test_nothing_to_score_is_done_at_once(pool):
  assert pool.score(OBEY, [], []) == []
  assert pool.score({}, problems(1), ["x"]) == [(0, {})]
  with pytest.raises(ValueError, match="1 problems for 2 texts"):
    pool.submit(OBEY, problems(1), ["x", "y"])


def test_many_threads_may_ask(pool):
  out = {}
  ask = lambda i: out.update({i: verdicts(score(pool, f"a{i}", f"b{i}"))})
  threads = [threading.Thread(target=ask, args=(i,)) for i in range(8)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert out == {i: [f"0 a{i}", f"1 b{i}"] for i in range(8)}


@pytest.mark.parametrize("text", ["hang", "hang_in_c", "sleep 100"])
def test_a_hang_times_out_alone_and_is_counted(impatient, text):
  before = impatient.counts()
  terms = OBEY | dict(length=(0.1, length))
  results = score(impatient, "x", text, "y", terms=terms)
  assert verdicts(results) == ["0 x", "timeout", "2 y"]
  assert results[1] == (0.1 * len(text), dict(accuracy=Score(0.0, "timeout"), length=Score(len(text), "counted")))
  after = impatient.counts()
  assert {k: after[k] - before[k] for k in after} == dict(checks=6, timeouts=1, crashes=0, replaced=1)


def test_all_of_them_may_hang(impatient):
  assert verdicts(score(impatient, *["hang"] * 3, "x")) == ["timeout"] * 3 + ["3 x"]


@pytest.mark.parametrize("text", ["memory", "memory_slowly"])
def test_memory_is_limited(small, text):
  assert verdicts(score(small, "x", text, "y")) == ["0 x", "crashed", "2 y"]
  assert small.counts() == dict(checks=3, timeouts=0, crashes=1, replaced=1)


def test_what_a_check_started_dies_with_it(impatient, tmp_path):
  assert verdicts(score(impatient, f"spawn {tmp_path / 'pid'}")) == ["timeout"]
  assert gone(int((tmp_path / "pid").read_text()))


def test_a_check_that_kills_its_process_is_tried_twice(pool, tmp_path):
  before = pool.counts()
  assert verdicts(score(pool, "x", "die", "y")) == ["0 x", "crashed", "2 y"]
  once = f"die_once {tmp_path / 'mark'}"
  assert verdicts(score(pool, "x", once, "y")) == ["0 x", f"1 {once}", "2 y"]
  after = pool.counts()
  assert (after["crashes"] - before["crashes"], after["replaced"] - before["replaced"]) == (1, 3)


@pytest.mark.parametrize("busy", [True, False])
def test_a_process_killed_from_outside_costs_nothing(busy):
  with Workers(1) as one:
    victim = int(score(one, "pid")[0][0])
    future = one.submit(OBEY, problems(2), ["sleep 0.5", "pid"]) if busy else None
    time.sleep(0.2 * busy)
    os.kill(victim, signal.SIGKILL)
    results = future.result() if busy else score(one, "sleep 0", "pid")
    assert results[0][1]["accuracy"].value == 1
    assert results[1][0] != victim
    assert one.counts()["crashes"] == 0 and one.counts()["replaced"] == 1


@pytest.mark.parametrize(("text", "error", "message"), [
  ("value_error", ValueError, "reward 'accuracy', problem id=1: gold answer '\\?' is not readable"),
  ("raise", RuntimeError, "reward 'accuracy', problem id=1: ZeroDivisionError: 1/0"),
  ("exit", RuntimeError, "problem id=1: SystemExit: 3"), ("deep", RuntimeError, "problem id=1: RecursionError"),
  ("nan", RuntimeError, "problem id=1: TypeError: a reward must return Score"),
  ("float", RuntimeError, "problem id=1: TypeError")])
def test_an_error_of_a_reward_is_an_error_here_and_names_the_problem(pool, text, error, message):
  with pytest.raises(error, match=message) as caught:
    score(pool, "x", text, "y")
  assert "worker_rewards.py" in caught.value.__notes__[0] or "child.py" in caught.value.__notes__[0]
  assert verdicts(score(pool, "x")) == ["0 x"]


def test_a_gold_answer_that_cannot_be_read_is_an_error(pool):
  with pytest.raises(ValueError, match="reward 'accuracy', problem id=41: problem id=41: gold answer '' is empty"):
    pool.score(MATH, [Problem(41, "", "")], ["7"])


def test_the_processes_do_without_jax_and_numpy(pool):
  assert score(pool, "jax")[0][1]["accuracy"] == Score(0.0, "[]")


def test_what_a_reward_prints_does_not_disturb(pool, capfd):
  assert verdicts(score(pool, "print hello")) == ["0 print hello"]
  assert capfd.readouterr().out == ""


@pytest.mark.parametrize(("reward", "value"), [
  (length, 3), (partial(length, scale=2), 6), (partial(partial(length, scale=2), scale=3), 9),
  (Suffix("c"), 1), (Suffix("c").starts, 0)])
def test_functions_partials_and_objects_can_be_sent(pool, reward, value):
  assert score(pool, "abc", terms=dict(r=(1.0, reward)))[0][0] == value


def test_a_reward_is_prepared_once_before_its_checks_are_timed(impatient):
  for times, reward in enumerate((worker_rewards.is_prepared, partial(worker_rewards.is_prepared)), start=1):
    totals = [total for total, _ in score(impatient, "a", "b", "c", terms=dict(r=(1.0, reward)))]
    assert all(1 <= total <= times for total in totals)      # once in each process that took part


OWN = """
from __future__ import annotations
import dataclasses
from functools import partial
from r1jax.problem import Score

@dataclasses.dataclass
class Config:
  size: int = 3

@dataclasses.dataclass
class Near:
  size: int
  def __call__(self, problem, text):
    return Score(float(self.size))

def helper(text):
  return len(text)

def reward(problem, text, extra=0):
  return Score(helper(text) + extra)

def make(cfg, data):
  def inside(problem, text):
    return Score(1.0)
  return dict(plain=reward, partly=partial(reward, extra=10), near=Near(5), inside=inside, lam=lambda p, t: Score(1.0))
"""


def test_a_task_loaded_by_path_brings_its_own_rewards(pool, tmp_path, monkeypatch):
  path = tmp_path / "mine.py"
  path.write_text(OWN)
  monkeypatch.chdir(tmp_path)              # a relative path, from a place that the processes do not know
  rewards = find("mine.py").make(None, None)
  sent = {name: (1.0, rewards[name]) for name in ("plain", "partly", "near")}
  assert {name: s.value for name, s in score(pool, "abc", terms=sent)[0][1].items()} == dict(plain=3, partly=13, near=5)
  for name in ("inside", "lam"):
    with pytest.raises(ValueError, match=f"reward '{name}' .* cannot be sent to a worker process: .*top level"):
      pool.submit({name: (1.0, rewards[name])}, problems(1), ["abc"])


def test_a_script_brings_its_own_rewards_without_being_run_again(tmp_path):
  script = tmp_path / "script.py"
  script.write_text(f"{OWN}\nfrom r1jax.problem import Problem\nfrom r1jax.rewards.workers import Workers\n"
                    "if __name__ == '__main__':\n  with Workers(1) as pool:\n"
                    "    print(pool.score(dict(r=(1.0, reward)), [Problem(0, '', '')], ['abcd'])[0][0])\n")
  done = subprocess.run([sys.executable, script], capture_output=True, text=True, cwd=tmp_path,
                        env=os.environ | dict(PYTHONPATH=str(ROOT)))
  assert (done.stdout, done.stderr) == ("4.0\n", "")


def test_a_function_that_is_in_no_file_cannot_be_sent():
  code = ("from r1jax.rewards.sending import dump\ndef mine(problem, text): pass\ndump(dict(mine=mine))")
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
  assert "ValueError: reward 'mine'" in done.stderr and "mine is defined in no file" in done.stderr


def test_a_reward_marked_for_this_process_stays_here(pool):
  here = in_parent(lambda problem, text: Score(float(os.getpid())))
  terms = OBEY | dict(model=(1.0, here), partly=(1.0, partial(here)))
  total, parts = score(pool, "pid", terms=terms)[0]
  assert list(parts) == ["accuracy", "model", "partly"]
  assert parts["model"].value == parts["partly"].value == os.getpid() != parts["accuracy"].value
  assert total == sum(part.value for part in parts.values())
  assert score(pool, "x", terms=dict(model=(2.0, here)))[0][0] == 2 * os.getpid()

  def fails(problem, text):
    raise ZeroDivisionError("here")
  with pytest.raises(ZeroDivisionError, match="here") as caught:
    score(pool, "x", terms=OBEY | dict(model=(1.0, in_parent(fails))))
  assert caught.value.__notes__ == ["reward 'model', problem id=0"]


def test_a_reward_that_cannot_be_imported_there_is_an_error(pool, tmp_path):
  (tmp_path / "broken.py").write_text("import os\nif 'BROKEN' not in os.environ: raise OSError('not there')\n"
                                      "Config = None\ndef make(problem, text): pass\n")
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("BROKEN", "no")
    reward = find(str(tmp_path / "broken.py")).make
  with pytest.raises(RuntimeError, match="could not import the rewards r: OSError: not there"):
    score(pool, "x", terms=dict(r=(1.0, reward)))
  assert verdicts(score(pool, "x")) == ["0 x"]


@pytest.mark.parametrize("setting", [dict(count=0), dict(timeout=0), dict(memory=2**20)])
def test_settings_out_of_range_are_named(setting):
  with pytest.raises(ValueError, match=f"{next(iter(setting))}={next(iter(setting.values()))}"):
    Workers(**setting)


def test_close_kills_what_runs_and_ends_its_futures(tmp_path):
  with Workers(1) as one:
    child = int(score(one, "pid")[0][0])
    running = one.submit(OBEY, problems(1), [f"spawn {tmp_path / 'pid'}"])
    waiting = one.submit(OBEY, problems(1), ["x"])
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
      time.sleep(0.02)
  for future in (running, waiting):
    with pytest.raises(RuntimeError, match="closed before"):
      future.result(timeout=5)
  assert gone(child, int((tmp_path / "pid").read_text()))
  with pytest.raises(RuntimeError, match="closed"):
    one.submit(OBEY, problems(1), ["x"])
  one.close()


PARENT = """
import sys, time
sys.path.insert(0, {tests!r})
from worker_rewards import obedient
from r1jax.problem import Problem
from r1jax.rewards.workers import Workers
ask = dict(accuracy=(1.0, obedient))
pool = Workers(2, timeout=1000)
idle = pool.submit(ask, [Problem(0, "", "")] * 2, ["pid", "pid"]).result()
print(*{{int(total) for total, _ in idle}}, flush=True)
busy = [pool.submit(ask, [Problem(0, "", "")], [text]) for text in {texts!r}]
time.sleep(0.5)
{end}
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of its parent's death")
@pytest.mark.parametrize(("texts", "end", "stop"), [
  (["hang", "hang_in_c"], "busy[0].result()", signal.SIGKILL), ([], "time.sleep(100)", signal.SIGKILL),
  (["hang", "hang_in_c"], "busy[0].result()", signal.SIGINT), (["hang", "hang_in_c"], "", None)],
  ids=["killed amid checks", "killed idle", "Ctrl-C", "end of the script without close"])
def test_nothing_outlives_the_run(texts, end, stop):
  code = PARENT.format(tests=str(ROOT / "tests"), texts=texts, end=end)
  run = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                         env=os.environ | dict(PYTHONPATH=str(ROOT)))
  first = [int(pid) for pid in run.stdout.readline().split()]
  time.sleep(0.3)
  children = [int(p.parent.name) for p in Path("/proc").glob("[0-9]*/stat")
              if p.exists() and _parent(p) == run.pid]
  assert first and set(first) <= set(children)
  if stop:
    run.send_signal(stop)
  run.wait(timeout=20)
  assert gone(*children)


def _parent(stat: Path) -> int:
  try:
    return int(stat.read_text().rpartition(")")[2].split()[1])
  except (FileNotFoundError, ProcessLookupError):
    return -1


def test_the_rewards_of_all_tasks_can_be_sent():
  from r1jax.rewards.sending import dump, load
  from r1jax.tasks import gcd, gsm8k
  rewards = gsm8k.SCORING["rewards"] | dict(lenient=gsm8k.SCORING["lenient"], gcd=gcd.exact, mine=worker_rewards.length)
  assert list(load(dump(rewards))) == list(rewards)


def test_a_model_is_asked_once_about_all_answers_with_and_without_a_pool():
  asked = []
  def score_fn(prompts, responses):
    asked.append(len(responses))
    return [float(len(r)) for r in responses]
  terms = dict(model=(0.5, preference.single(preference.from_scores(score_fn, part="whole"))))
  texts = ["1", "0", "22"]
  plain = total_rewards(terms, problems(3), texts)
  assert [total for total, _ in plain] == [0.5, 0.5, 1.0] and asked == [3]
  with Workers(1) as pool:
    pooled = pool.score(terms, problems(3), texts)
  assert pooled == plain and asked == [3, 3]
