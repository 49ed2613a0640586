"""The numbers that a plan rests on and no config states, each with its source; `--assume NAME=VALUE` sets one.

"fitted": chosen so that the model explains a published figure (paper.calibrate says which). "assumed": nobody has
published it; a plan is as good as these are.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Assumptions:
  matmul: float = 0.7            # share of the peak that products reach
  memory: float = 0.8            # share of the memory's bandwidth
  link: float = 0.8              # share of a link's one-way rate, within a server or pod
  network: float = 0.8           # share of the network's one-way rate, beyond it
  overlap: float = 0.5           # share of the traffic that is hidden behind products in training
  bubble: float = 0.5            # share of a plain pipeline's bubble that is left
  host: float = 20e9             # bytes/s between a device and its host's memory, offloading
  step: float = 0.010            # s of a decode step that neither FLOPs nor bytes explain: launches, latencies, waits
  restart: float = 20.0          # s of a phase switch beside its bytes: engines, graphs, processes
  reward: float = 10.0           # s of rewards after the last answer; what comes before is hidden
  acceptance: float = 0.85       # share of guessed tokens that are right, by V3's multi-token prediction module
  sigma: float = 1.0             # of the logarithm of answer lengths
  spread: float = 0.25           # mean answer length, as a share of max_tokens, where none is given
  prompt: float = 160.0          # tokens of a prompt, where none is given
  cache: float = 0.9             # share of a device's memory that may be planned for
  routed_nodes: int = 4          # servers to which a token's experts are limited


SOURCES = dict(
  matmul="assumed; large BF16 products on Hopper reach 0.6 to 0.8",
  memory="assumed; streaming kernels reach 0.8 to 0.9",
  link="DeepEP README: 160 of H800's 200 GB/s each way",
  network="DeepEP README (February 2025): 40 of 50 GB/s in all-to-all",
  overlap="assumed; DualPipe hides nearly all of it (V3 report 3.2.1), others less",
  bubble="assumed; DualPipe halves it (V3 report, table 2)",
  host="assumed: a third of PCIe 5.0 x16",
  step="assumed; --preset r1 fits it to R1-Zero's 198 hours",
  restart="assumed",
  reward="assumed; rewards overlap with sampling (R1 supplement 2.1)",
  acceptance="V3 report 5.4.3: 85 to 90%",
  sigma="assumed: lengths are log-normal, cut at max_tokens",
  spread="assumed",
  prompt="R1 supplement, RL data: 122 (math), 161 (STEM), 420 (logic) tokens on average",
  cache="assumed: the rest is fragments, contexts, communication buffers",
  routed_nodes="V3 report 2.1.2: a token's experts are on at most 4 servers",
)


def assume(given: list[str]) -> tuple[Assumptions, dict[str, str]]:
  """From NAME=VALUE texts: the numbers, and their sources. ValueError for an unknown name, or what is no number."""
  values, sources = {}, dict(SOURCES)
  for text in given:
    name, _, value = text.partition("=")
    if name not in SOURCES:
      raise ValueError(f"--assume {text}: {name!r} is none of {', '.join(SOURCES)}")
    try:
      number = float(value)
    except ValueError:
      raise ValueError(f"--assume {text}: {value!r} is no number") from None
    if not number >= 0:
      raise ValueError(f"--assume {text}: must not be negative")
    values[name], sources[name] = number, "given"
  return dataclasses.replace(Assumptions(), **values), sources
