"""The kernel's own means, by ctypes, without root: what a process does to itself before it runs a stranger's code.

enter(): new user, PID, mount, network, IPC, UTS and cgroup namespaces (user_namespaces(7)); as the root directory a
small tmpfs where the Python library and shared libraries are bound read-only; no /proc; the caller's child is process
1 in there, and whatever it started dies with it. For real root the program is nobody, so that process limits hold.
lock(): resource limits, no_new_privs, no capabilities, Landlock (landlock.py), a seccomp filter (seccomp.py).

Loaded by runner.py in a bare interpreter with one thread: the standard library only. Each function raises OSError that
says what was refused; none goes on without.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys

import landlock
import seccomp

libc = ctypes.CDLL(None, use_errno=True)

CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC = 0x20000, 0x2000000, 0x4000000, 0x8000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND, MS_REC = 1, 2, 4, 8, 32, 4096, 16384
MS_PRIVATE = 1 << 18
MNT_DETACH, AT_FDCWD, AT_RECURSIVE, MOUNT_SETATTR = 2, -100, 0x8000, 442
PR_SET_PDEATHSIG, PR_CAP_AMBIENT, PR_SET_NO_NEW_PRIVS = 1, 47, 38
PROGRAM_ID, NOBODY = 1000, 65534             # the program's user inside, and outside where the caller is root
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")
LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache", "/usr/share/zoneinfo", "/nix/store")
PACKAGES = ("site-packages", "dist-packages")
MOUNT_POINTS = ("/tmp", "/mnt", "/srv", "/opt", "/run", "/home", "/var/tmp")   # only we see what is mounted there


def _check(result: int, what: str) -> int:
  if result < 0:
    number = ctypes.get_errno()
    raise OSError(number, f"{what}: {os.strerror(number)}")
  return result


def die_with_parent(parent: int | None = None) -> None:
  _check(libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl")
  if parent is not None and os.getppid() != parent:
    os._exit(1)


# --- namespaces -------------------------------------------------------------------------------------------------------

def _write(path: str, text: str) -> None:
  fd = os.open(path, os.O_WRONLY)
  try:
    os.write(fd, text.encode())
  finally:
    os.close(fd)


def _new_namespaces() -> None:
  """In a user namespace of our own. Root maps nobody too, which takes a helper that stays outside."""
  uid, gid, me = os.geteuid(), os.getegid(), os.getpid()
  flags = (CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP)
  if uid:
    _check(libc.unshare(flags), "unshare")
    _write("/proc/self/setgroups", "deny")
    _write("/proc/self/gid_map", f"{PROGRAM_ID} {gid} 1")
    _write("/proc/self/uid_map", f"{PROGRAM_ID} {uid} 1")
    return
  ready_r, ready_w = os.pipe()
  helper = os.fork()
  if helper == 0:
    code = 1
    try:
      os.close(ready_w)
      if os.read(ready_r, 1):
        for kind in ("gid", "uid"):
          _write(f"/proc/{me}/{kind}_map", f"0 0 1\n{PROGRAM_ID} {NOBODY} 1\n")
        code = 0
    finally:
      os._exit(code)
  os.close(ready_r)
  try:
    _check(libc.unshare(flags), "unshare")
    os.write(ready_w, b"x")
  finally:
    os.close(ready_w)
    status = os.waitpid(helper, 0)[1]
  if status:
    raise OSError(1, "uid_map: refused")
  os.setgroups([])


def _mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
  text = lambda s: None if s is None else os.fsencode(s)
  _check(libc.mount(text(source), text(target), text(kind), ctypes.c_ulong(flags), text(data)), f"mount {target}")


class _MountAttr(ctypes.Structure):
  _fields_ = tuple((name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "userns"))


def _read_only(path: str) -> None:
  """This mount and those below it: read-only, no setuid, no devices."""
  attr = _MountAttr(MS_RDONLY | MS_NOSUID | MS_NODEV, 0, 0, 0)      # MOUNT_ATTR_ has the same three bits
  _check(libc.syscall(MOUNT_SETATTR, AT_FDCWD, os.fsencode(path), AT_RECURSIVE, ctypes.byref(attr),
                      ctypes.sizeof(attr)), f"read-only {path}")


def _bind(path: str, root: str) -> None:
  """The same path under `root`, read-only; a symbolic link stays one, and what it leads to is there too."""
  target = root + path
  if os.path.lexists(target):
    return                                   # inside what is bound already
  os.makedirs(os.path.dirname(target), exist_ok=True)
  if os.path.islink(path):
    os.symlink(os.readlink(path), target)
    _bind(os.path.realpath(path), root)
    return
  if os.path.isdir(path):
    os.mkdir(target)
  else:
    os.close(os.open(target, os.O_CREAT | os.O_WRONLY))
  _mount(path, target, None, MS_BIND | MS_REC)
  if path not in DEVICES:
    _read_only(target)


def _new_root(readable: list[str]) -> str:
  """Leaves nothing else of the file system in sight. The path of the directory that is for fresh_directory()."""
  _mount("none", "/", None, MS_REC | MS_PRIVATE)
  sources = sorted(p for p in (*readable, *DEVICES) if os.path.lexists(p))   # a directory before what is inside
  real = [os.path.realpath(p) + "/" for p in sources]
  free = [p for p in MOUNT_POINTS if os.path.isdir(p) and not any(r.startswith(p + "/") for r in real)]
  if not free:
    raise OSError(2, f"no directory among {', '.join(MOUNT_POINTS)} to build a root directory on")
  root = free[0]
  _mount("none", root, "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,nr_inodes=4096,mode=755")
  for path in sources:
    _bind(path, root)
  scratch = "/tmp" if not any(r.startswith("/tmp/") for r in real) else "/scratch"
  os.mkdir(root + scratch)
  os.chdir(root)
  _check(libc.pivot_root(b".", b"."), "pivot_root")
  _check(libc.umount2(b".", MNT_DETACH), "umount of the old root")
  os.chdir("/")
  if os.path.lexists("/proc"):
    raise OSError(1, "pivot_root: the old root directory is still in sight")
  for path in readable:
    for name in PACKAGES:                    # installed packages may hold what a program should not read
      if os.path.isdir(f"{path}/{name}"):
        _mount("none", f"{path}/{name}", "tmpfs", MS_RDONLY | MS_NOSUID | MS_NODEV, "size=4k,mode=755")
  _mount("none", "/", None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV)
  return scratch


def enter(readable: list[str]) -> str:
  """Returns in process 1 of new namespaces with a root directory of their own; the calling process waits for it.

  The path of the directory that the program may write in, /tmp unless Python itself lives there.
  """
  _new_namespaces()
  child = os.fork()
  if child:
    status = os.waitpid(child, 0)[1]
    os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
  die_with_parent()
  return _new_root(readable)


def fresh_directory(path: str, size: int) -> None:
  """An empty one of at most `size` bytes, in place of the last one."""
  libc.umount2(os.fsencode(path), MNT_DETACH)
  _mount("none", path, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, f"size={size},nr_inodes=4096,mode=1777")


# --- all of it, in the process that is to run the program ----------------------------------------------------------

def drop_capabilities() -> None:
  libc.prctl(PR_CAP_AMBIENT, 4, 0, 0, 0)     # clear all; old kernels have no ambient set
  header = (ctypes.c_uint32 * 2)(0x20080522, 0)
  _check(libc.capset(header, (ctypes.c_uint32 * 6)()), "capset")


def no_new_privs() -> None:
  _check(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")


def resource_limits(limits: dict, tasks: int | None) -> None:
  hard = dict(CPU=limits["cpu"], AS=limits["memory"], DATA=limits["memory"], FSIZE=limits["file_size"],
              NOFILE=limits["open_files"], CORE=0, MEMLOCK=0, MSGQUEUE=0)
  if tasks is not None:
    hard["NPROC"] = tasks
  for name, value in hard.items():
    kind = getattr(resource, f"RLIMIT_{name}")
    most = resource.getrlimit(kind)[1]
    value = value if most == resource.RLIM_INFINITY else min(value, most)
    resource.setrlimit(kind, (value, value))


def lock(means: dict, limits: dict, scratch: str) -> None:
  """What is not in `means` was not asked for; what is, holds when this returns. scratch: what may be written in."""
  tasks = None
  if means["namespaces"]:
    if os.getuid() == 0:                     # root outside: nobody from here on
      os.setresgid(PROGRAM_ID, PROGRAM_ID, PROGRAM_ID)
      os.setresuid(PROGRAM_ID, PROGRAM_ID, PROGRAM_ID)
    tasks = limits["processes"] + limits["threads"] + 2            # the two that wait for it may have the same user
  resource_limits(limits, tasks)
  if means["no_new_privs"]:
    no_new_privs()
    drop_capabilities()
  if means["landlock"] and means["namespaces"]:
    landlock.restrict(["/"], [scratch, "/dev/null"])
  if means["seccomp"]:
    seccomp.install(libc, limits["processes"] > 1)


def library_paths(entries: bool) -> list[str]:
  """What a Python program must be able to read: the standard library and shared libraries, not installed packages.

  entries: the contents of the library's directory in place of itself, for rules that cannot take away again.
  """
  own = sorted({os.path.dirname(os.__file__), *(p for p in sys.path if os.path.isabs(p) and os.path.exists(p))})
  if entries:
    own = [f"{p}/{name}" for p in own for name in (sorted(os.listdir(p)) if os.path.isdir(p) else [""])
           if name not in PACKAGES]
  lib = sys.base_prefix + "/lib"             # conda keeps the interpreter's shared libraries here
  shared = [f"{lib}/{name}" for name in sorted(os.listdir(lib)) if ".so" in name] if os.path.isdir(lib) else []
  return own + [p for p in (*LIBRARIES, *(shared if lib not in LIBRARIES else ())) if os.path.exists(p)]
