"""The GRPO benchmark: peers take turns with ours, in processes of their own, and what the table says adds up."""

import json
import os
import sys

import numpy as np
import pytest

from r1jax.bench import grpo
from r1jax.bench.peers import child
from r1jax.bench.timing import OtherWork
from r1jax.models.transformer import ModelConfig

TINY = grpo.Shape(ModelConfig(vocab=16, dim=8, layers=1, heads=2, kv_heads=1, ffn=8), 2, 2, 4, 4)
FAKE = """
import json, sys
what = json.loads(sys.argv[1])
for i in range(what["steps"]):
  sys.stdin.readline()
  if what["answer"] == 9 and i == 1:
    raise RuntimeError("out of luck")
  print(json.dumps(dict(seconds=10.0 * (i + 1), rollout=1.0)), flush=True)
print(json.dumps(dict(name="Fake 1", seconds=0, peak_memory_bytes=2**40, parameters=7, answers=4)), flush=True)
"""


@pytest.fixture
def fake(tmp_path):
  (tmp_path / "run_trl.py").write_text(FAKE)
  return tmp_path


def test_a_peer_takes_a_step_when_it_is_told_to_and_its_end_is_one_line_more(fake):
  with child.started("trl", sys.executable, dict(steps=2, answer=4), fake) as peer:
    assert [peer.step()["seconds"] for _ in range(2)] == [10, 20]
    assert peer.step()["name"] == "Fake 1"
  with pytest.raises(OSError, match="No such process"):
    os.kill(peer.pid, 0)


def test_a_peer_that_fails_says_why(fake):
  with (child.started("trl", sys.executable, dict(steps=3, answer=9), fake) as peer,
        pytest.raises(ValueError, match=r"peer trl .* ended with code 1: RuntimeError: out of luck")):
    for _ in range(3):
      peer.step()


@pytest.mark.parametrize(("text", "message"), [
  ("verl", "'verl' is none of trl, tunix"), ("trl=/no/such/python", "no file /no/such/python")])
def test_a_peer_that_cannot_be_run_is_named(text, message):
  with pytest.raises(ValueError, match=message):
    child.python_of(text)


def test_a_peer_without_a_python_must_be_importable_here(monkeypatch):
  monkeypatch.setattr(child, "MODULES", dict(trl="no_such_module_here", tunix="json"))
  with pytest.raises(ValueError, match=r"no module no_such_module_here; give the Python .* --peer trl="):
    child.python_of("trl")
  assert child.python_of("tunix") == ("tunix", sys.executable)
  assert child.python_of(f"trl={sys.executable}") == ("trl", sys.executable)


def test_the_benchmark_has_phases_that_add_up_and_ratios_of_neighbouring_steps(fake, monkeypatch):
  started = child.started
  monkeypatch.setattr(child, "started", lambda name, python, what: started(name, python, what, fake))
  monkeypatch.setattr(grpo, "matmul_speed", lambda: 1e9)
  result = grpo.measure(TINY, 3, [("trl", sys.executable)])
  parts = sum(result[f"seconds/{name}"] for name in ("rollout", "reference", "update"))
  assert 0.3 * result["seconds/step"] < parts < 3 * result["seconds/step"]        # medians, each of its own
  peer = result["peers"]["trl"]
  assert (peer["seconds"], peer["rollout"], peer["parameters"]) == (40, 1, 7)     # the first two are not timed
  assert peer["ratio_low"] <= peer["ratio"] <= peer["ratio_high"] and peer["memory_ratio"] > 100
  assert grpo.table(result | json.loads(json.dumps(result))).row_count == 13


def test_a_ratio_is_to_our_steps_before_and_after():
  seen = [dict(seconds=6.0, rollout=0.0), dict(seconds=12.0, rollout=0.0), dict(seconds=3.0, rollout=0.0)]
  out = grpo.against(np.array([2.0, 3.0, 3.0]), seen, dict(name="x", parameters=1, peak_memory_bytes=8), 4)
  assert out["least"] == 3
  assert (out["ratio"], out["ratio_low"], out["ratio_high"], out["memory_ratio"]) == (3, 1, 4, 2)


def test_other_work_is_a_share_and_not_our_own():
  others = OtherWork()
  x = 0
  for i in range(10**6):
    x += i
  assert 0 <= others.share() < 1.5
