"""Whole GRPO steps on random tokens: what a step costs, how near that is to what the machine can do, and to peers.

The functions are the ones that training calls. Every answer has full length, so that the work is the same each step.
Peers (bench/peers) do the same work in processes of their own, on the same cores; steps take turns, ours, each peer's,
ours, so that a change of the machine's speed falls on all.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import resource
import statistics
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from rich.table import Table

from r1jax import costs, credit, optimizer, rollout, sampler, train
from r1jax.bench.peers import child
from r1jax.bench.timing import OtherWork, matmul_speed
from r1jax.grpo import LossConfig
from r1jax.models import param, transformer
from r1jax.models.transformer import ModelConfig
from r1jax.optimizer import OptimizerConfig
from r1jax.sampler import SampleConfig
from r1jax.stages import reasoning_rl
from r1jax.stages.reasoning_rl import RLConfig
from r1jax.types import Problem

WARM_UP = 2                           # steps that are not timed: compilation, first allocations
PHASES = ("rollout", "reference", "update", "step")


@dataclasses.dataclass(frozen=True)
class Shape:
  model: ModelConfig
  prompts: int
  group: int                          # answers to a prompt
  prompt: int                         # tokens
  answer: int
  parts: int = 1                      # micro-batches of ours


SMALL = ModelConfig(vocab=512, dim=128, layers=4, heads=4, kv_heads=2, ffn=256)
SHAPES = dict(
  A=Shape(SMALL, 8, 8, 32, 64),
  B=Shape(ModelConfig(vocab=49_152, dim=576, layers=30, heads=9, kv_heads=3, ffn=1536), 4, 8, 64, 64),
  long=Shape(SMALL, 4, 16, 512, 32),
)


def measure(shape: str | Shape, steps: int, peers: Sequence[tuple[str, str]] = (), peer_parts: int = 1) -> dict:
  """Seconds of each phase (medians over `steps`), start-up, FLOP/s beside a large matmul's, peak memory.

  peers: (name, interpreter), as child.python_of makes them; peer_parts: their micro-batches.
  """
  name, s = (shape, SHAPES[shape]) if isinstance(shape, str) else ("", shape)
  one = ours(s, steps + WARM_UP + 1)
  seconds = [one(0)]
  first = _since_start()
  with contextlib.ExitStack() as stack:
    theirs = [stack.enter_context(child.started(*peer, describe(s, steps + WARM_UP, peer_parts))) for peer in peers]
    seconds += [one(i) for i in range(1, WARM_UP)]
    for peer in theirs:
      for _ in range(WARM_UP):
        peer.step()
    lines: list[list[dict]] = [[] for _ in peers]
    others = OtherWork([peer.pid for peer in theirs])
    for i in range(steps):
      seconds.append(one(WARM_UP + i))
      for peer, seen in zip(theirs, lines, strict=True):
        seen.append(peer.step())
    timed = np.asarray(seconds[WARM_UP:])
    result = dict(shape=name, steps=steps, other_work=others.share(), least=float(timed[:, -1].min()))
    result |= summary(s, np.median(timed, axis=0), first)
    if peers:
      between = np.append(timed[:, -1], one(WARM_UP + steps)[-1])
      bracket = (between[:-1] + between[1:]) / 2      # of our steps before and after each of theirs
      memory = result["peak_memory_bytes"]
      result["peers"] = {peer[0]: against(bracket, seen, it.step(), memory) | dict(parts=peer_parts)
                         for peer, seen, it in zip(peers, lines, theirs, strict=True)}
  return result


def ours(s: Shape, steps: int) -> Callable[[int], tuple[float, ...]]:
  """A function that takes GRPO step i and returns its seconds, by PHASES."""
  model, B, G, P, A = s.model, s.prompts, s.group, s.prompt, s.answer
  cfg = RLConfig(optimizer=OptimizerConfig(lr=1e-5), loss=LossConfig(), sampling=SampleConfig(A), rewards=dict(x=1.0),
                 rollouts=steps, questions_per_rollout=B, group_size=G, micro_batches=s.parts)
  tx = optimizer.make(cfg.optimizer, steps)
  params = jax.jit(lambda key: transformer.init(model, key))(jax.random.key(0))
  state = train.init_state(params, tx, reference=True)
  del params
  update = train.compiled_step(lambda p, b: reasoning_rl.policy_loss(p, b, model=model, cfg=cfg), tx, s.parts)
  rng = np.random.default_rng(0)
  prompts = rng.integers(0, model.vocab, (B, P)).tolist()
  problems = [Problem(i, "", "") for i in range(B)]

  def one(step: int) -> tuple[float, ...]:
    nonlocal state
    t0 = time.perf_counter()
    keys = sampler.sample_keys(0, step, jnp.arange(B), jnp.arange(G))
    done = sampler.sample(state.params, np.asarray(prompts, np.int32), jnp.full(B, P), keys, model=model,
                          cfg=cfg.sampling, end_id=-1)
    answers, logps = np.asarray(done.token_NA), np.asarray(done.logp_NA)
    del done                            # with its caches
    t1 = time.perf_counter()
    rollouts = rollout.Rollouts(problems, prompts, answers.tolist(), list(logps), [""] * (B * G), np.zeros(B * G, bool))
    reward_N = (answers.sum(1) % 2).astype(np.float32)
    batch = rollout.to_batch(rollouts)
    ref = train.score(state.ref_params, batch.prompt_BP, batch.prompt_length_B, batch.answer_NA, model=model,
                      micro_batches=s.parts)
    batch, _ = credit.credited(cfg, batch.replace(ref_logp_NA=np.asarray(ref)), reward_N, rollouts.truncated_N,
                               np.zeros(B * G, bool), 0, step)
    t2 = time.perf_counter()
    state, metrics = update(state, batch)
    loss = float(metrics["loss"].value())
    jax.block_until_ready(state.params)
    t3 = time.perf_counter()
    if not np.isfinite(loss):
      raise ValueError(f"loss {loss} at step {step}")
    return t1 - t0, t2 - t1, t3 - t2, t3 - t0
  return one


def describe(s: Shape, steps: int, parts: int) -> dict:
  """What a peer's script is told."""
  names = ("vocab", "dim", "layers", "heads", "kv_heads", "head_dim", "ffn")
  return dict(model={name: getattr(s.model, name) for name in names}, prompts=s.prompts, group=s.group, prompt=s.prompt,
              answer=s.answer, parts=parts, steps=steps, lr=1e-5, beta=LossConfig().kl_coef)


def summary(s: Shape, medians, first: float) -> dict:
  tokens = s.prompts * s.group * (s.prompt + s.answer)
  step, model = float(medians[-1]), s.model
  peak_memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
  return dict(device=jax.devices()[0].device_kind, cores=os.cpu_count(), jax=jax.__version__,
              parameters=param.count(transformer.params(model)), answers=s.prompts * s.group, parts=s.parts,
              model=f"{model.layers} x {model.dim}, ffn {model.ffn}, vocab {model.vocab}",
              **{f"seconds/{name}": float(t) for name, t in zip(PHASES, medians, strict=True)},
              **{"seconds/start_to_first_step": first}, tokens_per_s=tokens / step,
              flops_per_s=step_flops(s) / step,
              matmul_flops_per_s=matmul_speed(), peak_memory_bytes=peak_memory)


def step_flops(s: Shape) -> float:
  """Of a step: rollout, reference, policy forward and backward; prompts once each."""
  work = costs.grpo_step(s.model, [s.prompt] * s.prompts, [s.answer] * (s.prompts * s.group))
  return sum(phase.flops for phase in work.values())


def against(bracket, seen: list[dict], end: dict, memory: int) -> dict:
  """A peer's medians, and how often our step fits into its step (median of turns) and our memory into its memory."""
  theirs = np.asarray([line["seconds"] for line in seen])
  return dict(name=end["name"], seconds=float(np.median(theirs)), parameters=end["parameters"],
              rollout=statistics.median(line["rollout"] for line in seen), least=float(theirs.min()),
              ratio=float(np.median(theirs / bracket)),
              ratio_low=float((theirs / bracket).min()), ratio_high=float((theirs / bracket).max()),
              peak_memory_bytes=end["peak_memory_bytes"], memory_ratio=end["peak_memory_bytes"] / memory)


def table(result: dict) -> Table:
  peers = result.get("peers", {})
  out = Table("GRPO step, shape " + result["shape"], f"{result['device']} x {result['cores']}, jax {result['jax']}",
              *[peer["name"] for peer in peers.values()])
  row = lambda name, mine, show=lambda peer: "": out.add_row(name, mine, *map(show, peers.values()))
  row("model", f"{result['model']} ({result['parameters']:,} parameters)", lambda peer: f"{peer['parameters']:,}")
  for name in PHASES:
    row(f"seconds, {name}", f"{result[f'seconds/{name}']:.3f}",
        lambda peer, name=name: f"{peer[dict(rollout='rollout', step='seconds')[name]]:.3f}"
        if name in ("rollout", "step") else "")
  if peers:   # what other work adds is not in the least times
    row("seconds, step, the least", f"{result['least']:.3f}",
        lambda p: f"{p['least']:.3f} ({p['least'] / result['least']:.2f}x)")
    row("r1jax is faster by", "", lambda p: f"{p['ratio']:.2f}x ({p['ratio_low']:.2f} to {p['ratio_high']:.2f})")
  row("of the cores' time, other work on this machine", f"{result['other_work']:.0%}")
  row("tokens a second", f"{result['tokens_per_s']:,.0f}")
  row("of this machine's matmul speed", f"{result['flops_per_s'] / result['matmul_flops_per_s']:.0%}"
      f" ({result['flops_per_s'] / 1e9:.0f} of {result['matmul_flops_per_s'] / 1e9:.0f} GFLOP/s)")
  row("start to first step, compilation included", f"{result['seconds/start_to_first_step']:.1f} s")
  memory = lambda one: f"{one['peak_memory_bytes'] / 2**20:,.0f} MiB"
  row("peak memory of the process", memory(result), lambda p: f"{memory(p)} ({p['memory_ratio']:.1f}x)")
  row("micro-batches", str(result["parts"]), lambda p: str(p["parts"]))
  return out


def _since_start() -> float:
  """Seconds since this process began."""
  try:
    ticks = float(open("/proc/self/stat").read().rpartition(")")[2].split()[19])
    return float(open("/proc/uptime").read().split()[0]) - ticks / os.sysconf("SC_CLK_TCK")
  except OSError:                     # no /proc: processor time is the best there is
    return time.process_time()
