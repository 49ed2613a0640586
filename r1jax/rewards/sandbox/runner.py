"""The process between the judge and an untrusted program: `python -P -s -S runner.py`, a job as JSON on stdin.

It enters the jail, and for each case forks a child that locks itself up and only then compiles the program. It keeps
the case's time and output limits, kills all that is left, and writes what came out of every case to stdout. It never
learns an expected value. A child's reply counts only if the child then ends by itself, with status 0, in time.
"""

import fcntl
import json
import os
import select
import signal
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import jail
import landlock
import values

sys.path.pop(0)

REPLY = 3                                        # the child's file descriptor for what it evaluated


def main() -> None:
  jail.die_with_parent()
  job = json.loads(_read_all(0))
  if os.getppid() != job["parent"]:
    return
  means, limits = job["means"], job["limits"]
  scratch = None
  try:
    if means["namespaces"]:
      scratch = jail.enter(jail.library_paths(entries=False))
    elif means["landlock"]:
      readable = jail.library_paths(entries=True)
      jail.no_new_privs()
      landlock.restrict([*readable, *jail.DEVICES[1:]], ["/dev/null"])
    outcomes = []
    for case in job["cases"]:
      if scratch:
        jail.fresh_directory(scratch, limits["disk"])
      outcomes.append(supervise(job, case, scratch))
      if job["stop"] and not passable(case, outcomes[-1]):
        break
    answer = dict(outcomes=outcomes)
  except OSError as error:
    answer = dict(refused=str(error))
  sys.stdout.write(json.dumps(answer))
  sys.stdout.flush()


def supervise(job: dict, case: dict, scratch: str | None) -> dict:
  """One case: starts the child, gathers what it writes, within the limits, and leaves nothing of it alive."""
  limits = job["limits"]
  start = time.monotonic()
  stdin = os.memfd_create("stdin")
  _write_all(stdin, case["stdin"].encode())
  os.lseek(stdin, 0, os.SEEK_SET)
  (reply_r, reply_w), (out_r, out_w) = os.pipe(), os.pipe()
  child = os.fork()
  if child == 0:
    start_child(job, case, scratch, stdin, out_w, reply_w)
  for fd in (stdin, reply_w, out_w):
    os.close(fd)
  waiter = os.pidfd_open(child)                  # readable once the child is dead
  written = {reply_r: bytearray(), out_r: bytearray()}
  poll, is_open = select.poll(), set(written)
  for fd in (waiter, *is_open):
    poll.register(fd, select.POLLIN)
  status, end = "ok", None
  while status == "ok" and (end is None or is_open):
    left = start + limits["wall"] - time.monotonic()
    if end is None and left <= 0:
      status = "timeout"
      break
    events = [fd for fd, _ in poll.poll(left * 1000 if end is None else 1000)]
    if end is not None and not events:
      break                                      # all are dead: whatever holds the pipe, it is none of ours
    if waiter in events:
      end = kill_all(child, job["means"])
      poll.unregister(waiter)
    for fd in is_open & set(events):
      data = os.read(fd, 65536)
      written[fd] += data
      if not data:
        poll.unregister(fd)
        is_open.remove(fd)
      elif len(written[fd]) > limits["output"]:
        status = "overflow"
  code, cpu = end or kill_all(child, job["means"])
  for fd in (waiter, *written):
    os.close(fd)
  if not written[reply_r].startswith(b"L") and status == "ok":
    raise OSError(1, "the child could not lock itself up: " + written[reply_r].decode(errors="replace")[:300])
  # the limit counts ticks, of which a busy machine gives a program too many; the usage told here is exact
  if status == "ok" and code == -signal.SIGKILL and cpu > 0.5 * limits["cpu"]:
    status = "timeout"
  return dict(status=status, code=code, cpu=cpu, wall=time.monotonic() - start,
              reply=written[reply_r][1:].decode("latin-1"), stdout=written[out_r].decode("latin-1"))


def passable(case: dict, outcome: dict) -> bool:
  """Whether it can still be a success: a look at the program's own words, which only decides what is skipped."""
  answered = outcome["reply"].startswith('{"values"') or not case["expressions"]
  return outcome["status"] == "ok" and outcome["code"] == 0 and answered


def kill_all(child: int, means: dict) -> tuple[int, float]:
  """Kills the child and, where we are process 1, all others. The child's exit code (-n: signal n), its CPU time."""
  result = None
  while True:
    try:
      os.kill(-1 if means["namespaces"] else child, signal.SIGKILL)
    except ProcessLookupError:
      pass
    try:
      pid, status, usage = os.wait4(-1, 0)
    except ChildProcessError:
      return result
    if pid == child:
      result = os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime


def _read_all(fd: int) -> bytes:
  """Not through sys.stdin, which is the program's later."""
  out = bytearray()
  while data := os.read(fd, 1 << 20):
    out += data
  return bytes(out)


def _write_all(fd: int, data: bytes) -> None:
  view = memoryview(data)
  while view:
    view = view[os.write(fd, view):]


def start_child(job: dict, case: dict, scratch: str | None, stdin: int, stdout: int, reply: int) -> None:
  """Never returns. Leaves standard input, output, error and the reply open, nothing else, and locks up."""
  code = 1
  try:
    jail.die_with_parent()
    null = os.open("/dev/null", os.O_WRONLY)
    sources = (stdin, null if case["expressions"] else stdout, null, reply)
    for target, fd in enumerate([fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in sources]):
      os.dup2(fd, target)
    os.closerange(REPLY + 1, 65536)
    if scratch:
      os.chdir(scratch)
      os.environ["TMPDIR"] = os.environ["HOME"] = scratch
    try:
      jail.lock(job["means"], job["limits"], scratch)
    except OSError as error:
      os.write(REPLY, str(error).encode())
      return
    os.write(REPLY, b"L")                        # locked up: before this byte, nothing of the program has run
    code = run_child(job["program"], case)
  finally:
    os._exit(code)


# --- in the child, behind the locks --------------------------------------------------------------------------------

def run_child(program: str, case: dict) -> int:
  """The program, then what is to be evaluated. Whatever happens here can only spoil the program's own answer."""
  import builtins
  import types
  calls = bool(case["expressions"])
  module = types.ModuleType("solution" if calls else "__main__")
  sys.modules[module.__name__] = module
  sys.argv = ["program"]
  builtins.exit = builtins.quit = sys.exit       # what the site module gives
  try:
    code = compile(program, "program.py", "exec", dont_inherit=True)
  except (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError) as error:
    return _reply(dict(syntax=_told(error)))
  space = module.__dict__
  try:
    exec(code, space)
    if calls:
      exec(compile(case["setup"], "setup", "exec", dont_inherit=True), space)
      space |= {name: values.decode(value) for name, value in case["values"].items()}
      return _reply(dict(values=[values.encode(eval(e, space)) for e in case["expressions"]]))
    _finish()
  except SystemExit as error:
    if calls:
      return _reply(dict(error=_told(error)))
    _finish()
    return 0 if error.code is None else error.code & 0xFF if isinstance(error.code, int) else 1
  except BaseException as error:
    _reply(dict(error=_told(error)))
    return 0 if calls else 1
  return 0


def _finish() -> None:
  """What an interpreter does at its end: joins threads, calls exit handlers, flushes."""
  if "threading" in sys.modules:
    sys.modules["threading"]._shutdown()
  import atexit
  atexit._run_exitfuncs()
  sys.stdout.flush()


def _told(error: BaseException) -> str:
  try:
    return f"{type(error).__name__}: {error}"[:300]
  except BaseException:
    return "an exception that cannot be shown"


def _reply(message: dict) -> int:
  _write_all(REPLY, json.dumps(message).encode())
  return 0


if __name__ == "__main__":
  main()
