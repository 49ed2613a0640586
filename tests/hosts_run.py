"""An experiment and its task for tests/test_hosts.py: parity of 4 bits, and a log of what each process does.

All rows are padded to one length, so that few programs are compiled.
"""

import os
from pathlib import Path

from ml_collections import ConfigDict

from r1jax.rewards.accuracy import exact_accuracy
from r1jax.tasks import parity

Config = parity.Config


def log(what: str, number: int) -> None:
  if folder := os.environ.get("HOSTS_LOG"):
    with (Path(folder) / f"{what}_{os.getpid()}").open("a") as file:
      file.write(f"{number}\n")


def accuracy(problem, text):
  log("rewarded", problem.id)
  return exact_accuracy(problem, text)


def make(cfg, data):
  task = parity.make(cfg, data)
  given = task.demonstration

  def demonstration(i):
    log("demonstrated", i)
    return given(i)
  object.__setattr__(task, "rewards", task.rewards | dict(accuracy=accuracy))
  object.__setattr__(task, "demonstration", demonstration)
  return task


def get_config(arg=None):
  c = ConfigDict()
  c.name, c.seed = "hosts", 0
  c.stages = ("pretrain", "reasoning_rl")
  c.task = dict(name=__file__, bits=4, held_out=6, p_long=0.0)
  c.model = dict(dim=16, layers=1, heads=2, kv_heads=1, ffn=32)
  c.mesh = dict(data=-1, fsdp=1, tensor=1)
  c.pretrain = dict(steps=20, batch=8, log_every=1, optimizer=dict(lr=3e-3), checkpoint=dict(every=10, keep=2))
  c.reasoning_rl = dict(
    rollouts=8, questions_per_rollout=4, group_size=4, minibatches=2, rewards=dict(accuracy=1.0, format=1.0),
    sampling=dict(max_tokens=8), loss=dict(), optimizer=dict(lr=1e-3), reference_refresh=4, eval_every=0,
    checkpoint=dict(every=1, keep=2))
  c.eval = dict(samples=0)
  if arg == "more":      # experts, a critic, slots, questions sampled again where a group agrees
    c.model = dict(dim=16, layers=2, dense_layers=1, heads=2, kv_heads=1, ffn=32, moe=dict(experts=4, top_k=2, ffn=16))
    c.pretrain.steps = 4
    c.reasoning_rl.update(rollouts=3, reference_refresh=0, dynamic_sampling=2, critic=dict(optimizer=dict(lr=1e-3)))
    c.reasoning_rl.sampling.slots = 8
    c.reasoning_rl.loss = dict(advantage="gae", gae_lambda=0.95)
  return c
