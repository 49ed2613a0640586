"""Whole GRPO steps on random tokens: what a step costs, and how near that is to what the machine can do.

The functions are the ones that training calls. Every answer has full length, so that the work is the same each step.
"""

from __future__ import annotations

import os
import resource
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
from rich.table import Table

from r1jax import credit, optimizer, rollout, sampler, train
from r1jax.bench.timing import best
from r1jax.grpo import LossConfig
from r1jax.models import param, transformer
from r1jax.models.transformer import ModelConfig
from r1jax.optimizer import OptimizerConfig
from r1jax.sampler import SampleConfig
from r1jax.stages import reasoning_rl
from r1jax.stages.reasoning_rl import RLConfig
from r1jax.types import Problem

# model, prompts, answers to each, prompt tokens, answer tokens, micro-batches
SHAPES = dict(
  A=(ModelConfig(vocab=512, dim=128, layers=4, heads=4, kv_heads=2, ffn=256), 8, 8, 32, 64, 1),
  B=(ModelConfig(vocab=49_152, dim=576, layers=30, heads=9, kv_heads=3, ffn=1536), 4, 8, 64, 64, 4),
)
# Seconds a step of shape A, measured on 2 cores of another machine; not run here
PEERS = dict(A={"TRL 1.16 (torch 2.13)": 0.96, "Tunix 0.1.7": 1.06}, B={"TRL 1.16 (torch 2.13)": 64.0})


def measure(shape: str, steps: int) -> dict:
  """Seconds of each phase (medians over `steps`), start-up, FLOP/s beside a large matmul's, peak memory."""
  model, B, G, P, A, micro = SHAPES[shape]
  cfg = RLConfig(optimizer=OptimizerConfig(lr=1e-5), loss=LossConfig(), sampling=SampleConfig(A), rewards=dict(x=1.0),
                 rollouts=steps, questions_per_rollout=B, group_size=G, micro_batches=micro)
  tx = optimizer.make(cfg.optimizer, steps)
  params = jax.jit(lambda key: transformer.init(model, key))(jax.random.key(0))
  state = train.init_state(params, tx, reference=True)
  del params
  update = train.compiled_step(lambda p, b: reasoning_rl.policy_loss(p, b, model=model, cfg=cfg), tx, micro)
  rng = np.random.default_rng(0)
  prompts = rng.integers(0, model.vocab, (B, P)).tolist()
  problems = [Problem(i, "", "") for i in range(B)]
  phases: dict[str, list[float]] = dict(rollout=[], reference=[], update=[], step=[])
  first = 0.0
  for step in range(steps + 2):
    t0 = time.perf_counter()
    keys = sampler.sample_keys(0, step, jnp.arange(B), jnp.arange(G))
    done = sampler.sample(state.params, np.asarray(prompts, np.int32), jnp.full(B, P), keys, model=model,
                          cfg=cfg.sampling, end_id=-1)
    answers, logps = np.asarray(done.token_NA), np.asarray(done.logp_NA)
    t1 = time.perf_counter()
    rollouts = rollout.Rollouts(problems, prompts, answers.tolist(), list(logps), [""] * (B * G), np.zeros(B * G, bool))
    reward_N = (answers.sum(1) % 2).astype(np.float32)
    batch = rollout.to_batch(rollouts)
    ref = train.score(state.ref_params, batch.prompt_BP, batch.prompt_length_B, batch.answer_NA, model=model,
                      micro_batches=micro)
    batch, _ = credit.credited(cfg, batch.replace(ref_logp_NA=np.asarray(ref)), reward_N, rollouts.truncated_N,
                                     np.zeros(B * G, bool), 0, step)
    t2 = time.perf_counter()
    state, metrics = update(state, batch)
    loss = float(metrics["loss"].value())
    t3 = time.perf_counter()
    if not np.isfinite(loss):
      raise ValueError(f"loss {loss} at step {step}")
    if step == 0:
      first = _since_start()
    if step >= 2:
      for name, seconds in zip(phases, (t1 - t0, t2 - t1, t3 - t2, t3 - t0), strict=True):
        phases[name].append(seconds)
  peak = matmul_speed()
  tokens, count = B * G * (P + A), param.count(transformer.params(model))
  medians = {f"seconds/{k}": statistics.median(v) for k, v in phases.items()}
  flops = step_flops(model, B, G, P, A)
  return dict(shape=shape, device=jax.devices()[0].device_kind, cores=os.cpu_count(), jax=jax.__version__,
              parameters=count, model=f"{model.layers} x {model.dim}, ffn {model.ffn}, vocab {model.vocab}",
              **medians, **{"seconds/start_to_first_step": first}, tokens_per_s=tokens / medians["seconds/step"],
              flops_per_s=flops / medians["seconds/step"], matmul_flops_per_s=peak,
              peak_memory_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def step_flops(model: ModelConfig, B: int, G: int, P: int, A: int) -> float:
  """Multiply-adds x 2 of a step: rollout, reference, policy forward and backward (3 forwards); prompts once each."""
  weights = param.count(transformer.params(model)["layers"])
  head = 2 * model.dim * model.vocab

  def forward(sequences, start, stop):   # attention: scores and values, each token on what came before
    seen = sum(range(start + 1, stop + 1))
    return sequences * (2 * weights * (stop - start) + 4 * model.layers * model.heads * model.head_dim * seen)

  N = B * G
  sampling = forward(B, 0, P) + forward(N, P, P + A) + N * A * head
  return sampling + 4 * (forward(B, 0, P) + forward(N, P, P + A) + N * A * head)


def matmul_speed(size: int = 1536, repeats: int = 5) -> float:
  """FLOP/s of a large f32 matmul: what this machine can do at best."""
  x = jnp.ones((size, size))
  multiply = jax.jit(lambda a, b: a @ b)
  return 2 * size**3 / best(lambda: multiply(x, x), repeats)


def table(result: dict) -> Table:
  out = Table("GRPO step, shape " + result["shape"], f"{result['device']} x {result['cores']}, jax {result['jax']}")
  out.add_row("model", f"{result['model']} ({result['parameters']:,} parameters)")
  for name in ("rollout", "reference", "update", "step"):
    out.add_row(f"seconds, {name}", f"{result[f'seconds/{name}']:.3f}")
  out.add_row("tokens a second", f"{result['tokens_per_s']:,.0f}")
  out.add_row("of this machine's matmul speed", f"{result['flops_per_s'] / result['matmul_flops_per_s']:.0%}"
              f" ({result['flops_per_s'] / 1e9:.0f} of {result['matmul_flops_per_s'] / 1e9:.0f} GFLOP/s)")
  out.add_row("start to first step, compilation included", f"{result['seconds/start_to_first_step']:.1f} s")
  out.add_row("peak memory of the process", f"{result['peak_memory_bytes'] / 2**20:,.0f} MiB")
  for name, seconds in PEERS[result["shape"]].items():
    out.add_row(f"{name}, other machine", f"{seconds:g} s a step")
  return out


def _since_start() -> float:
  """Seconds since this process began."""
  try:
    ticks = float(open("/proc/self/stat").read().rpartition(")")[2].split()[19])
    return float(open("/proc/uptime").read().split()[0]) - ticks / os.sysconf("SC_CLK_TCK")
  except OSError:                     # no /proc: processor time is the best there is
    return time.process_time()
