"""Weights of a tiny model for the tests, and a stop after some units.

The weights are drawn by numpy: compiling jax.random for each shape takes many seconds.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from r1jax import loop, train
from r1jax.models import param, transformer


class Once(loop.Stop):
  """Asks to stop after so many units."""
  def __init__(self, units):
    self.left = units

  @property
  def asked(self):
    self.left -= 1
    return self.left < 0


@functools.cache
def weights(model, seed=0, scale=2.0):
  """Random weights, norms' scales too: ones would hide a norm that is left out. `scale`: of the others."""
  rng = np.random.default_rng(seed)

  def leaf(path, p):
    if "norm" in jax.tree_util.keystr(path):
      return rng.uniform(0.5, 1.5, p.shape).astype(model.dtype)
    return (scale * model.dim**-0.5 * rng.normal(size=p.shape)).astype(model.dtype)
  return jax.tree_util.tree_map_with_path(leaf, transformer.params(model), is_leaf=param.is_param)


def token_logprobs(params, model, token_NT, temperature=1.0):
  """Log-probs and entropies [N, T] of whole sequences, column 0 zero: the first token is the prompt."""
  pad = lambda x: jnp.pad(x, ((0, 0), (1, 0)))
  return tuple(map(pad, train.token_logprobs(params, model, token_NT[:, :1], np.ones(len(token_NT), np.int32),
                                             token_NT[:, 1:], temperature)))


@functools.partial(jax.jit, static_argnames=("model", "temperature"))
def score(params, token_NT, *, model, temperature=1.0):
  return token_logprobs(params, model, token_NT, temperature)[0]
