"""What a model's work costs, by formulas: FLOPs and bytes of each phase, parameters, bytes of the state and the cache.

A multiply-add is 2 FLOPs; a weight is one multiply-add for each token that it works on (an expert's works on top_k /
experts of them). Attention: scores and values of what a token sees, itself and what came before; MLA's in the form that
the phase has (models/mla.py). Softmax, rotary turns and routing are left out, and so is what rematerialisation repeats:
these are a model's FLOPs, the ones that MFU is about (PaLM, 2204.02311, appendix B). All sizes are read from the
declared parameters. Bytes are those that memory must move at least: weights, gradients, optimizer state, cache, not
activations. Letters: r1jax/types.py; lengths are tokens, prompt_B of the prompts, answer_N of their answers,
prompt-major. Checked against XLA's own count in tests/test_costs.py.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import numpy as np

from r1jax import optimizer as optimizers
from r1jax.models import param, transformer
from r1jax.models.transformer import ModelConfig
from r1jax.optimizer import OptimizerConfig


@dataclasses.dataclass(frozen=True)
class Work:
  flops: float = 0.0
  bytes: float = 0.0

  def __add__(self, other: Work) -> Work:
    return Work(self.flops + other.flops, self.bytes + other.bytes)


def parameters(cfg: ModelConfig, mtp: bool = True) -> int:
  """All values; mtp: those of the multi-token prediction module too."""
  return param.count(transformer.params(cfg if mtp else dataclasses.replace(cfg, mtp=0)))


def active(cfg: ModelConfig) -> int:
  """Values at work on one token: top_k of the experts, the head; not the embedding's other rows, not the MTP module."""
  return layer_values(cfg) + _at_work(transformer.params(cfg)["final_norm"], cfg) + cfg.dim * cfg.vocab


@functools.cache
def layer_values(cfg: ModelConfig) -> int:
  """Values of the layers at work on one token."""
  tree = transformer.params(cfg)
  return sum(_at_work(tree[kind], cfg) for kind in cfg.stacks)


def _at_work(tree, cfg: ModelConfig) -> int:
  part = lambda p: math.prod(p.shape) * (cfg.moe.top_k if _routed(p) else 1) // (cfg.moe.experts if _routed(p) else 1)
  return sum(map(part, jax.tree.leaves(tree, is_leaf=param.is_param)))


def _routed(p) -> bool:
  return "expert" in p.axes


def seen(start, stop):
  """Tokens that tokens start .. stop - 1 of a sequence see in all: token t sees t + 1."""
  start, stop = np.asarray(start, np.float64), np.asarray(stop, np.float64)
  return (stop * (stop + 1) - start * (start + 1)) / 2


def attention_flops(cfg: ModelConfig, pairs: float, absorbed: bool = False, layers: int = 0) -> float:
  """Of so many pairs (token, token that it sees) in every layer, or in so many. absorbed: MLA on latents (decode)."""
  m = cfg.mla
  keys = cfg.head_dim if not m else m.kv_rank + m.rope_dim if absorbed else m.nope_dim + m.rope_dim
  values = cfg.head_dim if not m else m.kv_rank if absorbed else m.v_dim
  return 2.0 * (layers or cfg.layers) * cfg.heads * (keys + values) * float(pairs)


def layer_flops(cfg: ModelConfig, start, stop, absorbed: bool = False) -> float:
  """Forward pass of tokens start .. stop - 1 of each sequence through the layers; what is before `start` is cached."""
  tokens = float(np.sum(np.subtract(stop, start)))
  return 2.0 * layer_values(cfg) * tokens + attention_flops(cfg, seen(start, stop).sum(), absorbed)


def head_flops(cfg: ModelConfig, tokens: float) -> float:
  return 2.0 * cfg.dim * cfg.vocab * float(tokens)


def mtp_flops(cfg: ModelConfig, length_N) -> float:
  """Forward pass of the MTP module's loss on whole sequences: it and the head once more, at all tokens but two."""
  if not cfg.mtp:
    return 0.0
  tokens_N = np.maximum(np.asarray(length_N, np.float64) - 2, 0)
  return (2.0 * _at_work(transformer.params(cfg)["mtp"], cfg) * tokens_N.sum() + head_flops(cfg, tokens_N.sum())
          + attention_flops(cfg, seen(0, tokens_N).sum(), layers=1))


def prefill(cfg: ModelConfig, prompt_B, cache: str = "") -> Work:
  """All prompts once, in one pass, up to their keys and values; what they predict is counted by `decode`."""
  prompt_B = np.asarray(prompt_B)
  kept = prompt_B.sum() * cache_bytes(cfg, cache)
  return Work(layer_flops(cfg, 0 * prompt_B, prompt_B), float(weight_bytes(cfg, prompt_B.sum()) + kept))


def decode(cfg: ModelConfig, prompt_B, answer_N, cache: str = "") -> Work:
  """All answers in step, each until it ends: every answer token is drawn once, and run once.

  In a step the weights are read once (experts: those that are expected to be chosen, if all are alike), a prompt's
  cache once for its group, and each answer's own.
  """
  prompt_N, answer_N = _each(prompt_B, answer_N)
  longest_B = answer_N.reshape(len(prompt_B), -1).max(1)
  rows_S = len(answer_N) - np.searchsorted(np.sort(answer_N), np.arange(answer_N.max()), side="right")
  looked = seen(0, answer_N).sum() + np.sum(np.asarray(prompt_B, np.float64) * longest_B)
  return Work(layer_flops(cfg, prompt_N, prompt_N + answer_N, absorbed=True) + head_flops(cfg, answer_N.sum()),
              float(weight_bytes(cfg, rows_S).sum() + looked * cache_bytes(cfg, cache)))


def score(cfg: ModelConfig, prompt_B, answer_N, shared: bool = True, passes: int = 1) -> Work:
  """Log-probs of given answers, the reference's or the old policy's. shared: a group's prompt is computed once.

  passes: micro-batches, which read the weights each.
  """
  prompt_N, answer_N = _each(prompt_B, answer_N)
  once = np.asarray(prompt_B) if shared else prompt_N
  flops = layer_flops(cfg, 0 * once, once) + layer_flops(cfg, prompt_N, prompt_N + answer_N)
  tokens = (once.sum() + answer_N.sum()) / passes
  return Work(flops + head_flops(cfg, answer_N.sum()), passes * float(weight_bytes(cfg, tokens)))


def update(cfg: ModelConfig, prompt_B, answer_N, shared: bool = True, passes: int = 1, mtp: bool = False,
           optimizer: OptimizerConfig | None = None) -> Work:
  """Forward and backward, which is twice the forward, of answers' log-probs, and the optimizer's step.

  mtp: with the MTP module's loss on each prompt and answer. optimizer: None leaves its state's bytes out.
  """
  prompt_N, answer_N = _each(prompt_B, answer_N)
  once = score(cfg, prompt_B, answer_N, shared, passes)
  more = mtp_flops(cfg, prompt_N + answer_N) if mtp else 0.0
  state = state_bytes(cfg, optimizer) if optimizer else {"params": 0, "optimizer": 0}
  gradients = (2 * passes + 1) * state_bytes(cfg)["params"]            # added up, then read
  return Work(3 * (once.flops + more), 2 * once.bytes + gradients + 2.0 * (state["params"] + state["optimizer"]))


def grpo_step(cfg: ModelConfig, prompt_B, answer_N, shared: bool = True, reference: bool = True, old: bool = False,
              mtp: bool = False) -> dict[str, Work]:
  """A rollout and one pass of updates over it, by phase. old: its log-probs under the old policy are computed too."""
  one = score(cfg, prompt_B, answer_N, shared)
  phases = dict(prefill=prefill(cfg, prompt_B), decode=decode(cfg, prompt_B, answer_N))
  phases |= dict(reference=one) if reference else {}
  phases |= dict(old=one) if old else {}
  return phases | dict(update=update(cfg, prompt_B, answer_N, shared, mtp=mtp))


def _each(prompt_B, answer_N) -> tuple[np.ndarray, np.ndarray]:
  """The prompt's length of each answer, and the answers' lengths."""
  prompt_B, answer_N = np.asarray(prompt_B), np.asarray(answer_N)
  if not len(prompt_B) or not len(answer_N) or len(answer_N) % len(prompt_B):
    raise ValueError(f"{len(answer_N)} answers are not a whole number for each of {len(prompt_B)} prompts")
  return np.repeat(prompt_B, len(answer_N) // len(prompt_B)), answer_N


def weight_bytes(cfg: ModelConfig, tokens):
  """Bytes of weights that a pass of so many tokens reads: of experts those expected to be chosen, if all are alike."""
  tokens = np.asarray(tokens, np.float64)
  chosen = 1 - (1 - cfg.moe.top_k / cfg.moe.experts) ** tokens if cfg.moe else 1.0
  plain, routed = _read(cfg)
  return plain * (tokens > 0) + routed * chosen


@functools.cache
def _read(cfg: ModelConfig) -> tuple[int, int]:
  """Bytes of the weights that all tokens read, and of all routed experts."""
  tree = transformer.params(cfg)
  tree.pop("mtp", None)
  if "head" in tree:             # of an embedding only the tokens' rows are read
    tree.pop("embed")
  leaves = jax.tree.leaves(tree, is_leaf=param.is_param)
  of = lambda kind: sum(tree_bytes(param.abstract(p, cfg.dtype)) for p in leaves if _routed(p) == kind)
  return of(False), of(True)


def tree_bytes(tree) -> int:
  return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def state_bytes(cfg: ModelConfig, optimizer: OptimizerConfig | None = None, reference: bool = False) -> dict[str, int]:
  """Bytes that training keeps, on all devices together: params, gradients (of their types), optimizer, reference.

  optimizer: None for a model that is not trained. The MTP module is counted with the rest.
  """
  params = param.abstract(transformer.params(cfg), cfg.dtype)
  values = tree_bytes(params)
  out = dict(params=values, gradients=values if optimizer else 0, optimizer=0, reference=values if reference else 0)
  if optimizer:
    out["optimizer"] = tree_bytes(jax.eval_shape(optimizers.make(optimizer, 1).init, params))
  return out


@functools.cache
def cache_bytes(cfg: ModelConfig, cache: str = "", drafter: bool = False) -> int:
  """Bytes of one token's keys and values (MLA: its latent and rotary key) in all layers, scales of narrow types too.

  cache: their type, "" that of the model. drafter: the MTP module's layer as well.
  """
  layers = cfg.layers + (cfg.mtp if drafter else 0)
  return tree_bytes(jax.eval_shape(lambda: transformer.empty_cache(cfg, 1, 1, cache or cfg.dtype, layers)))
