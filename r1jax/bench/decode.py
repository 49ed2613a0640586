"""Decode and prefill speed of a SmolLM2-135M-shaped policy, beside transformers' generate, the bare matmuls and what
the machine can do at best; and answers of mixed lengths, in step against through slots.

Random weights and tokens; each answer has full length, or the length that was drawn for it. Compilation is not in the
times. The peer runs in the same process, on the same cores, on weights of the same shape, where torch and transformers
are installed.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os

import jax
import jax.numpy as jnp
import numpy as np
from rich.table import Table

from r1jax import costs, sampler, slots
from r1jax.bench import roofline
from r1jax.bench.timing import best
from r1jax.models import param, transformer
from r1jax.models.transformer import ModelConfig
from r1jax.sampler import SampleConfig

MODEL = ModelConfig(vocab=49_152, dim=576, layers=30, heads=9, kv_heads=3, ffn=1536)
ROWS, PROMPT, ANSWER = 32, 64, 64
MIXED = 4            # times ROWS answers, of geometric lengths with a mean of a fifth of LONGEST
LONGEST = 5 * ANSWER
DTYPES = ("float32", "bfloat16")


def measure(repeats: int = 3, peer: bool = True, model: ModelConfig = MODEL, rows: int = ROWS, prompt: int = PROMPT,
            answer: int = ANSWER, longest: int = LONGEST, console=None) -> dict:
  """Seconds of a prefill of `rows` prompts, of its matmuls alone, and of `answer` decoded tokens a row, by dtype; the
  least seconds that the decode's work takes at the machine's limits; and the mixed lengths' (f32)."""
  result = dict(rows=rows, prompt=prompt, answer=answer, cores=os.cpu_count(), jax=jax.__version__,
                device=jax.devices()[0].device_kind, parameters=param.count(transformer.params(model)))
  token_NP = np.random.default_rng(0).integers(0, model.vocab, (rows, prompt)).astype(np.int32)
  say = console.print if console else lambda text: None
  for dtype in DTYPES:
    say(f"r1jax {dtype}")
    ours = dataclasses.replace(model, dtype=dtype)
    params = jax.jit(lambda key, m=ours: transformer.init(m, key))(jax.random.key(0))
    result |= {f"{dtype}/{k}": v for k, v in _ours(params, ours, token_NP, answer, repeats).items()}
    if dtype == "float32":
      least, bound = _limit(ours, rows, prompt, answer)
      result |= dict(limit=least, bound=bound)
      say("mixed lengths")
      result |= {f"mixed/{k}": v for k, v in mixed(params, ours, rows, prompt, longest, repeats).items()}
    del params
  if peer and all(map(importlib.util.find_spec, ("torch", "transformers"))):
    for dtype in DTYPES:
      say(f"transformers {dtype}")
      result[f"{dtype}/transformers"] = _transformers(model, token_NP, answer, repeats, dtype)
  return result


def _ours(params, model: ModelConfig, token_NP, answer: int, repeats: int) -> dict[str, float]:
  N, P = token_NP.shape
  length_N = jnp.full(N, P)
  keys = sampler.sample_keys(0, 0, jnp.arange(N), jnp.arange(1))
  static = dict(model=model, cfg=SampleConfig(answer), end_id=-1)
  prefill = lambda: sampler.start(params, token_NP, length_N, keys, **static)
  matmuls = jax.jit(lambda p, x: _matmuls(p, model, x))
  x_MD = jnp.ones((N * P, model.dim), model.dtype)
  out = dict(prefill=best(prefill, repeats), matmuls=best(lambda: matmuls(params, x_MD), repeats))
  whole = best(lambda: sampler.sample(params, token_NP, length_N, keys, **static), repeats)
  return out | dict(decode=whole - out["prefill"], generate=whole)


def _limit(model: ModelConfig, rows: int, prompt: int, answer: int) -> tuple[float, str]:
  """Seconds of `answer` tokens a row if all ran at the speed of a large matmul, or of a large copy, and which."""
  work = costs.decode(model, [prompt] * rows, [answer] * rows)
  return roofline.of(jax.devices()[0]).seconds(work.flops, work.bytes, model.dtype)


def mixed(params, model: ModelConfig, rows: int, prompt: int, longest: int, repeats: int) -> dict[str, float]:
  """MIXED * rows answers whose lengths are geometric: seconds in batches of `rows` in step, and through `rows` slots.

  Both are given the lengths as budgets, so that they do the same work; in step, a batch takes as long as its longest.
  """
  rng, N = np.random.default_rng(1), MIXED * rows
  budget_N = np.minimum(rng.geometric(5 / longest, N), longest)
  token_NP = rng.integers(0, model.vocab, (N, prompt))
  keys_N = np.asarray(jax.random.key_data(sampler.sample_keys(0, 0, jnp.arange(N), jnp.arange(1))))
  jobs = [slots.Job(tuple(t.tolist()), k, int(b)) for t, k, b in zip(token_NP, keys_N, budget_N, strict=True)]
  stats: list[slots.Stats] = []

  def run(cfg, at_once):
    stats.append(slots.Stats())
    said = {}
    for first in range(0, N, at_once):
      said |= {first + i: len(s.tokens) for i, s in slots.run(params, jobs[first:first + at_once], model=model, cfg=cfg,
                                                        end_id=-1, lanes=rows, width=1, stats=stats[-1])}
    return said
  plain, slotted = SampleConfig(longest), SampleConfig(longest, slots=rows, chunk=8)
  for cfg, at_once in ((plain, rows), (slotted, N)):
    if (lengths := run(cfg, at_once)) != dict(enumerate(budget_N.tolist())):
      raise ValueError(f"{sum(lengths.values())} tokens were drawn, not {budget_N.sum()}")
  in_step = best(lambda: run(plain, rows) and None, repeats)
  slot = best(lambda: run(slotted, N) and None, repeats)
  return dict(in_step=in_step, slots=slot, answers=N, tokens=int(budget_N.sum()), longest=longest,
              mean=float(budget_N.mean()), **{f"row/{k}": v for k, v in stats[-1].row().items()})


def _matmuls(p, model: ModelConfig, x_MD):
  """The weights' products of a forward pass and nothing else, each depending on the one before."""
  def layer(x_MD, w):
    a, f = w["attention"], w["ffn"]
    flat = lambda m, axes: m.reshape(int(np.prod(m.shape[:axes])), -1)
    q, k, v = (x_MD @ flat(a[name], 1) for name in "qkv")
    y_MD = q @ flat(a["out"], 2)
    y_MD += jnp.pad(k, ((0, 0), (0, model.dim - k.shape[1]))) + jnp.pad(v, ((0, 0), (0, model.dim - v.shape[1])))
    return (y_MD @ f["gate"] + y_MD @ f["up"]) @ f["down"], None
  return jax.lax.scan(layer, x_MD, p["layers"])[0]


def _transformers(model: ModelConfig, token_NP, answer: int, repeats: int, dtype: str) -> float:
  """Seconds of LlamaForCausalLM.generate with its cache, sampling at T 1, the same lengths."""
  import torch
  from transformers import LlamaConfig, LlamaForCausalLM
  config = LlamaConfig(
    vocab_size=model.vocab, hidden_size=model.dim, intermediate_size=model.ffn, num_hidden_layers=model.layers,
    num_attention_heads=model.heads, num_key_value_heads=model.kv_heads, tie_word_embeddings=True,
    max_position_embeddings=2048, bos_token_id=None, eos_token_id=None, pad_token_id=0)
  torch.manual_seed(0)
  theirs = LlamaForCausalLM(config).to(getattr(torch, dtype)).eval()
  tokens = torch.tensor(token_NP, dtype=torch.long)

  def generate():
    with torch.no_grad():
      out = theirs.generate(tokens, attention_mask=torch.ones_like(tokens), do_sample=True, top_k=0, top_p=1.0,
                            max_new_tokens=answer, min_new_tokens=answer)
    if out.shape[1] != tokens.shape[1] + answer:
      raise ValueError(f"transformers gave {out.shape[1] - tokens.shape[1]} tokens, not {answer}")
  return best(generate, repeats)


def table(result: dict) -> Table:
  tokens = result["rows"] * result["answer"]
  out = Table(f"{result['rows']} rows, {result['prompt']} + {result['answer']} tokens, {result['parameters']:,} params",
              *DTYPES, title=f"{result['device']} x {result['cores']}, jax {result['jax']}")
  row = lambda name, show: out.add_row(name, *map(show, DTYPES))
  row("prefill, s", lambda d: f"{result[f'{d}/prefill']:.2f}")
  row("  of which matmuls alone", lambda d: f"{result[f'{d}/matmuls']:.2f}")
  row("  ratio", lambda d: f"{result[f'{d}/prefill'] / result[f'{d}/matmuls']:.2f}")
  row("decode, tokens/s", lambda d: f"{tokens / result[f'{d}/decode']:,.0f}")
  if "limit" in result:
    out.add_row(f"  of which the machine's limit ({result['bound']})", f"{result['limit']:.2f} s, times"
                f" {result['float32/decode'] / result['limit']:.2f}", "")
  row("prefill + decode, s", lambda d: f"{result[f'{d}/generate']:.2f}")
  if f"{DTYPES[0]}/transformers" in result:
    row("transformers generate, s", lambda d: f"{result[f'{d}/transformers']:.2f}")
    row("  r1jax is faster by", lambda d: f"{result[f'{d}/transformers'] / result[f'{d}/generate']:.2f}x")
  else:
    out.add_row("transformers", "not installed", "")
  if "mixed/slots" in result:
    got = lambda name: result[f"mixed/{name}"]
    out.add_row(f"{got('answers')} answers of {got('mean'):.0f} tokens in the mean, {got('longest')} at most", "", "")
    out.add_row("  in step, s", f"{got('in_step'):.2f}", "")
    out.add_row("  through slots, s", f"{got('slots'):.2f}", "")
    out.add_row("  faster by", f"{got('in_step') / got('slots'):.2f}x", "")
    out.add_row("  slots at work, and time with fewer than half", f"{got('row/occupancy'):.0%},"
                f" {got('row/tail_share'):.0%}", "")
  return out
