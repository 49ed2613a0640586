"""Bytes that one device sends to others in a phase, by the axis that asks for it, and the seconds on its links.

Within a server or pod (hardware.neighbours devices) they go over its links, beyond it over the network. all_gather and
reduce_scatter of B bytes over n devices send B (n - 1) / n, all_reduce twice that, all_to_all what is another device's;
a token is sent once to each server that has experts of it. Gathered parts cross the network once a
server and spread within. Letters: r1jax/types.py.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np

from r1jax.hardware import Hardware
from r1jax.models.transformer import ModelConfig
from r1jax.plan.assumptions import Assumptions
from r1jax.plan.layout import Layout, shard_bytes


@dataclasses.dataclass(frozen=True)
class Traffic:
  """Bytes that a device sends: near over links, far over the network."""
  near: float | np.ndarray = 0.0
  far: float | np.ndarray = 0.0

  def __add__(self, other: Traffic) -> Traffic:
    return Traffic(self.near + other.near, self.far + other.far)

  def __mul__(self, times: float) -> Traffic:
    return Traffic(self.near * times, self.far * times)

  def seconds(self, hardware: Hardware, numbers: Assumptions):
    """Both at a time: the slower decides. ValueError where the network is needed and has no known rate."""
    far = 0.0
    if np.any(np.asarray(self.far) > 0):
      if not hardware.network:
        raise ValueError(f"{hardware.source}: no network rate beyond {hardware.neighbours} devices in the table")
      far = self.far / (hardware.network * numbers.network)
    near = self.near / (hardware.link / 2 * numbers.link) if hardware.link else 0.0     # made for both directions
    return np.maximum(near, far)


def collective(layout: Layout, axis: str, size, hardware: Hardware, times: float = 1.0) -> Traffic:
  """all_gather or reduce_scatter of arrays of `size` bytes, whole, over an axis; times=2: all_reduce."""
  n, inside = getattr(layout, axis), _inside(layout, axis, hardware)
  if n == 1:
    return Traffic()
  sent = times * size * (n - 1) / n
  if inside == n:
    return Traffic(near=sent)
  return Traffic(near=sent if inside > 1 else 0.0, far=times * size * (n - inside) / n / inside)


def _inside(layout: Layout, axis: str, hardware: Hardware) -> int:
  """Devices of an axis within one server or pod."""
  return max(min(hardware.neighbours // layout.stride(axis), getattr(layout, axis)), 1)


def experts(cfg: ModelConfig, layout: Layout, tokens, hardware: Hardware, numbers: Assumptions,
            sent: float = 0.0) -> Traffic:
  """Tokens to their experts and back, through all MoE layers of a device. sent: bytes of a value on the way there."""
  if not cfg.moe or layout.expert == 1:
    return Traffic()
  item = jnp.dtype(cfg.dtype).itemsize
  layers, n, inside = cfg.stacks["moe_layers"] / layout.stage, layout.expert, _inside(layout, "expert", hardware)
  limited = cfg.moe.groups > cfg.moe.top_groups
  copies = min(cfg.moe.top_k, n // inside, numbers.routed_nodes if limited else cfg.moe.top_k)
  out = Traffic()
  for width in (sent or item, item):
    each = np.asarray(tokens, np.float64) * cfg.dim * width / layout.tensor
    near = each * cfg.moe.top_k * ((n - 1) / n if inside == n else 1 if inside > 1 else 0)
    out += Traffic(near, each * copies * (n - inside) / n)
  return out * layers


def layer_pass(cfg: ModelConfig, layout: Layout, tokens, hardware: Hardware, numbers: Assumptions) -> Traffic:
  """One forward pass: all_reduce of tensor, keys and values of context, experts, what a stage hands on."""
  item = jnp.dtype(cfg.dtype).itemsize
  layers, hidden = cfg.layers / layout.stage, np.asarray(tokens, np.float64) * cfg.dim * item
  kv = (cfg.mla.kv_rank + cfg.mla.rope_dim if cfg.mla else 2 * cfg.kv_heads * cfg.head_dim / layout.tensor) * item
  out = collective(layout, "tensor", hidden * 2 * layers, hardware, 2)
  out += collective(layout, "context", np.asarray(tokens, np.float64) * layout.context * kv * layers, hardware)
  out += experts(cfg, layout, tokens, hardware, numbers)
  if layout.stage > 1:
    far = layout.stride("stage") >= hardware.neighbours
    out += Traffic(far=hidden) if far else Traffic(near=hidden)
  return out


def gathered(cfg: ModelConfig, layout: Layout, hardware: Hardware) -> Traffic:
  """All weights of a device's layers gathered once, over fsdp and over context."""
  far = shard_bytes(cfg, dataclasses.replace(layout, fsdp=1))
  near = shard_bytes(cfg, dataclasses.replace(layout, fsdp=1, context=1))
  return collective(layout, "fsdp", far, hardware) + collective(layout, "context", near, hardware)


def reduced(cfg: ModelConfig, layout: Layout, hardware: Hardware) -> Traffic:
  """Gradients after an update's last part: over data all of them, over expert those that are copies."""
  plain, routed = (shard_bytes(cfg, layout, kind=kind) for kind in ("plain", "routed"))
  return collective(layout, "data", plain + routed, hardware, 2) + collective(layout, "expert", plain, hardware, 2)


def synced(cfg: ModelConfig, train: Layout, rollout: Layout, hardware: Hardware, item: float = 0.0) -> Traffic:
  """New weights from the layout of updates to that of rollouts: each device receives its part, over the network."""
  size = shard_bytes(cfg, rollout) * (item or jnp.dtype(cfg.dtype).itemsize) / jnp.dtype(cfg.dtype).itemsize
  return Traffic(near=size) if train.devices <= hardware.neighbours else Traffic(far=size)
