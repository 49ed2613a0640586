"""GRPO steps of TRL's GRPOTrainer on random weights, for r1jax bench grpo. Run by a Python that has trl installed.

    yes | python run_trl.py '{"steps": 3, "model": {...}, ...}'

A line on stdin is a step, answered with a line of JSON on stdout; a last line has the peak memory. f32, all parameters,
AdamW, a reference (beta above 0), one update a rollout, answers of fixed length, no gradient checkpointing.
No network: the model and a tokenizer of one word a token are made in a temporary folder. Imports nothing of r1jax.
"""

import json
import os
import resource
import statistics
import sys
import tempfile
import time


def main(what: dict) -> None:
  answers = os.fdopen(os.dup(1), "w", buffering=1)
  os.dup2(2, 1)                                   # whatever the libraries print is not an answer
  os.environ |= dict(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", TRL_EXPERIMENTAL_SILENCE="1")
  import torch
  import trl
  from datasets import Dataset
  from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback

  say = lambda **line: print(json.dumps(line), file=answers)
  model, B, G, P, A = what["model"], what["prompts"], what["group"], what["prompt"], what["answer"]
  torch.manual_seed(0)
  began, rollout, seconds = [0.0], [0.0], []

  class Turns(TrainerCallback):
    """A step begins when a line arrives; the wait is not timed."""

    def on_step_begin(self, *args, **kwargs):
      if not sys.stdin.readline():
        raise SystemExit("no further step was asked for")
      began[0], rollout[0] = time.perf_counter(), 0.0

    def on_step_end(self, *args, **kwargs):
      seconds.append(time.perf_counter() - began[0])
      say(seconds=seconds[-1], rollout=rollout[0])

  class Trainer(trl.GRPOTrainer):
    def _generate(self, *args, **kwargs):
      since = time.perf_counter()
      out = super()._generate(*args, **kwargs)
      rollout[0] += time.perf_counter() - since
      return out

  def odd_sum(completion_ids, **kwargs):
    short = [len(ids) for ids in completion_ids if len(ids) != A]
    if short:
      raise ValueError(f"answers of {short} tokens, not {A}")
    return [float(sum(ids) % 2) for ids in completion_ids]

  with tempfile.TemporaryDirectory() as folder:
    LlamaForCausalLM(LlamaConfig(
      vocab_size=model["vocab"], hidden_size=model["dim"], intermediate_size=model["ffn"],
      num_hidden_layers=model["layers"], num_attention_heads=model["heads"], num_key_value_heads=model["kv_heads"],
      head_dim=model["head_dim"], tie_word_embeddings=True, max_position_embeddings=4096, bos_token_id=None,
      eos_token_id=0, pad_token_id=1)).save_pretrained(folder)
    words = torch.randint(2, model["vocab"], (B, P), generator=torch.Generator().manual_seed(0)).tolist()
    trainer = Trainer(
      model=folder, reward_funcs=odd_sum, processing_class=word_tokenizer(model["vocab"]), callbacks=[Turns()],
      train_dataset=Dataset.from_list([dict(prompt=" ".join(f"w{i}" for i in row)) for row in words]),
      args=trl.GRPOConfig(
        output_dir=folder, use_cpu=True, bf16=False, model_init_kwargs=dict(dtype="float32"), optim="adamw_torch",
        learning_rate=what["lr"], lr_scheduler_type="constant", beta=what["beta"], loss_type="grpo", num_iterations=1,
        max_steps=what["steps"], num_generations=G, per_device_train_batch_size=B * G // what["parts"],
        gradient_accumulation_steps=what["parts"], gradient_checkpointing=False, temperature=1.0,
        max_completion_length=A, generation_kwargs=dict(min_new_tokens=A), report_to="none", save_strategy="no",
        logging_steps=10**6, disable_tqdm=True, seed=0))
    trainer.train()
  say(name=f"TRL {trl.__version__} (torch {torch.__version__})", seconds=statistics.median(seconds),
      peak_memory_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
      parameters=sum(p.numel() for p in trainer.model.parameters()), answers=B * G)


def word_tokenizer(vocab: int):
  """One token for each of the words w2, w3, ...; 0 ends an answer, 1 pads."""
  from tokenizers import Tokenizer, models, pre_tokenizers
  from transformers import PreTrainedTokenizerFast
  names = {"<end>": 0, "<pad>": 1} | {f"w{i}": i for i in range(2, vocab)}
  backend = Tokenizer(models.WordLevel(names, unk_token="<pad>"))
  backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
  return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>", pad_token="<pad>", padding_side="left")


if __name__ == "__main__":
  main(json.loads(sys.argv[1]))
