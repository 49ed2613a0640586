"""A shape to check and time a kernel at: what r1jax bench kernels and the tests share."""
from __future__ import annotations

import dataclasses
from collections.abc import Callable


@dataclasses.dataclass(frozen=True)
class Case:
  name: str                    # model and shape, such as "qwen3-8b 1 x 4096"
  make: Callable               # (key) -> the op's arguments, arrays and static values, as a dict
  flops: float                 # multiply-adds x 2 of the forward pass
  bytes: float                 # that must be read and written at least, forward pass
  tolerance: float = 2e-2      # of the forward pass against ref, relative to the largest value of ref
  small: bool = False          # cheap enough for the interpreter and a CPU
