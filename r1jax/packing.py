"""Several samples to a row: best fit into rows of fixed length, with segments that attention and positions respect.

R1's training packs this way (arXiv 2501.12948 v2, B.1). A packed batch has the loss and the gradients of a padded one.
Host-side, numpy. Letters: r1jax/types.py.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence

import flax.struct
import jax
import numpy as np


@flax.struct.dataclass
class Packed:
  """Rows of samples, each prompt with its answer behind it."""
  token_NT: jax.Array            # int32; 0 behind the last sample
  segment_NT: jax.Array          # int32: 1, 2, ... the sample within its row; 0 is padding
  position_NT: jax.Array         # int32, from 0 in each sample
  mask_NT: jax.Array             # f32: 1 on answer tokens, which are to be predicted


@flax.struct.dataclass
class PackedAnswers:
  """Rows of samples, and where the log-probs of a Batch's answer tokens are to be found in them (layout.pack)."""
  token_RT: jax.Array            # as Packed's
  segment_RT: jax.Array
  position_RT: jax.Array
  from_M: jax.Array              # int32: the state, of all R * T, that predicts answer token m
  to_M: jax.Array                # int32: the token's place among the N * A; N * A for padding


def best_fit(lengths: Sequence[int], size: int) -> list[list[int]]:
  """Indices of the samples of each row: longest first, each into the row with the least room that it fits in.

  ValueError for a sample longer than `size`.
  """
  rows: list[list[int]] = []
  room: list[tuple[int, int]] = []                  # (tokens left, row), sorted
  for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
    if lengths[i] > size:
      raise ValueError(f"sample {i} has {lengths[i]} tokens, more than a row of {size}")
    at = bisect.bisect_left(room, (lengths[i], -1))
    left, row = room.pop(at) if at < len(room) else (size, len(rows))
    if row == len(rows):
      rows.append([])
    rows[row].append(i)
    bisect.insort(room, (left - lengths[i], row))
  return rows


def pack(prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], size: int, multiple: int = 1) -> Packed:
  """Samples into rows of `size` tokens; rows of padding are added up to a multiple (of devices or micro-batches)."""
  rows = best_fit([len(p) + len(a) for p, a in zip(prompts, answers, strict=True)], size)
  shape = (len(rows), size)
  token, segment, position = (np.zeros(shape, np.int32) for _ in range(3))
  mask = np.zeros(shape, np.float32)
  for n, row in enumerate(rows):
    start = 0
    for number, i in enumerate(row, start=1):
      sample = [*prompts[i], *answers[i]]
      here = slice(start, start + len(sample))
      token[n, here], segment[n, here], position[n, here] = sample, number, np.arange(len(sample))
      mask[n, start + len(prompts[i]):here.stop] = 1
      start = here.stop
  return pad_rows(Packed(token, segment, position, mask), -(-len(rows) // multiple) * multiple)


def pad_rows(packed: Packed, rows: int) -> Packed:
  """With rows of padding behind, `rows` in all."""
  return jax.tree.map(lambda x: np.pad(x, ((0, rows - len(x)), (0, 0))), packed)
