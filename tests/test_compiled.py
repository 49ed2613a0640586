"""Compiled programs are kept between processes, where the user did not say otherwise."""

import os
import subprocess
import sys

from r1jax import compiled

PROGRAM = """
import os
from r1jax import compiled
compiled.keep()
import jax, jax.numpy as jnp
print(jax.config.jax_compilation_cache_dir)
slow = jax.jit(lambda x: jax.lax.fori_loop(0, 3, lambda i, x: jnp.sort(jnp.cumsum(x @ x.T, axis=0), axis=1), x))
print(float(slow(jnp.ones((8, 8))).sum()))
"""


def run(**env):
  plain = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_COMPILATION", "JAX_PERSISTENT"))}
  out = subprocess.run([sys.executable, "-c", PROGRAM], env=plain | env, capture_output=True, text=True, check=True)
  return out.stdout.split()


def test_a_second_process_finds_what_the_first_compiled_and_the_user_may_choose_the_folder(tmp_path):
  where, value = run(XDG_CACHE_HOME=str(tmp_path), JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0")
  assert where == str(tmp_path / "r1jax" / f"compiled-{compiled.processor()}")
  kept = {path.name for path in (tmp_path / "r1jax").rglob("*-cache")}
  assert kept
  assert run(XDG_CACHE_HOME=str(tmp_path), JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0") == [where, value]
  assert {path.name for path in (tmp_path / "r1jax").rglob("*-cache")} == kept
  other = str(tmp_path / "other")
  assert run(JAX_COMPILATION_CACHE_DIR=other) == [other, value]


def test_the_processors_name_is_short_and_stays():
  assert compiled.processor() == compiled.processor() and len(compiled.processor()) == 12
