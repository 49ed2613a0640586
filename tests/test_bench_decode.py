"""The decode benchmark on a tiny model: what it prints adds up, and the bare matmuls are those of the forward pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import weights

from r1jax.bench import decode
from r1jax.models.transformer import ModelConfig

MODEL = ModelConfig(vocab=40, dim=16, layers=2, heads=2, kv_heads=1, ffn=24)


@pytest.mark.slow
def test_it_measures_each_part_in_both_precisions():
  result = decode.measure(1, peer=False, model=MODEL, rows=2, prompt=3, answer=4, longest=10)
  for dtype in decode.DTYPES:
    assert result[f"{dtype}/prefill"] > 0 and result[f"{dtype}/matmuls"] > 0
    assert result[f"{dtype}/generate"] == pytest.approx(result[f"{dtype}/prefill"] + result[f"{dtype}/decode"])
  assert result["limit"] > 0 and result["bound"] in ("compute", "memory")
  assert result["mixed/answers"] == 8 and 0 < result["mixed/row/occupancy"] <= 1
  assert decode.table(result).row_count == 12


def test_the_bare_matmuls_cost_what_the_weights_say():
  cost = jax.jit(lambda p, x: decode._matmuls(p, MODEL, x)).lower(weights(MODEL), jnp.ones((6, 16))).compile()
  layer = sum(int(np.prod(w.shape[1:])) for part in ("attention", "ffn")
              for w in jax.tree.leaves(weights(MODEL)["layers"][part]))
  assert cost.cost_analysis()["flops"] == pytest.approx(2 * 6 * layer, rel=0.15)     # a scanned body counts once
