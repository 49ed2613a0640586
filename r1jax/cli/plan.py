"""`r1jax plan (--config FILE[:ARG] | --preset r1) --devices N --hardware NAME`: a run's needs and cost, beforehand."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from pathlib import Path


def main(argv: list[str]) -> int:
  parser = argparse.ArgumentParser(
    prog="r1jax plan", allow_abbrev=False, formatter_class=argparse.RawTextHelpFormatter,
    description="Says what a run on devices that are not here would need and cost: bytes on a device by part, the\n"
                "best layouts, FLOPs, bytes and traffic of each phase, device-hours and dollars. By formulas, whose\n"
                "assumptions are printed with their sources.",
    epilog="examples:\n  r1jax plan --preset r1 --schedules\n"
           "  r1jax plan --config experiments/r1_zero_gsm8k.py --devices 8 --hardware h100 --vocab 50000")
  what = parser.add_mutually_exclusive_group(required=True)
  what.add_argument("--config", metavar="FILE[:ARG]", help="experiment file, as for r1jax run")
  what.add_argument("--preset", choices=("r1",), help="DeepSeek-R1's own stages, fitted to its published bill")
  parser.add_argument("--config.KEY=VALUE", dest="_", metavar="", help="changes one value of the experiment")
  parser.add_argument("--devices", type=int, default=512, help="(default 512)")
  parser.add_argument("--hardware", default="h800", metavar="NAME",
                      help="a row of hardware.py, such as h800 (default), h100, b200, v5p; cpu: this one, measured")
  parser.add_argument("--price", type=float, default=2.0, metavar="DOLLARS", help="of a device-hour (default 2)")
  parser.add_argument("--mean-length", type=float, default=0.0, metavar="N", help="mean tokens of an answer")
  parser.add_argument("--prompt-length", type=float, default=0.0, metavar="N", help="mean tokens of a prompt")
  parser.add_argument("--vocab", type=int, default=0, metavar="N",
                      help="tokens of the vocabulary, where the experiment's data is not here")
  parser.add_argument("--assume", action="append", default=[], metavar="NAME=VALUE", help="sets one assumption")
  parser.add_argument("--schedules", action="store_true",
                      help="with --preset r1: the same work by other schedules (some minutes)")
  parser.add_argument("--compile", default="", metavar="TARGET",
                      help="asks XLA for the bytes of the update and the decode step: cpu (simulated devices), or a\n"
                           "TPU topology such as v5p:8x8x8 (needs libtpu). Takes minutes, and gigabytes of memory")
  parser.add_argument("--layout", default="", metavar="AXIS=N,...",
                      help="with --compile: the update's layout in place of the best one, such as fsdp=64,tensor=8")
  parser.add_argument("--decode-layout", default="", metavar="AXIS=N,...", help="the decode step's, such as expert=64")
  parser.add_argument("--json", type=Path, metavar="FILE", help="writes all numbers there, too")
  args, rest = parser.parse_known_args(argv)
  lengths = args.mean_length, args.prompt_length, args.vocab
  if args.devices < 1 or not 0 <= args.price < math.inf or min(lengths) < 0:
    raise ValueError(f"--devices={args.devices} must be at least 1; --price={args.price} and lengths not negative")
  if args.preset and (rest or (args.schedules and args.compile)):
    raise ValueError(f"--preset r1 takes no {rest[0] if rest else '--compile beside --schedules'}")
  if args.schedules and not args.preset:
    raise ValueError("--schedules goes with --preset r1")
  if (args.layout or args.decode_layout) and not args.compile:
    raise ValueError("--layout and --decode-layout go with --compile")
  layouts = {what: _layout(text, args.devices) for what, text in
             (("update", args.layout), ("decode", args.decode_layout)) if text}

  from r1jax.plan import show
  from r1jax.plan.assumptions import assume
  numbers, sources = assume(args.assume)
  site, bills, lines = (_preset if args.preset else _experiment)(args, rest, numbers, sources)
  given = _compiled(args, site, bills, layouts) if args.compile else {}
  for bill in bills:
    for line in show.stage_text(bill, site, args.price, given.get(bill.name)):
      print(line)
  for line in (*show.total_text(bills, args.price), "", *lines, *show.assumption_text(site, sources)):
    print(line)
  if args.json:
    args.json.write_text(json.dumps(show.json_of(bills, site, sources, args.price) | dict(compiled=given), indent=1))
  return 0


def _hardware(name: str):
  """The row of that name, or this machine's CPU, measured."""
  from r1jax import hardware
  if name != "cpu":
    return hardware.find(name)
  import os

  import jax

  from r1jax.bench import roofline
  memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
  return dataclasses.replace(roofline.of(jax.devices("cpu")[0]), memory=float(memory), neighbours=1, source="measured")


def _experiment(args, rest, numbers, sources):
  from r1jax import config as configs
  from r1jax.cli.run import load_config
  from r1jax.plan import bill, settings
  from r1jax.plan.phases import Site
  config = load_config(args.config, rest)
  cfg = configs.freeze(config)
  model = _model(args, config, cfg)
  site = Site(model, _hardware(args.hardware), numbers)
  for name, given in (("spread", args.mean_length), ("prompt", args.prompt_length)):
    if given:
      sources[name] = f"not used: --{'mean' if name == 'spread' else name}-length {given:g}"
  stages, lines = settings.of_config(cfg, numbers, args.mean_length, args.prompt_length)
  if not stages:
    raise ValueError(f"{args.config} has no stage that can be planned. {'; '.join(lines)}")
  bills = [bill.of(site, stage, schedule, args.devices) for stage, schedule in stages]
  return site, bills, [f"not planned: {line}" for line in lines]


def _model(args, config, cfg):
  """The experiment's model. Its vocabulary: --vocab, or a preset's of the same sizes, or the tokenizer's."""
  from r1jax import config as configs
  from r1jax import policies
  from r1jax.models import deepseek, llama, qwen
  if cfg.start:
    return cfg.model
  sizes = lambda model: dataclasses.replace(model, vocab=1, remat="none", logit_chunk=1, dtype="float32")
  same = [preset.vocab for family in (deepseek, qwen, llama) for preset in getattr(family, "PRESETS", {}).values()
          if sizes(preset) == sizes(cfg.model)]
  vocab = args.vocab or (same[0] if same else 0)
  try:
    return configs.with_vocab(cfg, vocab or policies.make_task(config, cfg).tokenizer.vocab)
  except (ValueError, FileNotFoundError) as error:
    raise ValueError(f"the tokenizer is not here ({error}): give --vocab N") from error


def _preset(args, rest, numbers, sources):
  from r1jax import hardware
  from r1jax.models.deepseek import PRESETS
  from r1jax.plan import paper, show
  from r1jax.plan.phases import Site
  model = dataclasses.replace(PRESETS["deepseek-r1"], remat="layer")
  site = Site(model, hardware.find("h800"), numbers)
  explained = paper.explain(site)
  site = dataclasses.replace(site, numbers=explained.numbers)
  sources["step"] = "fitted to R1-Zero's 198 hours on 512 H800"
  lines = [f"settings of R1: {name}: {text}" for name, text in paper.SETTINGS.items()]
  lines += [f"fitted: step {1000 * explained.numbers.step:.1f} ms; left for RL-1 by R1's 80 hours:"
            f" {explained.rl_1_updates} updates; answers drawn to each kept sample: {explained.per_kept:.1f}", ""]
  bills = [b for stages in explained.bills.values() for b in stages]
  if args.hardware != "h800" or args.devices != paper.DEVICES:
    site = dataclasses.replace(site, hardware=_hardware(args.hardware))
    bills = [b for stages in paper.again(site, explained, paper.PAPER, args.devices).values() for b in stages]
  if args.schedules:
    rows, first = [("the same work", "device-hours", "dollars", "saved", "R1-Zero, hours")], 0.0
    for name, schedule in paper.schedules().items():
      made = paper.again(site, explained, schedule, args.devices)
      hours = paper.hours(made)
      first = first or hours
      rows.append((f"  {name}", f"{hours:,.0f}", f"{hours * args.price:,.0f}", f"{1 - hours / first:.0%}",
                   f"{made['r1_zero'][0].seconds / 3600:.0f}"))
    lines = [*show.table(rows), "", *lines]
  del rest
  return site, bills, lines


def _compiled(args, site, bills, layouts) -> dict[str, dict[str, float]]:
  """Bytes by XLA of the first RL stage's update and decode step, on the layouts that the mesh can express."""
  from r1jax.plan import compare
  return {b.name: compare.by_compiler(site, b, args.compile, layouts=layouts) for b in bills if b.rollout and b.tried}


def _layout(text: str, devices: int):
  """`fsdp=64,tensor=8` -> Layout. ValueError for what is no axis, or no layout of so many devices."""
  from r1jax.plan.layout import AXES, Layout
  sizes = dict(part.partition("=")[::2] for part in text.split(","))
  if wrong := [f"{axis}={size}" for axis, size in sizes.items() if axis not in AXES or not size.isdigit()]:
    raise ValueError(f"{wrong[0]} is no AXIS=N of a layout; axes are {', '.join(AXES)}")
  layout = Layout(**{axis: int(size) for axis, size in sizes.items()})
  if layout.devices != devices:
    raise ValueError(f"layout {layout} has {layout.devices} devices, not --devices={devices}")
  return layout
