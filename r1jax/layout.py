"""Micro-batches of a batch on the host: rows of like length together, each cut to its own length; or packed rows.

Either changes the time and the memory of an update, never its loss or gradients: all answers of the batch are in it
once, and totals are added up before they are divided (train.sums). Lengths are rounded up (train.bucket), so that few
shapes are compiled. Numpy. Letters: r1jax/types.py; R packed rows, M answer tokens in the loss.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from r1jax import train
from r1jax.packing import PackedAnswers, best_fit
from r1jax.types import Batch


def micro_batches(batch: Batch, count: int, sort: bool = False, pack_tokens: int = 0) -> list[tuple[np.ndarray, Batch]]:
  """(its rows of answers, micro-batch), `count` times. Prompts stay with their answers, as many to each micro-batch.

  sort: longest prompts with their answers first, so that a micro-batch has those of like length. pack_tokens: also as
  packed rows of so many tokens; the batch must have a prompt to each answer.
  """
  B = len(batch.prompt_BP)
  per = len(batch.answer_NA) // B
  length_N = lengths(batch.mask_NA)
  order_B = np.arange(B)
  if sort:
    order_B = np.lexsort((-batch.prompt_length_B, -length_N.reshape(B, per).max(1)))
  out = []
  for prompts in np.split(order_B, count):
    rows = (prompts[:, None] * per + np.arange(per)).reshape(-1)
    part = cut(batch, prompts, rows, length_N)
    out.append((rows, part.replace(packed=pack(part, pack_tokens)) if pack_tokens else part))
  return out


def lengths(mask_NA) -> np.ndarray:
  """Tokens of each answer up to the last one in the loss; 0 where none is."""
  mask_NA = np.asarray(mask_NA) > 0
  return np.where(mask_NA.any(1), mask_NA.shape[1] - mask_NA[:, ::-1].argmax(1), 0)


def cut(batch: Batch, prompts, rows, length_N) -> Batch:
  """These prompts and answers, without the padding that all of them have."""
  P = min(batch.prompt_BP.shape[1], train.bucket(int(batch.prompt_length_B[prompts].max())))
  A = min(batch.answer_NA.shape[1], train.bucket(max(int(length_N[rows].max()), 1)))

  def part(name, x):
    if x is None or name == "packed":
      return None
    of_prompt = name.startswith("prompt")
    x = np.asarray(x)[prompts if of_prompt else rows]
    return x if x.ndim == 1 else x[:, :P if of_prompt else A]
  return Batch(**{f.name: part(f.name, getattr(batch, f.name)) for f in dataclasses.fields(batch)})


def pack(batch: Batch, size: int) -> PackedAnswers:
  """A batch's samples, each its prompt and answer, in rows of `size` tokens; answers outside the loss are left out.

  ValueError for a sample that is longer, or for prompts that stand for several answers.
  """
  N, A = batch.answer_NA.shape
  if len(batch.prompt_BP) != N:
    raise ValueError(f"{len(batch.prompt_BP)} prompts for {N} answers: packed rows have a prompt to each")
  length_N, prompt_N = lengths(batch.mask_NA), np.asarray(batch.prompt_length_B)
  chosen = np.flatnonzero(length_N)
  total_N = (prompt_N + length_N)[chosen]
  if total_N.size and (longest := total_N.max()) > size:
    raise ValueError(f"reasoning_rl.pack_tokens={size}: a prompt and its answer are {longest} tokens, more than a row")
  rows = best_fit(total_N.tolist(), size)
  token, segment, position = (np.zeros((train.bucket(max(len(rows), 1), 1), size), np.int32) for _ in range(3))
  source, target = [], []
  for r, row in enumerate(rows):
    start = 0
    for number, i in enumerate(row, start=1):
      n = int(chosen[i])
      P, L = int(prompt_N[n]), int(length_N[n])
      here = slice(start, start + P + L)
      token[r, here] = np.concatenate([batch.prompt_BP[n, :P], batch.answer_NA[n, :L]])
      segment[r, here], position[r, here] = number, np.arange(P + L)
      source.append(r * size + start + P - 1 + np.arange(L))      # a token is predicted by the one before it
      target.append(n * A + np.arange(L))
      start = here.stop
  M = sum(map(len, source))
  whole = lambda parts, fill: np.pad(np.concatenate([*parts, np.zeros(0)]).astype(np.int32),
                                     (0, train.bucket(max(M, 1)) - M), constant_values=fill)
  return PackedAnswers(token, segment, position, whole(source, 0), whole(target, N * A))
