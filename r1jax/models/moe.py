"""Mixture of experts: DeepSeek-V3's router (V3 report sections 2.1.2-3) and Qwen3-MoE's, and three ways to run experts.

V3: sigmoid scores; a bias per expert moves the *selection* alone; the best groups of experts by the sum of their two
best; of these the top k; weights are the scores without bias, normalised and scaled. A shared expert sees every token.
Letters: M tokens, E experts, k chosen experts, S groups, c capacity; the rest in r1jax/types.py.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from r1jax import losses
from r1jax.kernels.grouped_matmul import grouped_matmul
from r1jax.models import expert_parallel, layers
from r1jax.models.layers import linear
from r1jax.models.param import Param, normal, zeros

DISPATCH = ("dropless", "capacity", "dense")
LOAD = "router_load"      # the metric by which a loss reports loads [L, E] to the bias' update rule


@dataclasses.dataclass(frozen=True)
class MoEConfig:
  """Defaults are DeepSeek-V3's rules; its sizes are 256 experts, top 8, ffn 2048, 8 groups, 4 kept, scale 2.5."""
  experts: int
  top_k: int
  ffn: int                       # of one expert
  shared: int = 1                # experts that see every token: one feed-forward of this many times `ffn`
  score: str = "sigmoid"         # or softmax, over all experts (Qwen3)
  groups: int = 1
  top_groups: int = 1
  normalise: bool = True         # the chosen weights sum to one, before `scale`
  scale: float = 1.0
  bias: bool = True              # the selection bias; its update rule is update_bias
  dispatch: str = "dropless"     # capacity: fixed room per expert, tokens beyond it are dropped; dense: the oracle
  capacity_factor: float = 1.25  # room per expert, in units of an even share
  capacity_group: int = 0        # tokens, one behind the other, that share it; 0: all of a call

  @property
  def index_dtype(self):
    """The smallest integer type that holds an expert's number."""
    return jnp.uint8 if self.experts <= 256 else jnp.int32

  def __post_init__(self):
    if not 1 <= self.top_k <= self.experts or self.ffn < 1 or self.shared < 0:
      raise ValueError(f"model.moe needs 1 <= top_k={self.top_k} <= experts={self.experts}, ffn={self.ffn} >= 1,"
                       f" shared={self.shared} >= 0")
    if self.groups < 1 or self.experts % self.groups or not 1 <= self.top_groups <= self.groups:
      raise ValueError(f"model.moe: experts={self.experts} must be a multiple of groups={self.groups}, of which"
                       f" top_groups={self.top_groups} are kept")
    if self.top_k > self.experts // self.groups * self.top_groups:
      raise ValueError(f"model.moe: {self.top_groups} groups of {self.experts // self.groups} experts hold fewer than"
                       f" top_k={self.top_k}")
    if self.groups > 1 and self.experts // self.groups < 2:
      raise ValueError(f"model.moe: groups={self.groups} of one expert have no two best")
    if self.score not in ("sigmoid", "softmax"):
      raise ValueError(f"model.moe.score={self.score!r} is none of sigmoid, softmax")
    if self.dispatch not in DISPATCH:
      raise ValueError(f"model.moe.dispatch={self.dispatch!r} is none of {DISPATCH}")
    if self.capacity_factor <= 0 or self.capacity_group < 0:
      raise ValueError(f"model.moe.capacity_factor={self.capacity_factor} must be above 0, and"
                       f" capacity_group={self.capacity_group} not negative")


class Routing(NamedTuple):
  """What the router of one layer did; stacked on a leading axis over MoE layers."""
  expert_NTk: jax.Array          # int32, for replay: sampler and trainer then use the same experts
  load_E: jax.Array              # tokens that chose each expert, f32; padding left out where a mask was given
  dropped: jax.Array             # how many (token, expert) pairs found no room, f32 scalar
  balance: jax.Array             # the sequence-wise balance loss, summed over sequences, before alpha, f32 scalar


def params(cfg):
  m, D, E, F = cfg.moe, cfg.dim, cfg.moe.experts, cfg.moe.ffn
  tree = dict(
    router=Param((D, E), ("embed", None), normal(D**-0.5)),
    gate=Param((E, D, F), ("expert", "embed", "ffn"), normal(D**-0.5)),
    up=Param((E, D, F), ("expert", "embed", "ffn"), normal(D**-0.5)),
    down=Param((E, F, D), ("expert", "ffn", "embed"), normal(cfg.out_std * F**-0.5)),
  )
  if m.bias:
    tree["selection_bias"] = Param((E,), (None,), zeros, "float32")
  if m.shared:
    tree["shared"] = layers.swiglu_params(D, m.shared * F, cfg.out_std)
  return tree


def select(cfg: MoEConfig, score_E, bias_E):
  """The experts of one token, [k], from its scores and the selection bias. No gradient."""
  chosen_by_E = jax.lax.stop_gradient(score_E + bias_E)
  if cfg.groups > 1:
    by_group_SE = chosen_by_E.reshape(cfg.groups, -1)
    best_S = jax.lax.top_k(by_group_SE, 2)[0].sum(-1)
    kept_S = jnp.zeros(cfg.groups, bool).at[jax.lax.top_k(best_S, cfg.top_groups)[1]].set(True)
    chosen_by_E = jnp.where(kept_S[:, None], by_group_SE, -jnp.inf).reshape(-1)
  return jax.lax.top_k(chosen_by_E, cfg.top_k)[1]


def weights(cfg: MoEConfig, score_E, expert_k):
  """The weights of one token's experts, [k]: their scores, without bias."""
  weight_k = score_E[expert_k]
  if cfg.normalise:
    weight_k = weight_k / (weight_k.sum() + 1e-20)
  return weight_k * cfg.scale


def block(p, cfg, x_NTD, replay_NTk=None, mask_NT=None):
  """x through the experts [N, T, D], and the Routing.

  replay_NTk: the experts to use, such as the sampler's; weights still come from this router, which gets its gradient.
  mask_NT: 0 on padding, which load and balance leave out; padding is computed all the same.
  """
  m = cfg.moe
  N, T, _ = x_NTD.shape
  logit_NTE = linear(x_NTD.astype(jnp.float32), p["router"].astype(jnp.float32))
  score_NTE = jax.nn.sigmoid(logit_NTE) if m.score == "sigmoid" else jax.nn.softmax(logit_NTE)
  of_tokens = lambda f: jax.vmap(jax.vmap(f))
  if replay_NTk is None:
    bias_E = p["selection_bias"] if m.bias else jnp.zeros(m.experts)
    expert_NTk = of_tokens(lambda s: select(m, s, bias_E))(score_NTE)
  else:
    expert_NTk = replay_NTk.astype(jnp.int32)
  weight_NTk = of_tokens(lambda s, e: weights(m, s, e))(score_NTE, expert_NTk)
  way = dict(dropless=dropless, capacity=with_capacity, dense=dense)[m.dispatch]
  out_NTD, dropped = expert_parallel.run(way, p, m, x_NTD, expert_NTk, weight_NTk)
  if m.shared:
    out_NTD = out_NTD + layers.swiglu(p["shared"], x_NTD)
  mask_NT = jnp.ones((N, T)) if mask_NT is None else mask_NT
  chosen_NTE = jax.nn.one_hot(expert_NTk, m.experts).sum(2) * mask_NT[..., None]
  balance = jax.vmap(lambda *x: sequence_balance(m, *x))(score_NTE, chosen_NTE, mask_NT).sum()
  return out_NTD, Routing(expert_NTk, chosen_NTE.sum((0, 1)), dropped, balance)


def sequence_balance(cfg: MoEConfig, score_TE, chosen_TE, mask_T):
  """sum_i f_i P_i of one sequence (V3 eq. 17-20): 1 when tokens and scores are even, more when both lean one way."""
  tokens = jnp.maximum(mask_T.sum(), 1.0)
  f_E = cfg.experts / (cfg.top_k * tokens) * jax.lax.stop_gradient(chosen_TE).sum(0)
  share_TE = score_TE / score_TE.sum(-1, keepdims=True) * mask_T[:, None]
  return jnp.sum(f_E * share_TE.sum(0) / tokens)


def update_bias(bias_E, load_E, speed: float):
  """Selection bias after a step: down for experts with more than the mean load, up for the others (V3 section 2.1.2).

  speed: V3's gamma, 0.001 in pre-training and 0 at its end; in RL the bias stays as it is.
  """
  return bias_E + speed * jnp.sign(load_E.mean(-1, keepdims=True) - load_E)


def balanced(params, load_LE, speed: float):
  """The parameters with update_bias applied to all MoE layers, whose loads of this step these are."""
  stack = params["moe_layers"]
  bias_LE = update_bias(stack["moe"]["selection_bias"], load_LE, speed)
  return params | {"moe_layers": stack | {"moe": stack["moe"] | {"selection_bias": bias_LE}}}


def metrics(routing: Routing | None) -> dict:
  """What a run logs of the routers: {} without them. Loads: the busiest expert's, in units of the mean, worst layer."""
  if routing is None:
    return {}
  load_LE = routing.load_E
  busiest_L = load_LE.max(-1) / jnp.maximum(load_LE.mean(-1), 1e-9)
  return {"router_busiest": losses.Max(busiest_L.max()),
          "router_dropped": losses.Mean(routing.dropped.sum(), load_LE.sum())}


def _expert(gate, up, down, multiply, x):
  return multiply(jax.nn.silu(multiply(x, gate)) * multiply(x, up), down)


def dropless(p, cfg: MoEConfig, x_MD, expert_Mk, weight_Mk):
  """Every token gets its k experts: rows sorted by expert, three grouped matmuls, rows put back.

  Where p holds some experts only, counted from 0, a number outside of them is another device's, and adds nothing here.
  """
  (M, k), E = expert_Mk.shape, p["gate"].shape[0]
  expert_R = expert_Mk.reshape(-1)                     # R = M k rows
  if E < cfg.experts:
    expert_R = jnp.where((expert_R >= 0) & (expert_R < E), expert_R, E)
  order_R = jnp.argsort(expert_R, stable=True)
  count_E = jnp.zeros(E, jnp.int32).at[expert_R].add(1, mode="drop")
  y_RD = _expert(p["gate"], p["up"], p["down"], lambda x, w: grouped_matmul(x, w, count_E), x_MD[order_R // k])
  y_MkD = y_RD[jnp.argsort(order_R)].reshape(M, k, -1)
  return jnp.einsum("mkd,mk->md", y_MkD, weight_Mk.astype(y_MkD.dtype)), jnp.float32(0)


def with_capacity(p, cfg: MoEConfig, x_MD, expert_Mk, weight_Mk, there=lambda x: x, back=lambda x: x):
  """Each expert takes its first c tokens, c = capacity_factor M k / E; a pair beyond adds nothing. Fixed shapes.

  M: of capacity_group, of which there may be several. there, back: exchange rows [E, ., D] with other devices.
  """
  M, k = expert_Mk.shape
  E, size = cfg.experts, min(cfg.capacity_group or M, M)
  c = math.ceil(size * k / E * cfg.capacity_factor)
  groups = -(-M // size)
  expert_R = expert_Mk.reshape(-1)
  chosen_RE = jax.nn.one_hot(expert_R, E, dtype=jnp.int32)
  chosen_gRE = jnp.pad(chosen_RE, ((0, groups * size * k - M * k), (0, 0))).reshape(groups, size * k, E)
  place_RE = (jnp.cumsum(chosen_gRE, axis=1) - 1).reshape(-1, E)
  place_R = place_RE[jnp.arange(M * k), expert_R]
  room = groups * c                                    # of an expert
  slot_R = jnp.where(place_R < c, expert_R * room + jnp.arange(M * k) // (size * k) * c + place_R, E * room)
  x_XD = jnp.zeros((E * room, x_MD.shape[1]), x_MD.dtype).at[slot_R].set(x_MD[jnp.arange(M * k) // k], mode="drop")
  multiply = lambda x, w: jnp.einsum("ecd,edf->ecf", x, w)
  y_EcD = back(_expert(p["gate"], p["up"], p["down"], multiply, there(x_XD.reshape(E, room, -1))))
  y_MkD = jnp.take(y_EcD.reshape(E * room, -1), slot_R, axis=0, mode="fill", fill_value=0).reshape(M, k, -1)
  out_MD = jnp.einsum("mkd,mk->md", y_MkD, weight_Mk.astype(y_MkD.dtype))
  return out_MD, jnp.sum(place_R >= c).astype(jnp.float32)


def dense(p, cfg: MoEConfig, x_MD, expert_Mk, weight_Mk):
  """All experts on all tokens, then the chosen ones by weight: what the others are tested against."""
  weight_ME = (jax.nn.one_hot(expert_Mk, cfg.experts) * weight_Mk[..., None]).sum(1)
  h_MEF = jax.nn.silu(jnp.einsum("md,edf->mef", x_MD, p["gate"])) * jnp.einsum("md,edf->mef", x_MD, p["up"])
  y_MED = jnp.einsum("mef,efd->med", h_MEF, p["down"])
  return jnp.einsum("med,me->md", y_MED, weight_ME.astype(y_MED.dtype)), jnp.float32(0)
