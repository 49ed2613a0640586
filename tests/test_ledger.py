"""The ledger: sums by phase and stage, over sessions, an MFU that cannot be, and what a run and its report show."""

import json
import math
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from conftest import experiment

from r1jax import costs, ledger, metrics, pipeline, report
from r1jax.ledger import LedgerConfig, Rates, Spent
from r1jax.models.transformer import ModelConfig
from r1jax.report import bill

MODEL = ModelConfig(vocab=10, dim=4, layers=2, heads=2, kv_heads=1, ffn=3)
RATES = Rates(4, 1e3, "4 x X1, float32 (its maker)", price=3.6)
PARTS = [SimpleNamespace(prompts=[[1] * 3, [1] * 5], answers=[[1] * 2, [1], [1] * 4, [1] * 4], group_size=2)]


def test_a_row_has_sums_phases_mfu_and_dollars():
  row = ledger.row(RATES, rollout=Spent(10, prefill=8, decode=20, flops=3e3), update=Spent(5, train=28, flops=9e3))
  assert {k.removeprefix("ledger/"): v for k, v in row.items()} == pytest.approx({
    "device_seconds": 60, "flops": 12e3, "tokens_prefill": 8, "tokens_decode": 20, "tokens_train": 28,
    "device_seconds/rollout": 40, "flops/rollout": 3e3, "device_seconds/update": 20, "flops/update": 9e3,
    "mfu": 12e3 / 60e3, "dollars": 0.06})
  assert "ledger/dollars" not in ledger.row(Rates(1, 1.0, "x"), eval=Spent(2, flops=1))


def test_totals_are_sums_over_rows_by_stage_and_by_phase():
  rows = dict(a=[ledger.row(RATES, rollout=Spent(1, decode=5, flops=1e3), update=Spent(1, train=6, flops=1e3)),
                 {"loss": 1.0}],
              b=[ledger.row(RATES, update=Spent(2, train=3, flops=4e3))])
  out = ledger.totals(RATES, rows)
  assert out["stages"]["a"] == pytest.approx(dict(device_seconds=8, tokens_prefill=0, tokens_decode=5, tokens_train=6,
                                                  flops=2e3, mfu=0.25, dollars=0.008))
  assert out["phases"]["update"] == pytest.approx(dict(device_seconds=12, flops=5e3, mfu=5 / 12, dollars=0.012))
  assert (out["total"]["flops"], out["total"]["tokens_train"], out["errors"]) == (6e3, 9, [])


def test_an_mfu_above_one_is_no_number_but_says_which_figure_is_wrong():
  with pytest.raises(ValueError, match=r"MFU would be 200%: 2e\+03 FLOPs in 1 .* against 1e\+03 .*Wrong is the peak, .*"
                                       r"or the seconds, .* or else the FLOPs"):
    ledger.mfu(2e3, 1.0, RATES)
  row = ledger.row(RATES, update=Spent(1, flops=8e3))
  assert math.isnan(row["ledger/mfu"]) and row["ledger/flops"] == 8e3
  out = ledger.totals(RATES, dict(sft=[row]))
  assert math.isnan(out["total"]["mfu"]) and [e.split(":")[0] for e in out["errors"]] == ["sft", "update", "total"]
  assert ledger.mfu(1e3, 1.0, RATES) == 1


def test_a_device_that_is_not_known_has_no_mfu_and_a_known_one_that_of_its_type(monkeypatch):
  def of(kind, dtype):
    monkeypatch.setattr(jax, "devices", lambda: [SimpleNamespace(platform="gpu", device_kind=kind)])
    return ledger.rates(LedgerConfig(2.0), ModelConfig(**vars(MODEL) | dict(dtype=dtype)), 8)
  known = of("NVIDIA H800", "bfloat16")
  assert (known.devices, known.peak, known.price) == (8, 989e12, 2.0) and "8 x NVIDIA H800" in known.denominator
  assert of("NVIDIA H800", "float32").peak == 494e12
  unknown = of("X1", "bfloat16")
  assert math.isnan(ledger.mfu(1.0, 1.0, unknown)) and "X1" in unknown.denominator


def test_a_processor_is_measured_once_a_run(monkeypatch, tmp_path):
  seen = []
  monkeypatch.setattr(ledger, "_measured", lambda dtype: seen.append(dtype) or 7e9)
  first = ledger.rates(LedgerConfig(), MODEL, 8, tmp_path / "ledger.json")
  assert (first.devices, first.peak) == (1, 7e9)          # simulated devices have the same cores
  ledger.write(tmp_path / "ledger.json", vars(first))
  assert ledger.rates(LedgerConfig(), MODEL, 8, tmp_path / "ledger.json") == first and seen == ["float32"]


def test_a_host_without_a_share_of_the_questions_spends_its_seconds_alone():
  assert ledger.sampled(MODEL, [], 1.5) == Spent(1.5)


def test_work_is_that_of_the_tokens_there_were():
  spent = ledger.sampled(MODEL, PARTS * 2, 1.5)
  assert (spent.seconds, spent.prefill, spent.decode, spent.train) == (1.5, 16, 22, 0)
  assert spent.flops == 2 * (costs.prefill(MODEL, [3, 5]) + costs.decode(MODEL, [3, 5], [2, 1, 4, 4])).flops
  one = costs.score(MODEL, [3, 5], [2, 1, 4, 4]).flops
  cfg = dict(shared_prompt=True, loss=SimpleNamespace(kl_coef=0.1), minibatches=2, partial=0, ahead=0, critic=None)
  learnt = lambda policy=True, **changes: ledger.learnt(SimpleNamespace(**cfg | changes), MODEL, PARTS[0], 1.0, policy)
  assert (learnt().flops, learnt().train) == (5 * one, 8 + 11)                  # reference, old, three of the update
  for less in (dict(minibatches=1), dict(loss=SimpleNamespace(kl_coef=0)), dict(partial=1)):
    assert learnt(**less).flops == 4 * one
  assert learnt(shared_prompt=False).train == 16 + 11
  critic = learnt(critic=True).flops - learnt().flops                          # values and an update, but no head
  assert critic == 4 * (one - costs.head_flops(MODEL, 11)) == learnt(False, critic=True).flops - 2 * one
  assert ledger.supervised(MODEL, [3, 5], [2, 4], 1.0).train == 14


def test_updates_on_given_answers_count_their_passes_and_what_was_drawn_first():
  batch = SimpleNamespace(prompt_length_B=np.array([3, 5]), mask_NA=np.array([[1, 1], [1, 0], [1, 1], [0, 1]]))
  one = costs.score(MODEL, [3, 5], [2, 1, 2, 1]).flops
  spent = ledger.of_batch(batch, [ledger.Pass(MODEL, 3), ledger.Pass(MODEL, 1, head=False)])
  assert spent.flops == 4 * one - costs.head_flops(MODEL, 6)
  assert (spent.train, spent.prefill, spent.decode, spent.seconds) == (14, 0, 0, 0)
  drawn = ledger.of_batch(batch, [ledger.Pass(MODEL, 3)], MODEL)
  assert (drawn.prefill, drawn.decode) == (8, 6) and drawn.flops > 3 * one


def test_a_price_must_be_one():
  with pytest.raises(ValueError, match=r"ledger.price=-1.0 dollars must not be negative"):
    LedgerConfig(-1.0)


def test_what_a_resumed_run_repeats_counts_once(tmp_path):
  row = lambda i: ledger.row(RATES, update=Spent(1, train=10**i, flops=1.0))
  for start, stop in ((0, 4), (2, 3), (2, 5)):     # killed with a checkpoint behind row 1; again; then to the end
    writer = metrics.Writer(tmp_path, start)
    for i in range(start, stop):
      writer.write(i, row(i))
    writer.close()
  total = ledger.totals(RATES, dict(sft=metrics.read(tmp_path / "metrics.jsonl")))["total"]
  assert (total["tokens_train"], total["flops"], total["device_seconds"]) == (11_111, 5, 20)


@pytest.mark.slow
def test_a_run_writes_what_it_spent_and_its_report_shows_it(tmp_path, monkeypatch):
  monkeypatch.setattr(ledger, "_measured", lambda dtype: 1e12)
  c = experiment("r1_zero_parity")
  c.pretrain.steps, c.pretrain.batch, c.reasoning_rl.rollouts, c.eval.problems = 12, 8, 2, 8
  c.ledger = dict(price=2.0)
  pipeline.run(c, tmp_path)
  rows = metrics.read(tmp_path / "reasoning_rl" / "metrics.jsonl")
  asked = c.reasoning_rl.questions_per_rollout * c.reasoning_rl.group_size
  drawn = [r["ledger/tokens_decode"] for r in rows]
  assert drawn[0] == pytest.approx(asked * rows[0]["length"]) and drawn[1] > asked * rows[1]["length"]   # an evaluation
  out = json.loads((tmp_path / "ledger.json").read_text())
  assert set(out["phases"]) == {"rollout", "reward", "update", "eval"} and not out["errors"]
  assert out["stages"]["pretrain"]["tokens_train"] > 0 and out["stages"]["evaluation"]["tokens_decode"] > 0
  total = out["total"]
  assert total["device_seconds"] == pytest.approx(sum(p["device_seconds"] for p in out["phases"].values()))
  assert total["dollars"] == pytest.approx(total["device_seconds"] / 1800) and 0 < total["mfu"] < 1
  assert total["mfu"] == pytest.approx(total["flops"] / total["device_seconds"] / 1e12)
  table = bill.table(out)
  assert table[0][-2:] == ("mfu", "dollars") and table[-1][0] == "in all" and len(table) == 9
  page = report.write(tmp_path).read_text()
  assert "What it cost" in page and "CPU&#x27;s float32 matmul, measured, 1e+12 FLOP/s each" in page


def test_a_bill_that_cannot_be_read_is_no_table():
  run = SimpleNamespace(ledger=dict(total=dict(flops="?"), stages={}, phases={}))
  assert report.bill_of(run) == ([], ["ledger.json could not be read"])
  assert report.bill_of(SimpleNamespace(ledger=None)) == report.bill_of(SimpleNamespace(ledger={})) == ([], [])
  assert np.isnan(ledger.totals(Rates(1, math.nan, "x"), {})["total"]["mfu"])
