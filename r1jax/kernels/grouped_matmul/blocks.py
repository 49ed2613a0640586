"""Grouped matmul as a loop over blocks of rows of one expert each: the cost follows the rows, not the experts.

For backends whose ragged_dot multiplies every row by every expert (CPU). `block` rows are multiplied at a time; the
last block of an expert reaches into rows that are not its own, and leaves what stands there as it was.
"""

import jax
import jax.numpy as jnp


def _blocks(count_E, M: int, E: int, block: int):
  """First row and expert of each block, and how many of its rows are the expert's; surplus blocks have none.

  There are at most M / block + E blocks, however the rows fall.
  """
  blocks_E = -(-count_E // block)
  upto_E = jnp.cumsum(blocks_E)
  i = jnp.arange(M // block + E)
  expert = jnp.minimum(jnp.searchsorted(upto_E, i, side="right"), E - 1)
  nth = i - (upto_E - blocks_E)[expert]
  start = (jnp.cumsum(count_E) - count_E)[expert] + nth * block
  rows = jnp.where(i < upto_E[-1], jnp.clip(count_E[expert] - nth * block, 0, block), 0)
  return start, expert, rows, upto_E[-1]


def _take(x, start, block):
  return jax.lax.dynamic_slice_in_dim(x, start, block)


def _loop(body, init, count_E, M, E, block):
  start, expert, rows, used = _blocks(count_E, M, E, block)
  mask = lambda i: (jnp.arange(block) < rows[i])[:, None]
  return jax.lax.fori_loop(0, used, lambda i, carry: body(carry, start[i], expert[i], mask(i)), init)


def forward(x_MD, w_EDF, count_E, block: int):
  """[M, F]; rows beyond sum(count_E) are zero."""
  M, E = x_MD.shape[0], w_EDF.shape[0]
  padded_MD = jnp.pad(x_MD, ((0, block), (0, 0)))       # so that the last block may reach beyond

  def body(out_MF, start, expert, mine):
    y = jnp.dot(_take(padded_MD, start, block), w_EDF[expert], preferred_element_type=jnp.float32)
    kept = jnp.where(mine, y.astype(out_MF.dtype), _take(out_MF, start, block))
    return jax.lax.dynamic_update_slice_in_dim(out_MF, kept, start, 0)
  out_MF = jnp.zeros((M + block, w_EDF.shape[2]), x_MD.dtype)
  return _loop(body, out_MF, count_E, M, E, block)[:M]


def backward(x_MD, w_EDF, count_E, g_MF, block: int):
  """Gradients of x and w: one pass each over the same blocks."""
  M, E = x_MD.shape[0], w_EDF.shape[0]
  dx_MD = forward(g_MF, w_EDF.swapaxes(1, 2), count_E, block)
  x_pad, g_pad = (jnp.pad(a, ((0, block), (0, 0))) for a in (x_MD, g_MF))

  def body(dw_EDF, start, expert, mine):
    x = jnp.where(mine, _take(x_pad, start, block), 0)
    part = jnp.dot(x.T, _take(g_pad, start, block), preferred_element_type=jnp.float32)
    return dw_EDF.at[expert].add(part)
  dw_EDF = _loop(body, jnp.zeros(w_EDF.shape, jnp.float32), count_E, M, E, block)
  return dx_MD, dw_EDF.astype(w_EDF.dtype)
