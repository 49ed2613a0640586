"""The sandbox: every program of attacks.py is run with all means, and again without namespaces; then what must work."""

import concurrent.futures
import dataclasses
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import attacks
import pytest

from r1jax.rewards import code, sandbox
from r1jax.rewards.sandbox import Case, Limits, Means, seccomp, values

NUMBER = 94173860527
LIMITS = Limits(cpu=1, wall=0.7, memory=256 * sandbox.MB, disk=8 * sandbox.MB, output=300_000)
CALL = Case(("f(2)",))
GOOD = "import re, collections\ndef f(n): return collections.Counter('ab' * n)"
MEANS = ("all means", "no namespaces")


def means_of(name):
  """The means of that name, or a skip that says why this machine has not got them."""
  every = sandbox.capabilities()
  if every.missing():
    pytest.skip(f"no sandbox here: {every.reasons}")
  if name == "all means":
    return every
  if not every.namespaces:
    pytest.skip(f"this is what 'all means' are here: {every.reasons}")
  if not every.landlock:
    pytest.skip(f"no Landlock here: {every.reasons}")
  return dataclasses.replace(every, namespaces=False)


class World:
  """What programs may try to read, change, reach or kill."""

  def __init__(self):
    self.root = Path(tempfile.mkdtemp(prefix="r1jax-world-"))
    self.root.chmod(0o777)
    self.secret = self.root / "secret.txt"
    self.secret.write_text(f"assert f(2) == {NUMBER}")
    self.secret.chmod(0o666)
    self.bystander = subprocess.Popen(["sleep", "600"], env=os.environ | dict(SECRET=str(NUMBER)))
    self.listeners = [socket.create_server(("127.0.0.1", 0))]
    for address in (str(self.root / "unix"), "\0" + str(self.root / "unix")):
      self.listeners.append(socket.socket(socket.AF_UNIX))
      self.listeners[-1].bind(address)
      self.listeners[-1].listen()
    (self.root / "unix").chmod(0o777)
    self.port = self.listeners[0].getsockname()[1]

  def fill(self, text, out):
    text = attacks.PRELUDE + text
    for name, by in dict(SECRET=self.secret, OUT=out, PORT=self.port, UNIX=self.root / "unix", PARENT=os.getpid(),
                         PID=self.bystander.pid, TESTS=Path(__file__).parent,
                         ROOT=Path(__file__).parents[1]).items():
      text = text.replace("$" + name, str(by))
    return text

  def harm(self):
    """What has been done to it, in words."""
    done = [] if self.bystander.poll() is None else ["the bystander is dead"]
    state = Path(f"/proc/{self.bystander.pid}/stat").read_text().split()
    if state[2] != "S" or state[18] != str(os.getpriority(os.PRIO_PROCESS, 0)):
      done.append("it is stopped, or made slow")
    done += [] if self.secret.read_text() == f"assert f(2) == {NUMBER}" else ["the secret was changed"]
    for listener in self.listeners:
      listener.setblocking(False)
      try:
        listener.accept()
        done.append("a connection came in")
      except BlockingIOError:
        pass
    return done

  def close(self):
    self.bystander.kill()
    self.bystander.wait()
    for listener in self.listeners:
      listener.close()
    shutil.rmtree(self.root)


@pytest.fixture(scope="module")
def world():
  built = World()
  yield built
  built.close()


@pytest.fixture(scope="module", autouse=True)
def runner(tmp_path_factory):
  """A copy of the runner: `ours` then finds what was started here, not what test runs beside this one start."""
  folder = tmp_path_factory.mktemp("runner") / "sandbox"
  shutil.copytree(sandbox.RUNNER.parent, folder, ignore=shutil.ignore_patterns("__pycache__"))
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(sandbox, "RUNNER", folder / "runner.py")
    yield sandbox.RUNNER


def ours():
  """Processes that run this file's runner, or were forked from it."""
  found = []
  for path in Path("/proc").glob("[0-9]*/cmdline"):
    try:
      if str(sandbox.RUNNER).encode() in path.read_bytes():
        found.append(path.parent.name)
    except OSError:
      pass
  return found


def run_table(world, table, case, limits, means):
  """{name: (result, harm, whether a good program then worked)}; four at a time, as a training run would."""
  def one(name):
    out = Path(tempfile.mkdtemp(dir=world.root))
    out.chmod(0o777)
    result = sandbox.run(world.fill(table[name], out), [case], limits=limits, means=means)[0]
    made = [str(p) for p in out.iterdir()]
    good = sandbox.run(GOOD, [CALL], means=means)[0]
    return result, made + world.harm(), good.status == "ok" and values.decode(good.values[0]) == dict(a=2, b=2)
  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    return dict(zip(table, pool.map(one, table), strict=True))


TABLES = dict(
  forged=(attacks.FORGED, CALL, LIMITS), harm=(attacks.HARM, CALL, LIMITS), scripts=(attacks.SCRIPTS, Case(), LIMITS),
  harm_by_scripts=({k: v for k, v in attacks.HARM.items() if k.startswith("endless") or "closed" in k}, Case(), LIMITS),
  processes=(attacks.PROCESSES, CALL, dataclasses.replace(LIMITS, processes=8)))
ATTACKS = [
  pytest.param(m, table, name, id=f"{m}-{table}-{name}", marks=[pytest.mark.slow] if m != MEANS[0] else [])
  for m in MEANS for table, (programs, _, _) in TABLES.items() for name in programs
  if m == MEANS[0] or table != "processes"]


@pytest.fixture(scope="module")
def outcomes(world):
  done = {}

  def of(which, table):
    if (which, table) not in done:
      means = means_of(which)
      if table == "processes" and not means.namespaces:
        pytest.skip(f"no namespaces here: {means.reasons}")
      done[which, table] = run_table(world, *TABLES[table], means)
    return done[which, table]
  return of


@pytest.mark.parametrize(("which", "table", "name"), ATTACKS)
def test_an_attack_pays_nothing_and_does_no_harm(outcomes, which, table, name):
  result, harm, good_after = outcomes(which, table)[name]
  assert not harm
  assert "SystemError" not in result.detail, "the program got what it should not"
  assert good_after
  if table in ("scripts", "harm_by_scripts"):
    tests = code.read_tests(json.dumps(dict(cases=[dict(stdin="", stdout=f"{NUMBER}\n")])))
    assert code.judge(tests, [result], LIMITS) == [False]
    return
  for condition in (f"f(2) == {NUMBER}", f"f(2) in [{NUMBER}]", f"not f(2) != {NUMBER}"):
    tests = code.read_tests(json.dumps(dict(asserts=[f"assert {condition}"], names=["f"])))
    assert result.status != "ok" or code.judge(tests, [result], LIMITS) == [False]


def test_nothing_is_alive_afterwards(outcomes):
  deadline = time.monotonic() + 5
  while ours() and time.monotonic() < deadline:
    time.sleep(0.05)                               # another test's runner may be about to end
  assert not ours()


def test_the_attacks_are_real_ones(world):
  """They work where nothing holds them: what is tested above can fail."""
  means_of("all means")
  out = world.root / "real"
  out.mkdir()
  for name in ("the secret file", "the secret file by a link", "/proc of itself and parents"):
    result = sandbox.run(world.fill(attacks.FORGED[name], out), [CALL], limits=LIMITS, unsandboxed=True)[0]
    assert (result.status, result.values) == ("ok", (NUMBER,)), name
  for program in (attacks.HARM["exec"], attacks.HARM["subprocess"], "write('$OUT/made')"):
    sandbox.run(world.fill(program, out), [CALL], limits=LIMITS, unsandboxed=True)
    (out / "made").unlink()
  for name in ("a server", "system calls without a name"):
    assert "SystemError" in sandbox.run(world.fill(attacks.HARM[name], out), [CALL], unsandboxed=True)[0].detail, name


@pytest.mark.parametrize("which", MEANS)
@pytest.mark.parametrize(("program", "expected"), [
  ("import asyncio\nasync def g(): await asyncio.sleep(0); return 3\ndef f(n): return asyncio.run(g())", 3),
  ("import threading\ndef f(n):\n  x = []\n  t = [threading.Thread(target=x.append, args=(i,)) for i in range(9)]\n"
   "  [a.start() for a in t]; [a.join() for a in t]; return sorted(x)", list(range(9))),
  ("import sys, threading\nsys.setrecursionlimit(10**6)\nthreading.stack_size(2**27)\n"
   "def g(n): return 0 if n == 0 else 1 + g(n - 1)\ndef f(n):\n  x = []\n"
   "  t = threading.Thread(target=lambda: x.append(g(20000)))\n  t.start(); t.join(); return x", [20000]),
  ("import os\ndef f(n): return [len(os.urandom(3)), 'r1jax' in str(os.environ)]", [3, False]),
  ("import decimal, fractions, datetime, hashlib, sqlite3, zoneinfo, bisect, heapq, statistics, string, random, uuid\n"
   "def f(n): return hashlib.md5(b'').hexdigest()[:4], sqlite3.connect(':memory:').execute('select 1').fetchone()",
   ("d41d", (1,))),
  ("from dataclasses import dataclass\nimport pickle\n@dataclass\nclass A:\n  x: int\n"
   "def f(n): return pickle.loads(pickle.dumps(A(n))).x", 2),
  ("if __name__ == '__main__': raise ValueError\ndef f(n): return hash('a') == hash('a'), {1: {2.5, None}}, b'x', 1j",
   (True, {1: {2.5, None}}, b"x", 1j)),
])
def test_what_honest_programs_do_works(which, program, expected):
  result = sandbox.run(program, [CALL], means=means_of(which))[0]
  assert (result.status, result.detail) == ("ok", "")
  assert values.decode(result.values[0]) == expected


def test_files_are_written_where_they_may_be_and_not_found_again():
  if not means_of("all means").namespaces:
    pytest.skip("no namespaces here: nothing can be written")
  program = ("import os, tempfile\ndef f(n):\n  with open('a', 'x') as f: f.write('x')\n"
             "  with tempfile.TemporaryFile() as t: t.write(b'y')\n  return os.listdir()")
  assert [r.values for r in sandbox.run(program, [CALL] * 2)] == [(["list", ["a"]],)] * 2


@pytest.mark.parametrize(("body", "most"), [
  ("threading.Thread(target=time.sleep, args=(9,), daemon=True).start()", 8),   # 3 + 4, less itself, and up to 2 of
  ("os.fork() or time.sleep(9)", 8),                                            # the sandbox's that may not count
  ("kept.append(open('/dev/null'))", 12), ("kept.append(bytearray(10**6))", 100),
  ("kept.append(mmap.mmap(-1, 10**6))", 100),
  ("open('one', 'ab', 0).write(bytes(10**5))", 10), ("open(str(n), 'xb', 0).write(bytes(10**5))", 30),
  ("resource.setrlimit(resource.RLIMIT_NOFILE, (99, 99))", 0), ("os.nice(-1)", 0), ("socket.socket()", 0)])
def test_limits_hold(body, most):
  """How often it can be done, before an error."""
  if not means_of("all means").namespaces:
    pytest.skip("no namespaces here")
  limits = Limits(memory=100 * sandbox.MB, threads=4, processes=3, open_files=12, file_size=10**6, disk=3 * 10**6)
  program = ("import mmap, os, resource, socket, threading, time\ndef f(_):\n  kept, n = [], 0\n  try:\n"
             f"    while n < 1000:\n      {body}\n      n += 1\n  except BaseException: kept.clear()\n  return n")
  result = sandbox.run(program, [CALL], limits=limits)[0]
  assert result.status == "ok", result
  assert most // 2 <= result.values[0] <= most


def test_processes_may_be_started_where_they_are_asked_for():
  if not means_of("all means").namespaces:
    pytest.skip("no namespaces here")
  program = "import os\ndef f(n):\n  pid = os.fork()\n  if pid == 0: os._exit(7)\n  return os.waitpid(pid, 0)[1] >> 8"
  assert sandbox.run(program, [CALL])[0].detail.startswith("PermissionError")
  assert sandbox.run(program, [CALL], limits=Limits(processes=2))[0].values == (7,)
  with pytest.raises(NotImplementedError, match="processes=2 needs namespaces"):
    sandbox.run(program, [CALL], limits=Limits(processes=2), means=Means(False, 7, True, True))


@pytest.mark.parametrize(("program", "status"), [
  ("import time\ntime.sleep(99)", "timeout"), ("while True: pass", "timeout"), ("f = 1 +", "syntax"),
  ("def f(n): return 1 / 0", "error"), ("def f(n): return f", "error"), ("import os\nos._exit(0)", "exit"),
  ("import os\nos.abort()", "killed"), ("def f(n): return 'x' * 10**6", "overflow"), ("def f(n): return n", "ok"),
])
def test_how_it_ended_is_told(program, status):
  means_of("all means")
  assert sandbox.run(program, [CALL], limits=LIMITS)[0].status == status


def test_cpu_time_is_told_from_wall_time():
  means_of("all means")
  limits = dataclasses.replace(LIMITS, cpu=1, wall=20.0)
  busy = "import signal\nfor s in (15, 24): signal.signal(s, signal.SIG_IGN)\nwhile True: pass"
  result = sandbox.run(busy, [CALL], limits=limits)[0]
  assert result.status == "timeout" and 0.5 < result.cpu < 2 and result.wall < 15


def test_cases_after_the_first_failure_are_skipped_when_asked():
  means_of("all means")
  cases = [CALL, Case(("f(0)",)), CALL]
  assert [r.status for r in sandbox.run("def f(n): return 1 // n", cases)] == ["ok", "error", "ok"]
  assert [r.status for r in sandbox.run("def f(n): return 1 // n", cases, stop=True)] == ["ok", "error", "skipped"]
  assert sandbox.run("", []) == []


def test_a_script_reads_and_writes():
  means_of("all means")
  text = "é\n" * 200_000
  program = "import sys\nx = sys.stdin.read()\nprint(len(x), x[0])\nsys.stderr.write('no')"
  result, = sandbox.run(program, [Case(stdin=text)])
  assert (result.status, result.stdout.decode()) == ("ok", "400000 é\n")
  ends = "import atexit\nimport threading as t\natexit.register(print, 3)\nt.Thread(target=print, args=(2,)).start()\n"
  assert sandbox.run(ends + "exit()", [Case()])[0].stdout.split() == [b"2", b"3"]
  assert sandbox.run("import sys\nsys.exit('no')", [Case()])[0].status == "exit"


@pytest.mark.parametrize(("means", "missing"), [
  (Means(), "no no_new_privs, no seccomp, no namespaces or Landlock"),
  (Means(True, 7, False, True, ("seccomp: refused",)), r"no seccomp \(seccomp: refused\)"),
  (Means(False, 0, True, True), "no namespaces or Landlock")])
def test_what_is_missing_is_named_and_nothing_is_run(means, missing):
  with pytest.raises(NotImplementedError, match=missing):
    sandbox.run("open('/tmp/never', 'w')", [CALL], means=means)
  assert not Path("/tmp/never").exists()
  assert sandbox.run("def f(n): return n", [CALL], means=means, unsandboxed=True)[0].values == (2,)


def test_means_that_do_not_work_stop_the_run(monkeypatch, tmp_path):
  """Asked for and not granted is a failure of the sandbox, never a program that runs free."""
  means_of("all means")
  folder = shutil.copytree(sandbox.RUNNER.parent, tmp_path / "sandbox", ignore=shutil.ignore_patterns("__pycache__"))
  monkeypatch.setattr(sandbox, "RUNNER", folder / "runner.py")
  for file, old, broken in (("landlock.py", "= 444, 445, 446", "= 444, 445, 999"),
                            ("seccomp.py", "_SET_SECCOMP = 21, 22", "_SET_SECCOMP = 21, 29"),   # 29 does something else
                            ("jail.py", "libc.unshare(flags)", "libc.unshare(-1)"),
                            ("jail.py", "libc.pivot_root", "libc.abs")):
    if file == "jail.py" and not sandbox.capabilities().namespaces:
      continue
    text = (folder / file).read_text()
    assert old in text
    (folder / file).write_text(text.replace(old, broken) + f"# {broken}\n")   # another size: not the cached bytecode
    with pytest.raises(sandbox.SandboxError):
      sandbox.run(GOOD, [CALL])
    (folder / file).write_text(text)
  (folder / "runner.py").write_text("print('nonsense')")
  with pytest.raises(sandbox.SandboxError, match="the runner ended with 0"):
    sandbox.run(GOOD, [CALL])


def test_a_killed_parent_leaves_nothing(runner):
  means_of("all means")
  script = ("import pathlib, threading\nfrom r1jax.rewards import sandbox\n"
            f"sandbox.RUNNER = pathlib.Path({str(runner)!r})\nsandbox.capabilities()\nprint('go', flush=True)\n"
            "for _ in range(2): threading.Thread(target=sandbox.run, args=('import time; time.sleep(50)',"
            " [sandbox.Case(('1',))]), kwargs=dict(limits=sandbox.Limits(wall=50.0))).start()\n")
  parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=Path(__file__).parents[1])
  assert parent.stdout.readline() == b"go\n"
  deadline = time.monotonic() + 20
  while len(ours()) < 6 and time.monotonic() < deadline:      # two runners, each with its process 1 and its program
    time.sleep(0.05)
  assert len(ours()) >= 4
  parent.kill()
  parent.communicate()
  while ours() and time.monotonic() < deadline:
    time.sleep(0.05)
  assert not ours()


def test_many_threads_at_once_get_their_own_results():
  means_of("all means")
  before = threading.active_count()
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    got = list(pool.map(lambda i: sandbox.run(f"def f(n): return {i}", [CALL])[0].values[0], range(24)))
  assert got == list(range(24))
  assert threading.active_count() == before


@pytest.mark.parametrize("bad", [
  dict(wall=0), dict(cpu=0), dict(cpu=1.5), dict(memory=1), dict(threads=-1), dict(output=0)])
def test_limits_that_make_no_sense_are_refused(bad):
  with pytest.raises(ValueError, match=next(iter(bad))):
    Limits(**bad)


@pytest.mark.parametrize("machine", seccomp.MACHINES)
@pytest.mark.parametrize("processes", [False, True])
def test_the_filter_allows_by_list_only(machine, processes):
  """A small interpreter of the filter, for each system call number, with arguments that are zero."""
  def verdict(number, args=(0,) * 6, arch=seccomp.MACHINES[machine][1]):
    data, program = [number, arch, 0, 0], seccomp.program(machine, 77, processes)
    for a in args:
      data += [a & 0xFFFFFFFF, 0]
    at = acc = 0
    while True:
      op, jt, jf, k = program[at]
      at += 1
      if op == 0x06:
        return k
      if op in (0x15, 0x35):
        at += jt if (acc == k if op == 0x15 else acc >= k) else jf
      else:
        acc = {0x20: lambda k: data[k // 4], 0x54: lambda k, acc=acc: acc & k}[op](k)
  allow, refuse = 0x7FFF0000, 0x00050001
  x86 = machine == "x86_64"
  assert verdict(0 if x86 else 63) == allow                                        # read
  assert {verdict(n) for n in ((59, 101, 165, 41, 42) if x86 else (221, 117, 40, 198, 203))} == {refuse}
  assert verdict(435) == 0x00050026                                                # clone3: no such call
  assert verdict(0, arch=0x40000003) == 0x80000000                                 # another machine's calls
  clone, kill = (56, 62) if x86 else (220, 129)
  assert verdict(clone, (0x3D0F00, 0, 0, 0, 0, 0)) == allow                        # a thread
  assert verdict(clone, (17, 0, 0, 0, 0, 0)) == (allow if processes else refuse)   # fork
  assert verdict(clone, (0x10000011, 0, 0, 0, 0, 0)) == refuse                     # a user namespace
  assert verdict(kill, (77, 9, 0, 0, 0, 0)) == allow
  assert verdict(kill, (1, 9, 0, 0, 0, 0)) == (allow if processes else refuse)
  assert verdict(kill, (-1, 9, 0, 0, 0, 0)) == (allow if processes else refuse)
  assert verdict(72 if x86 else 25, (0, 10, 0, 0, 0, 0)) == refuse                 # fcntl F_SETSIG
  if x86:
    assert verdict(1 << 30) == 0x80000000                                          # the x32 calls
  assert sum(verdict(n) == allow for n in range(600)) < 150
