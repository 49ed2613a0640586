"""Programs that would be paid without solving anything, or do harm. test_sandbox.py runs each.

The problem: f(2) must be a number. It stands in the file $SECRET, in the tests, and in the environment of $PID, a
process of the same user. $OUT is a directory that anyone may write in, $PORT a TCP port and $UNIX a socket that
something listens on, $PARENT the judge. Those in PROCESSES may start processes.

A sandbox that is broken must show here without harm to the machine: what would reach beyond the test's own things is
only opened, or sent signal 0, and says by a SystemError that it got so far.
"""

PRELUDE = r"""
import os, sys, re, signal, time, ctypes, itertools
libc = ctypes.CDLL(None, use_errno=True)
def attempt(g, *a, **k):
  try: return g(*a, **k)
  except BaseException: return None
attempt(os.chdir, '$OUT')
def write(path, text="x"):
  fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666); os.write(fd, text.encode()); os.close(fd)
def read(path): return open(path, errors="replace").read()
class Same:
  __eq__ = lambda s, o: True
  __ne__ = lambda s, o: False
  __hash__ = lambda s: 0
def number(text): return int((re.findall(r"\b9[0-9]{9}7\b", str(text)) or [0])[0])
"""

# --- forging: nothing here computes the number -----------------------------------------------------------------------

FORGED = {
  "exit": "sys.exit(0)",
  "raise SystemExit": "raise SystemExit",
  "os._exit": "os._exit(0)",
  "exit in the call": "def f(n): sys.exit(0)",
  "os._exit in the call": "def f(n): os._exit(0)",
  "exit handler": "import atexit\natexit.register(lambda: os._exit(0))\ndef f(n): return 1",
  "success printed": "def f(n):\n  print('OK passed', [True], {'values': [True]}); sys.stdout.flush(); return None",
  "success written to every descriptor":
    "for fd in range(64): attempt(os.write, fd, b'{\"values\": [true], \"status\": \"ok\"}')\nos._exit(0)",
  "success written to every descriptor, then returned":
    "def f(n):\n  for fd in range(64): attempt(os.write, fd, b'L{\"outcomes\": [{\"status\": \"ok\"}]}\\n')",
  "a reply of garbage": "for fd in range(3, 64): attempt(os.write, fd, b'\\xff[[[[' * 999)\nos._exit(0)",
  "a deep reply": "for fd in range(3, 64): attempt(os.write, fd, b'{\"values\":' + b'[' * 50000)\nos._exit(0)",
  "a reply of unknown kinds":
    "for fd in range(3, 64): attempt(os.write, fd, b'{\"values\": [[\"__import__\", \"os\"]]}')\nos._exit(0)",
  "a reply, then no end":
    "def f(n):\n  for fd in range(3, 64): attempt(os.write, fd, b'{\"values\": [1]}')\n  time.sleep(99)",
  "builtins patched":
    "import builtins\nfor n in ('print', 'len', 'sorted', 'isinstance', 'type', 'bool', 'eval', 'exec', 'compile',"
    " 'int', 'list', 'tuple'):\n  setattr(builtins, n, lambda *a, **k: True)\ndef f(n): return 1",
  "operator patched": "import operator\noperator.eq = lambda *a: True\ndef f(n): return 1",
  "json patched": "import json\njson.dumps = lambda *a, **k: '{\"values\": [true]}'\n"
                  "json.loads = lambda *a, **k: True\ndef f(n): return 1",
  "the serialiser patched": "sys.modules['values'].encode = lambda *a: ['set', [1, 2]]\ndef f(n): return 1",
  "the runner patched":
    "for m in list(sys.modules.values()):\n"
    "  for n in ('_reply', 'supervise', 'kill_all', 'encode'):\n"
    "    if hasattr(m, n): setattr(m, n, lambda *a, **k: 0)\ndef f(n): return 1",
  "equal to all": "def f(n): return Same()",
  "an int equal to all": "class A(Same, int): pass\ndef f(n): return A(1)",
  "a str equal to all": "class A(Same, str): pass\ndef f(n): return A('x')",
  "a float equal to all": "class A(Same, float): pass\ndef f(n): return A('nan')",
  "a list equal to all": "class A(Same, list):\n  __iter__ = lambda s: iter([1])\ndef f(n): return A()",
  "a dict equal to all": "class A(Same, dict):\n  items = lambda s: os._exit(0)\ndef f(n): return A()",
  "a class that says it is int": "class A(Same):\n  __class__ = int\ndef f(n): return A()",
  "a class that says it is Fraction":
    "class Fraction(Same):\n  numerator = denominator = 0\n  __module__ = 'fractions'\ndef f(n): return Fraction()",
  "a metaclass": "class M(type):\n  __eq__ = lambda s, o: True\n  __hash__ = lambda s: 1\n"
                 "  __instancecheck__ = lambda s, o: True\nclass A(metaclass=M): pass\ndef f(n): return A",
  "__reduce__": "class A:\n  __reduce__ = lambda s: (os._exit, (0,))\ndef f(n): return A()",
  "not a number": "def f(n): return float('nan')",
  "signalling nan": "from decimal import Decimal\ndef f(n): return Decimal('sNaN')",
  "hostile hash": "class A:\n  __hash__ = lambda s: os._exit(0)\ndef f(n): return {A(): 1}",
  "hostile text of an exception": "class A(Exception):\n  def __str__(s): os._exit(0)\ndef f(n): raise A",
  "endless iterator": "def f(n): return itertools.count()",
  "a list in itself": "def f(n):\n  x = []; x.append(x); return x",
  "deep nesting": "def f(n):\n  x = []\n  for _ in range(100000): x = [x]\n  return x",
  "colliding set": "def f(n): return [i * (2**61 - 1) for i in range(20000)]",
  "huge integer": "def f(n): return 10 ** 500000",
  "huge integer as text": "def f(n): return str(10 ** 500000)",
  "not Python": "def f(n) return 1",
  "null byte": "def f(n): return '\0'",
  "no function": "g = 1",
  "tests by frames": "def f(n):\n  x, out = sys._getframe(), ''\n  while x: out += repr(x.f_locals) + repr(x.f_globals)"
                     "; x = x.f_back\n  return number(out)",
  "tests by the garbage collector": "import gc\ndef f(n): return number([repr(o)[:9999] for o in gc.get_objects()"
                                    " if type(o) in (dict, list, tuple)])",
  "tests by modules": "import __main__\ndef f(n): return number([repr(vars(m)) for m in list(sys.modules.values())])",
  "arguments and environment": "def f(n): return number([sys.argv, sys.orig_argv, dict(os.environ)])",
  "/proc of itself and parents":
    "def f(n): return number([attempt(read, f'/proc/{p}/{x}') for p in ('self', 1, os.getppid(), $PARENT, $PID)"
    " for x in ('environ', 'cmdline', 'mem', 'maps')])",
  "another's memory": r"""
def f(n):
  out = []
  for line in (attempt(read, '/proc/$PID/maps') or '').split('\n'):
    if 'stack' in line or 'heap' in line:
      a, b = (int(x, 16) for x in line.split()[0].split('-')); m = open('/proc/$PID/mem', 'rb', 0); m.seek(a)
      out.append(attempt(m.read, b - a))
  return number(out)""",
  "the secret file": "def f(n): return number(attempt(read, '$SECRET'))",
  "the secret file by a link": "def f(n):\n  attempt(os.symlink, '$SECRET', 'l'); attempt(os.link, '$SECRET', 'm')\n"
                               "  return number([attempt(read, 'l'), attempt(read, 'm')])",
  "the secret file by a walk": "def f(n): return number([read(d + '/' + x) for d, _, y in os.walk('/') for x in y"
                               " if x == 'secret.txt'])",
  "the secret file by /proc": "def f(n): return number([attempt(read, f'/proc/{p}/{x}$SECRET') for p in (1, 'self',"
                              " $PARENT) for x in ('root', 'cwd')])",
  "the secret file by its relative path": "def f(n): return number(attempt(read, '../' * 20 + '$SECRET'))",
  "open descriptors": "def f(n): return number([attempt(os.pread, fd, 99999, 0) for fd in range(3, 999)]"
                      " + [attempt(os.read, fd, 99999) for fd in (0,)])",
  "the tests by import": "sys.path += ['$TESTS', '$ROOT']\nimport attacks, r1jax\ndef f(n): return 1",
}

# --- harm ------------------------------------------------------------------------------------------------------------

OPEN_SOCKETS = """import socket
for family, kind, to in ((2, 1, ('127.0.0.1', $PORT)), (1, 1, '$UNIX'), (1, 1, '\\0$UNIX'),
                         (2, 2, ('127.0.0.1', $PORT)), (10, 1, ('::1', $PORT)), (2, 1, ('192.0.2.1', 80))):
  try:
    s = socket.socket(family, kind); s.settimeout(.2); s.connect(to); s.send(b'x')
  except OSError: pass
"""
CALLS = dict(
  ptrace=(16, "$PID", 0, 0), mount=("b'none'", "b'$OUT'", "b'tmpfs'", 0, 0), unshare=(0x10000000,), chroot=("b'/tmp'",),
  setns=(0, 0), setuid=(0,), setgid=(0,), personality=(0,),
  chmod=("b'$OUT'", 0), chown=("b'$OUT'", 1, 1), unlink=("b'$SECRET'",), rmdir=("b'$OUT'",), truncate=("b'$SECRET'", 0),
  rename=("b'$SECRET'", "b'$OUT/taken'"), link=("b'$SECRET'", "b'$OUT/taken'"), mkdir=("b'$OUT/made'", 0o777),
  mknod=("b'$OUT/made'", 0o10666, 0), creat=("b'$OUT/made'", 0o666), symlink=("b'/'", "b'$OUT/made'"),
  kill=("$PID", 9), killpg=("$PID", 9), setpriority=(0, "$PID", 19), memfd_create=("b'x'", 0), inotify_init=())
HARM = {
  "write outside":
    "attempt(write, '$OUT/made'); attempt(write, '../' * 9 + '$OUT/made')\n"
    "for p in ('/made', '/etc/made', '/dev/shm/made', '/var/tmp/made', '/usr/lib/made', '/home/made', '/root/made'):\n"
    "  fd = attempt(os.open, p, os.O_CREAT | os.O_EXCL | os.O_WRONLY)\n"
    "  if fd is not None: os.unlink(p); raise SystemError(p)",
  "write through a link": "attempt(os.symlink, '$OUT', 'l'); attempt(write, 'l/made')",
  "append to the secret": "attempt(lambda: open('$SECRET', 'a').write('x')); attempt(os.truncate, '$SECRET', 0)",
  "the runner and the library rewritten":
    "for p in (sys.modules['jail'].__file__, os.__file__, sys.executable):\n"
    "  if attempt(open, p, 'ab') or attempt(open, p, 'r+b'): raise SystemError(p)",
  "site-packages":
    "if [p for p in sys.path if attempt(os.listdir, p + '/site-packages')]: raise SystemError('seen')",
  "keys and shadow": "if [p for p in ('/etc/shadow', '/etc/passwd', '/root/.ssh', '/root/.bashrc', '/home') if"
                     " attempt(read, p) or attempt(os.listdir, p)]: raise SystemError('seen')",
  "sockets": OPEN_SOCKETS,
  "a server": "import socket\ns = socket.socket(); s.bind(('0.0.0.0', 0)); s.listen(); raise SystemError('seen')",
  "name look-up": "import socket\nsocket.setdefaulttimeout(1)\nif attempt(socket.getaddrinfo, 'localhost', 80,"
                  " type=2) and attempt(socket.socket): raise SystemError('seen')",
  "raw system calls": "for call in ('''" + "\n".join(
    f"libc.{name}({', '.join(map(str, args))})" for name, args in CALLS.items()) + "'''.split('\\n')):\n"
    "  if attempt(eval, call) == 0: raise SystemError(call)",
  "system calls without a name":
    "for n in (101, 165, 272, 161, 308, 310, 311, 317, 321, 425, 426, 438, 434, 424, 298, 250,"
    " 248, 246, 323, 29, 240, 304, 175, 169, 435, 101 | 1 << 30):\n  if libc.syscall(n, 0, 0, 0, 0, 0, 0) >= 0:"
    " raise SystemError(n)",
  "memory of another": "b = (ctypes.c_char * 64)()\nv = (ctypes.c_uint64 * 2)(ctypes.addressof(b), 64)\n"
                       "if libc.syscall(310, $PARENT, v, 1, v, 1, 0) >= 0: raise SystemError('seen')",
  "kill all":
    "for p in (0, os.getppid(), $PID, -$PID):\n  for s in (15, 9, 19): attempt(os.kill, p, s)\n"
    "for p in (-1, 1, $PARENT, -$PARENT):\n  try: os.kill(p, 0)\n  except OSError: continue\n  raise SystemError(p)",
  "kill by a file's owner": "import fcntl\nr, w = os.pipe()\nfor p in ($PID, os.getppid()):\n"
    "  attempt(fcntl.fcntl, r, 8, p); attempt(fcntl.fcntl, r, 10, 9); attempt(fcntl.fcntl, r, 4, 0o20000)\n"
    "  attempt(os.write, w, b'x')",
  "limits of another": "import resource\nattempt(resource.prlimit, $PID, resource.RLIMIT_CPU, (0, 0))\n"
                       "for k in range(16): attempt(resource.setrlimit, k, (-1, -1))",
  "suicide": "os.kill(os.getpid(), 9)",
  "stopping": "os.kill(os.getpid(), signal.SIGSTOP); time.sleep(99)",
  "segmentation fault": "ctypes.string_at(0)",
  "stack overflow": "sys.setrecursionlimit(10**9)\ng = lambda n: g(n + 1)\ng(0)",
  "abort": "os.abort()",
  "exec":
    "for g in (lambda: os.execv('/bin/sh', ['sh', '-c', 'echo x > $OUT/made']), lambda: os.system('touch $OUT/made'),"
    " lambda: os.posix_spawn('/bin/touch', ['touch', '$OUT/made'], {})): attempt(g)",
  "subprocess": "import subprocess\nfor a in (sys.executable, '/bin/sh', '/usr/bin/touch'):"
                " attempt(subprocess.run, [a, '$OUT/made'])",
  "fork bomb": "for _ in range(9): os.fork()",
  "fork bomb that catches": "for _ in range(9): attempt(os.fork)\ntime.sleep(99)",
  "thread bomb":
    "import threading\nthreading.stack_size(65536)\n"
    "for _ in range(5000): attempt(threading.Thread(target=time.sleep, args=(99,)).start)",
  "memory at once": "x = bytearray(10**11)",
  "memory by and by": "x = []\nfor _ in range(200): x.append(bytearray(10**7))",
  "shared memory": "import mmap\nx = [mmap.mmap(-1, 10**8) for _ in range(99)]",
  "zip bomb": "import zlib\nd = zlib.compress(bytes(10**8), 9)\nx = [zlib.decompress(d) for _ in range(20)]",
  "disk at once": "f = open('big', 'wb')\nfor _ in range(999): f.write(bytes(10**6))",
  "disk by many files": "for i in range(99): open(str(i), 'wb').write(bytes(10**6))",
  "many empty files": "for i in range(9999): open(str(i), 'wb').close()",
  "deep directories": "for _ in range(9999): os.mkdir('d'); os.chdir('d')",
  "open files": "x = [open('/dev/null') for _ in range(10**5)]",
  "endless output": "while True: print('x' * 99999)",
  "endless output to every descriptor": "while True:\n  for fd in range(1, 64): attempt(os.write, fd, b'x' * 65536)",
  "endless loop": "while True: pass",
  "endless loop deaf to signals": "for s in range(1, 65): attempt(signal.signal, s, signal.SIG_IGN)\n"
    "libc.signal(24, 1); libc.signal(15, 1)\nwhile True: attempt(lambda: None)",
  "CPU time by signals": "for s in range(1, 32): attempt(signal.signal, s, lambda *a: None)\nwhile True: pass",
  "sleep": "time.sleep(99)",
  "endless in C": "sum(itertools.count())",
  "endless power": "9 ** 9 ** 9",
  "backtracking": "re.match('(a+)+$', 'a' * 60 + 'b')",
  "all closed": "os.closerange(0, 99); time.sleep(99)",
  "all closed, then the end": "os.closerange(0, 99)",
  "endless exit handler": "import atexit\natexit.register(time.sleep, 99)\nsys.exit(0)",
  "endless thread": "import threading\nthreading.Thread(target=time.sleep, args=(99,)).start()",
  "endless finaliser": "class A:\n  def __del__(s):\n    while True: pass\na = A()\ndel a",
  "a compiler's nightmare": "x = " + "-" * 90000 + "1",
}

PROCESSES = {
  "daemon":
    "if os.fork() == 0:\n  os.setsid()\n  if os.fork() == 0: os.closerange(0, 99); time.sleep(60)\n  os._exit(0)",
  "daemon that holds the pipes":
    "if os.fork() == 0:\n  os.setsid()\n  if os.fork() == 0: time.sleep(60)\n  os._exit(0)",
  "daemon that speaks": "if os.fork() == 0:\n  os.setsid()\n  while True: attempt(os.write, 3, b'{}')",
  "fork bomb": "for _ in range(9): attempt(os.fork)\ntime.sleep(99)",
  "fork bomb that dies": "for _ in range(5000):\n  if attempt(os.fork): os._exit(0)",
  "zombies": "for _ in range(5000):\n  if attempt(os.fork) == 0: os._exit(0)",
  "children that kill":
    "if os.getppid() != 1: raise SystemError('no PID namespace')\n"
    "for p in (-1, 1, 0):\n  if os.fork() == 0: attempt(os.kill, p, 9); os._exit(0)",
  "memory in children": "for _ in range(3):\n  if os.fork() == 0: x = bytearray(10**11)",
  "namespaces of its own": "if libc.unshare(0x10000000) == 0: raise SystemError('seen')\n"
                           "if libc.syscall(56, 0x10000011, 0, 0, 0, 0) > 0: raise SystemError('seen')",
}

# scripts, paid for printing the number; they are given nothing
SCRIPTS = {
  "exit": "sys.exit(0)", "nothing": "", "echo": "print(sys.stdin.read())",
  "every number": "for i in range(10**9): print(i)",
  "success": "print('OK'); print('passed'); os._exit(0)",
  "descriptors": "print(number([attempt(os.pread, fd, 9999, 0) for fd in range(99)]))",
  "the secret file": "print(number(attempt(read, '$SECRET')))",
  "the environment": "print(number([os.environ, attempt(read, '/proc/$PARENT/environ')]))",
  "input closed": "os.close(0); print(attempt(input))",
  "output closed": "os.close(1); print(1)",
  "error": "print(1); raise ValueError",
  "endless": "while True: pass",
}
