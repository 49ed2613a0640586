"""Several processes do one run: real ones on this machine, with the CPU's collectives."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax import checkpoint, hosts
from r1jax.cli.main import main
from r1jax.metrics import read

HERE = Path(__file__).parent
TIMES = ("seconds", "tokens_per_s", "sampler/", "ledger/", "tail_")
CLOSE = dict(rtol=2e-4, atol=1e-5)        # sums in another order


FAST = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"      # to compile


def start(workdir: Path, processes: int, *more: str, devices: int = 1) -> list[subprocess.Popen]:
  """The processes of one run."""
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    port = s.getsockname()[1]
  (workdir.parent / "log").mkdir(parents=True, exist_ok=True)
  env = os.environ | dict(JAX_PLATFORMS="cpu", HOSTS_LOG=str(workdir.parent / "log"), OMP_NUM_THREADS="1",
                          XLA_FLAGS=f"--xla_force_host_platform_device_count={devices} {FAST}")
  command = [sys.executable, "-m", "r1jax.cli.main", "run", "--config", str(HERE / "hosts_run.py"), "--workdir",
             str(workdir), "--quiet", *more]       # of two --config, the last counts
  if processes > 1:
    command += ["--coordinator", f"127.0.0.1:{port}", "--processes", str(processes), "--heartbeat", "10"]
  return [subprocess.Popen(command + (["--process", str(i)] if processes > 1 else []), env=env, cwd=HERE.parent,
                           stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for i in range(processes)]


def finish(processes: list[subprocess.Popen], seconds: float = 300) -> list[tuple[int, str]]:
  """(exit status, what it said on stderr) of each; none is left behind."""
  try:
    said = [p.communicate(timeout=seconds)[1] for p in processes]
    return [(p.returncode, text) for p, text in zip(processes, said, strict=True)]
  finally:
    for p in processes:
      p.kill()


def succeed(*args, **more) -> None:
  for status, said in finish(start(*args, **more)):
    assert status == 0, said


def numbers(workdir: Path) -> dict:
  """The rows of both stages and the result, but for times."""
  keep = lambda row: {k: v for k, v in row.items() if not k.startswith(TIMES)}
  rows = lambda stage: [keep(row) for row in read(workdir / stage / "metrics.jsonl")]
  result = json.loads((workdir / "result.json").read_text())
  return dict(pretrain=rows("pretrain"), reasoning_rl=rows("reasoning_rl"), result=[keep(result)])


def assert_close(a: dict, b: dict) -> None:
  for part in a:
    assert len(a[part]) == len(b[part]), part
    for x, y in zip(a[part], b[part], strict=True):
      assert x.keys() == y.keys()
      for key in x:
        np.testing.assert_allclose(x[key], y[key], err_msg=f"{part} {x.get('step')} {key}", **CLOSE)


def logged(workdir: Path, what: str) -> list[list[int]]:
  """The numbers that each process logged."""
  return [list(map(int, f.read_text().split())) for f in (workdir.parent / "log").glob(f"{what}_*")]


# ----- without other processes -----

@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shares_are_everything_once_in_order_and_even(monkeypatch, count):
  monkeypatch.setattr(jax, "process_count", lambda: count)
  for number in (0, 1, 5, 6, 100):
    parts = []
    for i in range(count):
      monkeypatch.setattr(jax, "process_index", lambda i=i: i)
      parts.append(list(hosts.share(number)))
    assert [x for part in parts for x in part] == list(range(number))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_one_process_has_it_all_and_passes_everything_through():
  assert hosts.gather("x") == ["x"] and hosts.divided([1, 2], lambda own: [x * 2 for x in own]) == [2, 4]
  assert hosts.is_main() and hosts.any_of(True) and not hosts.any_of(False) and hosts.from_main(lambda: 3) == 3
  tree = dict(x=np.arange(3))
  assert hosts.place(tree) is tree and hosts.spread(tree) is tree
  with hosts.own_devices(tree) as own:
    assert own is tree
  with pytest.raises(ZeroDivisionError), hosts.job():
    hosts.from_main(lambda: 1 // 0)


@pytest.mark.parametrize(("flags", "message"), [
  (["--coordinator", "h:1", "--processes", "2"], "--process missing"),
  (["--process", "1"], "--coordinator and --processes missing"),
  (["--coordinator", "h", "--processes", "2", "--process", "0"], "give HOST:PORT"),
  (["--coordinator", "h:1", "--processes", "2", "--process", "2"], "--process=2 must be within 0 and --processes=2"),
  (["--distributed", "--coordinator", "h:1", "--processes", "2", "--process", "1"], "give one of the two"),
  (["--heartbeat", "0"], "--heartbeat=0"), (["--profile", "x"], "--profile=x")])
def test_flags_that_do_not_go_together_are_one_line(capsys, tmp_path, flags, message):
  experiment = str(HERE / "hosts_run.py")
  assert main(["run", "--config", experiment, "--workdir", str(tmp_path / "run"), *flags]) == 2
  said = capsys.readouterr().err
  assert message in said and len(said.splitlines()) == 1 and not (tmp_path / "run").exists()


def test_a_port_in_use_is_one_line(capsys, tmp_path):
  with socket.create_server(("", 0)) as taken:
    where = f"127.0.0.1:{taken.getsockname()[1]}"
    assert main(["run", "--config", str(HERE / "hosts_run.py"), "--workdir", str(tmp_path / "run"), "--processes", "2",
                 "--process", "0", "--coordinator", where]) == 2
  said = capsys.readouterr().err
  assert f"--coordinator={where}: process 0 cannot listen there" in said and len(said.splitlines()) == 1


SHAPES = [((), np.int32), ((5,), np.float32), ((8, 6), np.float32), ((4, 6, 10), jnp.bfloat16),
          ((2, 3, 4, 5), np.uint8)]


@pytest.mark.parametrize(("shape", "dtype"), SHAPES)
def test_a_checksum_is_the_sum_over_any_parts_and_sees_any_bit_and_exchange(shape, dtype):
  x = np.random.default_rng(0).integers(1, 100, shape).astype(dtype)
  whole = tuple(slice(None) for _ in shape)
  want = checkpoint._sum(x, whole, shape)
  if x.ndim:
    rows = x.shape[0] // 2
    parts = [slice(0, rows), slice(rows, None)]
    columns = [slice(0, 2), slice(2, None)] if x.ndim > 1 else [None]
    cut = [(r, *whole[1:-1], *[c] * (c is not None)) for r in parts for c in columns]
    assert sum(checkpoint._sum(x[index], index, shape) for index in cut) % 2**32 == want
    flat = x.reshape(-1).copy()
    flat[[0, -1]] = flat[[-1, 0]]
    assert flat[0] == flat[-1] or checkpoint._sum(flat.reshape(shape), whole, shape) != want
  for at in range(x.size):
    bits = x.reshape(-1).copy().view(f"u{x.itemsize}")
    bits[at] ^= 1 << (8 * x.itemsize - 1)
    assert checkpoint._sum(bits.view(dtype).reshape(shape), whole, shape) != want


def test_a_checksum_does_not_depend_on_the_block_that_is_summed_at_once():
  x = np.arange(300_000, dtype=np.float32)
  of = lambda *shape: checkpoint._sum(x.reshape(shape), (slice(None),) * len(shape), shape)
  assert of(300_000) == of(3, 100_000) == of(100_000, 3) == of(10, 10, 3000)


def test_checkpoints_of_before_have_another_checksum_and_are_read(tmp_path, monkeypatch):
  state = dict(w=jnp.arange(6.0))
  monkeypatch.setattr(checkpoint, "checksums", checkpoint._crc32)
  monkeypatch.setattr(checkpoint, "KIND", "crc32")
  with checkpoint.Checkpoints(tmp_path) as saved:
    saved.save(1, state, {})
  monkeypatch.undo()
  with checkpoint.Checkpoints(tmp_path) as saved:
    np.testing.assert_array_equal(saved.restore(state)[1]["w"], state["w"])


# ----- with others -----

@pytest.fixture(scope="module")
def alone(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("alone") / "run"
  succeed(workdir, 1)
  return workdir


def killed(workdir: Path, processes: list[subprocess.Popen], number: int, stage: str, rows: int) -> None:
  """Kills one once the stage has so many rows; the others must end soon, and say why."""
  while all(p.poll() is None for p in processes) and len(read(workdir / stage / "metrics.jsonl")) < rows:
    time.sleep(0.02)
  processes[number].send_signal(signal.SIGKILL)
  began = time.monotonic()
  said = finish(processes, 120)
  assert said.pop(number)[0] == -signal.SIGKILL and time.monotonic() - began < 60
  for status, text in said:
    assert status in (hosts.LOST, -signal.SIGABRT), (status, text)
    assert "another process ended" in text or "another task died" in text
  assert len(read(workdir / "reasoning_rl/metrics.jsonl")) < 8


@pytest.mark.slow
def test_four_processes_of_which_one_is_killed_then_two_do_the_run_of_one(alone, tmp_path):
  workdir = tmp_path / "run"
  killed(workdir, start(workdir, 4, "--config.mesh.fsdp=2"), 2, "reasoning_rl", 3)
  (tmp_path / "log").rename(tmp_path / "log_of_four")
  succeed(workdir, 2, "--config.mesh.tensor=2")                        # data x fsdp before, tensor now
  assert_close(numbers(workdir), numbers(alone))

  (whole,) = logged(alone, "rewarded")
  judged = Counter(whole)                                              # not those that were cut off
  for folder, count in (("log_of_four", 4), ("log", 2)):
    parts = [Counter(map(int, f.read_text().split())) for f in (tmp_path / folder).glob("rewarded_*")]
    assert len(parts) == count
    asked = {i for part in parts for i in part if i >= 6}              # those below may be held-out problems, too
    assert len(asked) > 3 and asked < set(whole)
    for i in asked:                                                    # all answers to a question, by one process
      found = [part[i] for part in parts if part[i]]
      assert found == [judged[i]] or (count == 4 and len(found) == 1 and i >= max(asked) - 4), (i, found)
    sizes = [sum(part.values()) for part in parts]
    assert max(sizes) <= 2 * min(sizes)
  written = {f.parts[-3] for f in (workdir / "reasoning_rl/checkpoints/8").rglob("d/*")}
  assert {"ocdbt.process_0", "ocdbt.process_1"} <= written


@pytest.mark.slow
def test_experts_a_critic_slots_and_dynamic_sampling_are_divided_too(tmp_path):
  more = ("--config", f"{HERE / 'hosts_run.py'}:more")
  for processes in (1, 2):
    succeed(tmp_path / f"{processes}" / "run", processes, *more)
  one, two = (numbers(tmp_path / f"{processes}" / "run") for processes in (1, 2))
  assert_close(two, one)
  assert {"critic/loss", "sampled_rounds", "router_dropped"} <= one["reasoning_rl"][0].keys()


@pytest.mark.slow
def test_when_the_main_process_is_killed_the_others_end_too(tmp_path):
  killed(tmp_path / "run", start(tmp_path / "run", 2), 0, "pretrain", 1)


@pytest.mark.slow
def test_a_process_that_waits_for_the_others_in_vain_says_so(tmp_path):
  first, second = start(tmp_path / "run", 2, "--patience", "3")
  second.kill()
  second.communicate()
  ((status, said),) = finish([first], 60)
  assert status == hosts.LOST and "the 2 processes did not all meet at 127.0.0.1:" in said
