"""DeepSeek-V3's multi-token prediction module (V3 report section 2.2): from the state at token t and token t + 1,
token t + 2. It shares embedding and head with the model; in training it is a second loss, in decoding a drafter.

As in the released weights' engines: the state is taken after the final norm, and the embedding comes first in the pair.
Letters: r1jax/types.py.
"""

from __future__ import annotations

import jax.numpy as jnp

from r1jax import losses
from r1jax.models import attention, layers, rope, transformer
from r1jax.models.layers import linear


def forward(p, cfg, hidden_NTD, next_NT, position_NT, attend=attention.causal, cache=None):
  """Hidden states [N, T, D] that predict the token after `next_NT`, from the model's states at the token before it,
  and what `attend` kept."""
  m = p["mtp"]
  turned = position_NT if isinstance(position_NT, rope.Table) else transformer.positions(cfg, position_NT)
  pair_NTX = jnp.concatenate([layers.rms_norm(transformer.embedded(p, next_NT), m["embed_norm"], cfg.norm_eps),
                              layers.rms_norm(hidden_NTD, m["hidden_norm"], cfg.norm_eps)], axis=-1)
  x_NTD, kept, _ = transformer.layer(cfg, m["layer"], linear(pair_NTX, m["merge"]), turned, attend, cache)
  return layers.rms_norm(x_NTD, m["final_norm"], cfg.norm_eps), kept


def loss(p, cfg, hidden_NTD, token_NT, mask_NT, position_NT) -> losses.Mean:
  """Cross-entropy of token t + 2 from the state at t, over the tokens where mask_NT is 1 (V3 eq. 24).

  hidden_NTD: of token_NT, whole sequences, right-padded. V3 adds this to the loss 0.3 times, later 0.1 times.
  """
  hidden_NTD, _ = forward(p, cfg, hidden_NTD[:, :-2], token_NT[:, 1:-1], position_NT[:, :-2])
  target_NT = token_NT[:, 2:]
  logp_M, _ = losses.token_logprobs(hidden_NTD.reshape(-1, cfg.dim), transformer.head(p), target_NT.reshape(-1), 1.0,
                                    cfg.logit_chunk, tied=cfg.tied_head)
  return losses.cross_entropy(logp_M.reshape(target_NT.shape), mask_NT[:, 2:])
