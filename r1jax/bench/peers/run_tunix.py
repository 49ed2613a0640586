"""GRPO steps of Tunix's GRPOLearner on random weights, for r1jax bench grpo. Run by a Python that has google-tunix.

    yes | python run_tunix.py '{"steps": 3, "model": {...}, ...}'

A line on stdin is a step, answered with a line of JSON on stdout; a last line has the peak memory. f32, all parameters,
AdamW, a reference (beta above 0), one update a rollout, answers of fixed length, Tunix's own ("vanilla")
sampler, no remat. No network: a Llama of the same sizes and a tokenizer of one word a token are made here. Imports
nothing of r1jax.
"""

import importlib.metadata
import json
import os
import resource
import statistics
import sys
import time


class Words:
  """One token for each of the words w2, w3, ...; 0 would end an answer, 1 pads."""

  def encode(self, text, **kwargs):
    return [int(word[1:]) for word in text.split()]

  def decode(self, ids, **kwargs):
    return " ".join(f"w{int(i)}" for i in ids)

  bos_id = eos_id = staticmethod(lambda: 0)
  pad_id = staticmethod(lambda: 1)


def main(what: dict) -> None:
  answers = os.fdopen(os.dup(1), "w", buffering=1)
  os.dup2(2, 1)                                   # whatever the libraries print is not an answer
  os.environ |= dict(JAX_PLATFORMS="cpu", WANDB_MODE="disabled", TQDM_DISABLE="1")
  import jax
  import numpy as np
  import optax
  from flax import nnx
  from tunix.models.llama3 import model as llama
  from tunix.rl import rl_cluster
  from tunix.rl.grpo import grpo_learner
  from tunix.rl.rollout.base_rollout import RolloutConfig

  say = lambda **line: print(json.dumps(line), file=answers)
  model, B, G, P, A = what["model"], what["prompts"], what["group"], what["prompt"], what["answer"]
  config = llama.ModelConfig(
    num_layers=model["layers"], vocab_size=model["vocab"], embed_dim=model["dim"], hidden_dim=model["ffn"],
    num_heads=model["heads"], head_dim=model["head_dim"], num_kv_heads=model["kv_heads"], rope_theta=10_000,
    norm_eps=1e-6, weight_tying=True)
  make = lambda: llama.Llama3(config, rngs=nnx.Rngs(0))
  mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(1, 1), ("fsdp", "tp"))
  Role, rollout, seconds = rl_cluster.Role, [0.0], []

  class Learner(grpo_learner.GRPOLearner):
    def _run_global_step(self, *args, **kwargs):
      """A step begins when a line arrives; the wait is not timed."""
      if not sys.stdin.readline():
        raise SystemExit("no further step was asked for")
      began, rollout[0] = time.perf_counter(), 0.0
      super()._run_global_step(*args, **kwargs)
      jax.block_until_ready(jax.tree.leaves(nnx.state(self.rl_cluster.actor_trainer.model)))
      seconds.append(time.perf_counter() - began)
      say(seconds=seconds[-1], rollout=rollout[0])

  def odd_sum(prompts, completions, **kwargs):
    ids = [Words().encode(text) for text in completions]
    short = [len(row) for row in ids if len(row) != A]
    if short:
      raise ValueError(f"answers of {short} tokens, not {A}")
    return [float(sum(row) % 2) for row in ids]

  with mesh:
    cluster = rl_cluster.RLCluster(
      actor=make(), reference=make(), tokenizer=Words(),
      cluster_config=rl_cluster.ClusterConfig(
        role_to_mesh={role: mesh for role in (Role.ACTOR, Role.REFERENCE, Role.ROLLOUT)}, rollout_engine="vanilla",
        training_config=rl_cluster.RLTrainingConfig(
          actor_optimizer=optax.adamw(what["lr"]), eval_every_n_steps=10**6, max_steps=what["steps"],
          mini_batch_size=B, train_micro_batch_size=B // what["parts"], rollout_micro_batch_size=B),
        rollout_config=RolloutConfig(
          max_tokens_to_generate=A, max_prompt_length=P, kv_cache_size=P + A + 1, temperature=1.0, top_p=1.0,
          top_k=None, eos_tokens=[model["vocab"]])))
    inner = cluster.generate

    def generate(*args, **kwargs):
      since = time.perf_counter()
      out = inner(*args, **kwargs)
      rollout[0] += time.perf_counter() - since
      return out
    cluster.generate = generate
    learner = Learner(cluster, grpo_learner.GRPOConfig(num_generations=G, num_iterations=1, beta=what["beta"]),
                      reward_fns=odd_sum)
    rows = np.random.default_rng(0).integers(2, model["vocab"], (B, P)).tolist()
    learner.train([dict(prompts=np.array([Words().decode(row) for row in rows]))] * what["steps"])
  say(name=f"Tunix {importlib.metadata.version('google-tunix')} (jax {jax.__version__})",
      seconds=statistics.median(seconds),
      peak_memory_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
      parameters=sum(x.size for x in jax.tree.leaves(nnx.state(cluster.actor_trainer.model, nnx.Param))), answers=B * G)


if __name__ == "__main__":
  main(json.loads(sys.argv[1]))
