"""The kernels' benchmark: what it finds right and wrong, what it leaves out, and the numbers it sets beside a time."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from r1jax.bench import calls, kernels, libraries, ops, roofline
from r1jax.cli import bench
from r1jax.kernels.case import Case

LIMITS = roofline.Device(bf16=2e9, fp8=4e9, f32=1e9, bandwidth=1e9)


def square(x, scale, n_E, impl):
  """A toy op: one implementation right, one wrong by a tenth, one with a wrong gradient, one that is not there."""
  if impl == "absent":
    raise NotImplementedError("needs [red] a card")
  if impl == "wrong_gradient":
    return scale * x * jax.lax.stop_gradient(x) + n_E.sum()
  return scale * x * x * (1.1 if impl == "wrong" else 1.0) + n_E.sum()


def toy_cases():
  make = lambda key: dict(x=jax.random.normal(key, (8, 4)), scale=3.0, n_E=jnp.zeros(2, jnp.int32))
  return [Case("8 x 4", make, flops=64.0, bytes=1e6, tolerance=1e-3, small=True),
          Case("large", make, flops=1e9, bytes=1.0)]


TOY = ops.Op("square", square, toy_cases, impls=dict(cpu=("right", "wrong", "wrong_gradient", "absent")),
                 interpreted=dict(mine=functools.partial(square, impl="right")),
                 libraries=dict(cpu=dict(near=functools.partial(square, impl="wrong"))))


@pytest.fixture
def result(monkeypatch):
  monkeypatch.setattr(roofline, "of", lambda device: LIMITS)
  return kernels.measure((TOY,), interpret=True, repeats=1)


def test_it_tells_right_from_wrong_and_goes_on_after_a_failure(result):
  rows = {r["impl"]: r for r in result["rows"]}
  assert list(rows) == ["ref", "right", "wrong", "wrong_gradient", "absent", "mine, interpreted", "near"]
  assert rows["right"]["error"] == 0 and not rows["right"]["wrong"]
  assert rows["wrong"]["error"] == pytest.approx(0.1, rel=1e-3)
  assert rows["wrong_gradient"]["error"] == 0 and rows["wrong_gradient"]["gradient_error"] == pytest.approx(0.5)
  assert rows["absent"]["failed"] == "NotImplementedError: needs [red] a card"
  assert kernels.wrong(result) == ["square, 8 x 4: wrong", "square, 8 x 4: wrong_gradient"]
  assert rows["near"]["error"] > 0.09 and not rows["near"]["wrong"]        # a library may compute something near
  assert "seconds" not in rows["mine, interpreted"] and rows["mine, interpreted"]["error"] == 0


def test_a_cpu_leaves_large_cases_out(result):
  assert {r["case"] for r in result["rows"]} == {"8 x 4"}


def test_the_least_time_is_the_larger_of_computing_and_moving(result):
  assert LIMITS.seconds(64.0, 1e6, "float32") == (1e-3, "memory")
  assert LIMITS.seconds(4e9, 1e6, "fp8") == (1.0, "compute") and LIMITS.seconds(4e9, 1e6, "bfloat16")[0] == 2.0
  assert all((r["limit_seconds"], r["bound"]) == (1e-3, "memory") for r in result["rows"])


def test_the_table_shows_every_row_as_it_is(result):
  console = Console(width=120, record=True, file=open("/dev/null", "w"))
  console.print(kernels.table(result))
  text = console.export_text()
  for words in ("square: 8 x 4", "wrong WRONG", "needs [red] a card", "1.0e-01", "memory", "2e-09 TFLOP/s"):
    assert words.replace("2e-09", "0.002") in text, words
  assert "right WRONG" not in text


def test_nan_is_wrong():
  ones = dict(forward=jnp.ones(3))
  assert kernels.check(dict(forward=jnp.array([1, jnp.nan, 1])), ones, 1e9)["wrong"]
  assert not kernels.check(ones, ones, 0.0)["wrong"]
  tree = dict(forward=(jnp.ones(3), jnp.array([4.0, 0.0])), gradients={0: jnp.ones(2)})
  off = dict(forward=(jnp.ones(3), jnp.array([4.0, 1.0])), gradients={0: jnp.array([1.0, jnp.nan])})
  found = kernels.check(off, tree, 0.5)
  assert found["error"] == 0.25 and np.isnan(found["gradient_error"]) and found["wrong"]


def test_a_call_holds_static_arguments_and_gives_gradients_of_floats_alone():
  args = toy_cases()[0].make(jax.random.key(0))
  out, gradients = calls.prepare(functools.partial(square, impl="right"), args, True)()
  places = list(gradients)
  assert len(places) == 1 and gradients[places[0]].shape == (8, 4)
  np.testing.assert_allclose(out, 3 * args["x"] ** 2, rtol=1e-6)
  pairs = calls.prepare(lambda pair, n: (pair[0] * n, pair[1] + 1), dict(pair=(jnp.ones(2), jnp.arange(2)), n=2), True)
  out, gradients = pairs()
  assert out[1].tolist() == [1, 2] and len(gradients) == 1


def test_devices_are_found_by_the_longest_name():
  class Fake:
    platform = "gpu"

    def __init__(self, kind):
      self.device_kind = kind
  known = {kind: roofline.of(Fake(kind)) for kind in (
    "NVIDIA H100 80GB HBM3", "NVIDIA H100 PCIe", "NVIDIA H200", "NVIDIA A100-SXM4-80GB", "TPU v5 lite", "TPU v5", "X1")}
  assert [d and d.bandwidth / 1e12 for d in known.values()] == [3.35, 2.0, 4.8, 2.039, 0.819, 2.765, None]
  assert known["NVIDIA H100 80GB HBM3"].bf16 == 989e12


def test_an_unknown_device_has_no_limit_and_still_a_table(monkeypatch):
  monkeypatch.setattr(roofline, "of", lambda device: None)
  result = kernels.measure((TOY,), repeats=1)
  assert "limit_seconds" not in result["rows"][0] and kernels.table(result).row_count == len(result["rows"]) + 1


def test_a_processors_own_limits_are_measured():
  limits = roofline.of(jax.devices()[0])
  assert limits.measured and 1e9 < limits.f32 < 1e14 and 1e8 < limits.bandwidth < 1e13


def test_the_command_says_wrong_with_its_status(monkeypatch, tmp_path, capsys):
  monkeypatch.setattr(roofline, "of", lambda device: LIMITS)
  monkeypatch.setattr(kernels, "OPS", (TOY,))
  assert bench.main(["kernels", "--repeats", "1", "--json", str(tmp_path / "k.json")]) == 1
  saved = json.loads((tmp_path / "k.json").read_text())
  assert saved["device"] == jax.devices()[0].device_kind and saved["versions"]["jax"] == jax.__version__
  assert [r["impl"] for r in saved["rows"]][:2] == ["ref", "right"]
  monkeypatch.setattr(kernels, "OPS", (ops.Op("square", square, toy_cases, impls=dict(cpu=("right",))),))
  assert bench.main(["kernels", "--repeats", "1", "--op", "square"]) == 0
  with pytest.raises(ValueError, match="--op=cube is none of square"):
    bench.main(["kernels", "--op", "cube"])


def test_real_ops_have_a_ref_cases_for_cpus_and_names_that_exist():
  for op in kernels.OPS:
    cases = op.cases()
    assert len({c.name for c in cases}) == len(cases) and any(c.small for c in cases)
    args = next(c for c in cases if c.small).make(jax.random.key(0))
    arrays = calls.arrays_of(args)
    function = functools.partial(op.function, **{k: v for k, v in args.items() if k not in arrays})
    assert jax.eval_shape(functools.partial(function, impl="ref"), **arrays) is not None
    for impl in {name for names in op.impls.values() for name in names}:
      with pytest.raises(Exception) as said:     # not that the name is unknown
        jax.eval_shape(functools.partial(function, impl=impl), **arrays)
        raise KeyError
      assert "is none of" not in str(said.value)


def test_cudnns_stand_in_is_causal_attention_within_segments():
  keys = iter(jax.random.split(jax.random.key(0), 3))
  q, k, v = (jax.random.normal(next(keys), shape) for shape in ((1, 5, 2, 8), (1, 1, 5, 8), (1, 1, 5, 8)))
  segment_NT = jnp.array([[0, 0, 0, 1, 1]])
  out = libraries.cudnn_attention(q, k, v, segment_NT, implementation="xla")
  score = jnp.einsum("nthc,nksc->nhts", q, k) / 8**0.5
  seen = jnp.tril(jnp.ones((5, 5), bool)) & (segment_NT[0][:, None] == segment_NT[0])
  wanted = jnp.einsum("nhts,nksc->nthc", jax.nn.softmax(jnp.where(seen, score, -jnp.inf)), v)
  np.testing.assert_allclose(out, wanted, atol=1e-5)
