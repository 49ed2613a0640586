"""r1jax plan: its parts by hand and against costs.py, R1's bill, and the command as its user runs it."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from r1jax import config as configs
from r1jax import costs, hardware, sharding
from r1jax.cli import main as cli
from r1jax.cli.run import load_config
from r1jax.models.deepseek import PRESETS
from r1jax.models.transformer import ModelConfig
from r1jax.optimizer import OptimizerConfig
from r1jax.plan import assumptions, bill, layout, lengths, memory, ops, paper, phases, rollouts, settings, traffic
from r1jax.plan.assumptions import Assumptions
from r1jax.plan.layout import Layout
from r1jax.plan.phases import Site
from r1jax.plan.settings import RL, Part, Schedule, Supervised

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
R1 = dataclasses.replace(PRESETS["deepseek-r1"], remat="layer")
DENSE = ModelConfig(vocab=2048, dim=256, layers=4, heads=8, kv_heads=8, ffn=768, remat="none")
H800 = hardware.find("h800")
SITE = Site(DENSE, H800, Assumptions())
STAGE = RL("rl", (Part(3, 100.0, 400),), questions=16, group=4, minibatches=2, prompt=20.0,
           optimizer=OptimizerConfig(1e-3))


# --- lengths

def test_lengths_have_their_mean_although_they_are_cut():
  for mean, most, sigma in ((100, 1000, 1.0), (600, 1000, 1.0), (50, 51, 0.5)):
    length_N = lengths.lognormal(mean, most, sigma, 40_000)
    assert length_N.max() <= most and length_N.mean() == pytest.approx(mean, rel=0.03)
    assert (length_N == most).mean() == pytest.approx(lengths.truncated_share(mean, most, sigma), abs=0.01)
  with pytest.raises(ValueError, match="mean length of 100 must be at least 1 and below the longest, 100"):
    lengths.lognormal(100, 100, 1.0, 2)


def test_loads_are_as_even_as_the_largest_piece_lets_them_be():
  assert lengths.balance([1, 1, 1, 1], 2) == 1
  assert lengths.balance([4, 1, 1], 2) == 3 / 4
  assert lengths.balance([5], 4) == 1 / 4


# --- layouts and traffic

def test_layouts_use_all_devices_and_divide_the_model():
  tried = list(layout.candidates(R1, 64, H800))
  assert len(set(tried)) == len(tried) > 100
  assert all(x.devices == 64 and not layout.check(x, R1) and x.tensor <= 8 for x in tried)
  assert "expert=512 does not divide 256 experts" in layout.check(Layout(expert=512), R1)
  assert Layout(fsdp=2, context=4).stride("fsdp") == 4 and Layout(2, 3).rows == 6


def test_parameters_are_split_as_in_training_but_for_the_context():
  wanted = {name: sharding.RULES[name] for name in layout.RULES}
  assert layout.RULES == wanted | dict(embed=(*wanted["embed"], "context"))


def test_experts_are_split_by_expert_and_width_and_the_rest_by_width_alone():
  routed = 58 * 256 * 3 * 7168 * 2048 * 2
  assert layout.shard_bytes(R1, Layout(), kind="routed") == pytest.approx(routed * 59 / 58)      # and the MTP module's
  assert layout.shard_bytes(R1, Layout(expert=32, fsdp=16), kind="routed") == pytest.approx(routed * 59 / 58 / 512)
  plain = layout.shard_bytes(R1, Layout(), kind="plain")
  assert layout.shard_bytes(R1, Layout(expert=32), kind="plain") == plain
  assert layout.shard_bytes(R1, Layout(context=2)) < 0.6 * layout.shard_bytes(R1, Layout())


def test_collectives_by_hand():
  near = traffic.collective(Layout(tensor=4), "tensor", 100.0, H800)
  assert (near.near, near.far) == (75, 0)
  assert traffic.collective(Layout(tensor=4), "tensor", 100.0, H800, 2).near == 150
  far = traffic.collective(Layout(fsdp=2, tensor=8), "fsdp", 100.0, H800)       # 8 apart: another server each
  assert (far.near, far.far) == (0, 50)
  both = traffic.collective(Layout(fsdp=16), "fsdp", 160.0, H800)               # half comes in once to a server of 8
  assert (both.near, both.far) == (150, 10)
  numbers = Assumptions(link=1.0, network=1.0)
  assert both.seconds(H800, numbers) == pytest.approx(max(150 / 200e9, 10 / 50e9))
  with pytest.raises(ValueError, match="no network rate"):
    far.seconds(dataclasses.replace(H800, network=0.0), numbers)


def test_a_token_goes_once_to_each_server_that_has_experts_of_it():
  sent = traffic.experts(R1, Layout(expert=64), 10.0, H800, Assumptions())
  once = 10 * 7168 * 2 * 58 * 2                                                 # there and back, all layers
  assert sent.near == pytest.approx(once * 8) and sent.far == pytest.approx(once * 4 * 56 / 64)
  inside = traffic.experts(R1, Layout(expert=8), 10.0, H800, Assumptions())
  assert inside.far == 0 and inside.near == pytest.approx(once * 8 * 7 / 8)
  assert traffic.experts(R1, Layout(expert=64), 10.0, H800, Assumptions(), sent=1.0).near == pytest.approx(once * 6)


# --- operations and phases

@pytest.mark.parametrize("model", [DENSE, R1], ids=["dense", "r1"])
def test_operations_add_up_to_the_models_flops(model):
  """costs.py counts norms as products with their scales, a ten-thousandth of all."""
  length, pairs = 1000, float(costs.seen(0, 1000))
  ours = sum(op.flops for op in ops.forward(model, Layout(), length, pairs, length))
  whole = costs.layer_flops(model, 0, length) + costs.head_flops(model, length)
  assert ours == pytest.approx(whole, rel=1e-3)
  parted = sum(op.flops for op in ops.forward(model, Layout(tensor=4), length, pairs, length))
  assert 4 * parted == pytest.approx(ours, rel=0.01)            # all but the router, which every device computes


def test_an_update_at_the_peak_takes_the_models_flops_over_it():
  fast = dataclasses.replace(H800, bandwidth=1e30)
  site = Site(DENSE, fast, Assumptions(matmul=1.0))
  phase = phases.learning(site, Layout(), 20.0, np.full(8, 100), 4, backward=True, shared=True)
  assert phase.seconds == pytest.approx(phase.flops / fast.f32, rel=0.03)
  assert phase.flops == 3 * costs.score(DENSE, [20, 20], [100] * 8).flops
  again = phases.learning(dataclasses.replace(site, cfg=dataclasses.replace(DENSE, remat="layer")), Layout(), 20.0,
                          np.full(8, 100), 4, backward=True, shared=True)
  assert again.seconds == pytest.approx(4 / 3 * phase.seconds)


def test_devices_wait_for_the_longest_answer():
  length_N = np.array([400, 10, 10, 10])
  phase = phases.learning(SITE, Layout(data=4), 0.0, length_N, 1, backward=False)
  assert phase.parts["unlike_lengths"] > 2 * phase.parts["products_and_memory"]
  even = phases.learning(SITE, Layout(data=4), 0.0, np.full(4, 400), 1, backward=False)
  assert even.parts["unlike_lengths"] == pytest.approx(0)


def test_a_decode_step_reads_its_weights_and_caches_and_waits():
  site = Site(DENSE, H800, Assumptions(memory=1.0, step=0.0))
  one = float(phases.decode_seconds(site, Layout())([1], [100])[0])
  read = costs.weight_bytes(DENSE, 1) + 100 * costs.cache_bytes(DENSE)
  assert one == pytest.approx(read / H800.bandwidth, rel=0.02)
  slower = Site(DENSE, H800, Assumptions(memory=1.0, step=0.5))
  assert float(phases.decode_seconds(slower, Layout())([1], [100])[0]) == pytest.approx(one + 0.5)
  many = phases.decode_seconds(site, Layout())([1, 64, 4096], [100, 100, 100])
  assert many[0] < many[1] < many[2] < 4096 * many[0]


# --- stages

def test_a_stage_is_the_sum_of_its_phases_and_ahead_is_less():
  made = bill.rl(SITE, STAGE, Schedule(paged=True), 8)
  assert made.seconds == pytest.approx(sum(phase.seconds for phase in made.phases.values()))
  assert list(made.phases) == ["prefill", "decode", "reward", "sync", "switch", "reference", "old", "update",
                               "optimizer"]
  assert made.hours == made.seconds * 8 / 3600 and made.tokens == 3 * 64 * 100 and made.fits(SITE)
  ahead = bill.rl(SITE, STAGE, Schedule(paged=True, ahead=True), 8)
  assert ahead.devices == 8 and ahead.seconds < sum(phase.seconds for phase in ahead.phases.values())
  assert "switch" not in ahead.phases


def test_rows_that_do_not_fit_wait_for_their_turn():
  at, part, schedule = Layout(), STAGE.parts[0], Schedule(paged=True)
  on = lambda row: Site(DENSE, row, Assumptions())
  held = lambda row, way: sum(rollouts.held(on(row), at, STAGE, part, way, 1).values())
  small = dataclasses.replace(H800, memory=0.8 * held(H800, schedule) / Assumptions().cache)
  fitted = rollouts.fitted(on(small), at, STAGE, part, schedule, 1)
  assert rollouts.fitted(SITE, at, STAGE, part, schedule, 1).slots == 64 > fitted.slots > 1
  assert held(small, fitted) <= small.memory * Assumptions().cache
  ours = rollouts.fitted(on(small), at, STAGE, part, Schedule(), 1)      # its caches are as long as the longest answer
  assert 1 < ours.slots < fitted.slots and held(small, ours) <= small.memory * Assumptions().cache


def of_parity(*flags):
  """(RL stage, its Schedule) of experiments/r1_zero_parity.py: 32 questions, 8 answers each."""
  rest = [f"--config.reasoning_rl.{flag}" for flag in flags]
  cfg = configs.freeze(load_config(str(EXPERIMENTS / "r1_zero_parity.py"), rest))
  return settings.of_config(cfg, Assumptions())[0][1]


def test_a_config_without_slots_is_planned_as_it_is_sampled():
  held = lambda stage, way: rollouts.held(SITE, Layout(), stage, stage.parts[0], way, 1)["cache"]
  simulated = lambda stage, way: rollouts.simulate(SITE, Layout(), stage, stage.parts[0], way, 1)
  stage, way = of_parity()
  rows = memory.columns(rollouts.drawn(SITE, stage, stage.parts[0]), 0, stage.most) * 256
  assert held(stage, way) == (rows + 32 * stage.prompt) * costs.cache_bytes(DENSE)      # one prompt a group
  few = of_parity("prompts_at_once=4")
  assert rollouts.rows_at_once(*few) == 32 and held(*few) < held(stage, way) / 4
  assert simulated(*few).trace.seconds > 6 * simulated(stage, way).trace.seconds       # parts wait for each other
  narrow = of_parity("sampling.cache=int8")
  assert held(*narrow) / held(stage, way) == pytest.approx(costs.cache_bytes(DENSE, "int8") / costs.cache_bytes(DENSE))
  alone = simulated(*of_parity("shared_prompt=False"))
  assert alone.prefill.flops == costs.prefill(DENSE, [160] * 32).flops


def test_a_config_with_slots_keeps_its_lanes():
  way = of_parity("sampling.slots=64", "sampling.width=2", "prompts_at_once=1")[1]
  assert way.continuous and (way.slots, way.width) == (64, 2)


def test_partial_rollouts_do_not_wait_for_the_longest_and_are_stale():
  sync, part = (bill.rl(SITE, STAGE, Schedule(paged=True, partial=p), 8) for p in (0.0, 1.0))
  assert part.phases["decode"].seconds < 0.8 * sync.phases["decode"].seconds
  assert sync.rollout.stale == 0 < part.rollout.stale < 1
  assert part.rollout.trace.occupancy > sync.rollout.trace.occupancy


def test_a_supervised_stage_learns_from_each_sample():
  made = bill.supervised(SITE, Supervised("sft", 640, 100.0, 64, 400, OptimizerConfig(1e-3)), 8)
  per = costs.update(DENSE, [0] * 64, [100] * 64).flops
  assert made.flops == pytest.approx(10 * per, rel=0.2) and made.tokens == 64_000


def test_every_assumption_has_a_source_and_can_be_set():
  assert set(assumptions.SOURCES) == {field.name for field in dataclasses.fields(Assumptions)}
  numbers, sources = assumptions.assume(["matmul=0.5"])
  assert numbers == Assumptions(matmul=0.5) and sources["matmul"] == "given"
  for text, why in (("speed=1", "'speed' is none of matmul"), ("matmul=fast", "'fast' is no number"),
                    ("matmul=-1", "must not be negative"), ("matmul=nan", "must not be negative")):
    with pytest.raises(ValueError, match=why):
      assumptions.assume([text])


# --- R1's bill

def test_the_papers_settings_add_up():
  stage = paper.r1_zero()
  assert sum(part.rollouts for part in stage.parts) * stage.minibatches == 10_400 and stage.answers == 8192
  tokens = sum(part.rollouts * part.mean for part in stage.parts) * stage.answers
  assert 2.9e10 < tokens < 3.8e10
  assert sum(part.rollouts for part in stage.parts if part.most == 32_768) * 16 == 8208


@pytest.mark.slow
def test_the_papers_bill_is_explained_by_one_fitted_number():
  explained = paper.explain(Site(R1, H800, Assumptions()))
  hours = {name: sum(one.hours for one in bills) for name, bills in explained.bills.items()}
  for name, published in paper.HOURS.items():
    assert hours[name] == pytest.approx(published, rel=0.02)
  zero = explained.bills["r1_zero"][0]
  assert 0.01 < explained.numbers.step < 0.05 and 1500 < explained.rl_1_updates < 4000 and 2 < explained.per_kept < 12
  # 12 FLOPs for each active parameter and token are 4% of the peak; with attention it is twice as much
  assert 12 * 36.7e9 * zero.tokens / (512 * 198 * 3600 * 989e12) == pytest.approx(0.042, abs=0.003)
  assert 0.06 < zero.mfu(989e12) < 0.11
  assert all(one.fits(Site(R1, H800, explained.numbers)) for bills in explained.bills.values() for one in bills)


# --- the command

def test_the_command_plans_an_experiment(capsys, tmp_path):
  file = tmp_path / "plan.json"
  assert cli.main(["plan", "--config", f"{EXPERIMENTS / 'r1_zero_parity.py'}", "--devices", "8", "--hardware", "h100",
                   "--price", "3", "--mean-length", "20", "--json", str(file)]) == 0
  out = capsys.readouterr().out
  for word in ("params", "optimizer", "cache", "by formulas", "prefill", "decode", "update", "sync", "in all", "matmul",
               "assumed", "not used: --mean-length 20"):
    assert word in out, word
  plan = json.loads(file.read_text())
  assert [stage["name"] for stage in plan["stages"]] == ["pretrain", "reasoning_rl"]
  assert plan["dollars"] == pytest.approx(3 * plan["device_hours"]) and plan["stages"][1]["tokens"] == 120 * 256 * 20


def test_answers_of_one_token_can_be_planned(capsys, tmp_path):
  assert lengths.lognormal(1.0, 1, 1.0, 3).tolist() == [1, 1, 1]
  file = tmp_path / "plan.json"
  assert cli.main(["plan", "--config", f"{EXPERIMENTS / 'r1_zero_parity.py'}", "--devices", "1", "--hardware", "h100",
                   "--config.reasoning_rl.sampling.max_tokens=1", "--json", str(file)]) == 0
  assert json.loads(file.read_text())["stages"][1]["tokens"] == 120 * 256


@pytest.mark.slow
def test_the_command_asks_the_compiler_about_a_layout(capsys):
  parity = str(EXPERIMENTS / "r1_zero_parity.py")
  assert cli.main(["plan", "--config", parity, "--devices", "4", "--hardware", "h100", "--compile", "cpu", "--layout",
                   "fsdp=2,tensor=2", "--decode-layout", "data=4", "--config.model.remat=layer"]) == 0
  out = capsys.readouterr().out
  assert "compiled, update: fsdp 2 x tensor 2, 4,096 tokens a row: " in out and "compiled, decode: data 4, " in out
  assert out.count("GB by formulas; compiled in") == 2


@pytest.mark.slow
def test_the_whole_recipe_can_be_planned_without_its_data(capsys):
  assert cli.main(["plan", "--config", f"{EXPERIMENTS / 'r1.py'}", "--devices", "512", "--hardware", "h800"]) == 0
  out = capsys.readouterr().out
  assert "zero_long:" in out and "helpful: how many samples it has is in its data alone" in out
  assert "does NOT fit" not in out and out.count("rows at one time") == 4      # fewer than 8,192, where memory says so


@pytest.mark.parametrize(("argv", "why"), [
  (["--preset", "r1", "--assume", "speed=1"], "'speed' is none of"),
  (["--config", "missing.py"], "missing.py: no such file"),
  (["--config", str(EXPERIMENTS / "r1_zero_parity.py"), "--hardware", "h900"], "hardware 'h900' is none of"),
  (["--config", str(EXPERIMENTS / "r1_zero_parity.py"), "--devices", "0"], "--devices=0 must be at least 1"),
  (["--config", str(EXPERIMENTS / "r1_zero_parity.py"), "--schedules"], "--schedules goes with --preset r1"),
  (["--config", "x.py", "--layout", "fsdp=2"], "--layout and --decode-layout go with --compile"),
  (["--config", "x.py", "--compile", "cpu", "--layout", "rows=2"], "rows=2 is no AXIS=N of a layout; axes are tensor"),
  (["--config", "x.py", "--compile", "cpu", "--layout", "fsdp=2"], "has 2 devices, not --devices=512")])
def test_what_a_caller_gets_wrong_is_one_line(argv, why, capsys):
  assert cli.main(["plan", *argv]) == 2
  error = capsys.readouterr().err
  assert why in error and error.count("\n") == 1
