"""A seccomp filter: the system calls that a program may make, by an allow-list; all others fail with EPERM.

Kernel documentation: userspace-api/seccomp_filter.rst. The list is what CPython needs to compute, import, use files
that it may open, threads, sleep and a pair of connected sockets (asyncio). Not in it, among others: socket, connect,
execve, ptrace, process_vm_*, mount, unshare, setns, chroot, set*id, bpf, io_uring, keyctl, memfd, shared memory, chmod,
chown and utime (which Landlock does not see). Some calls are let through for some arguments only.
Tables for x86-64 and AArch64; ctypes is the only way to the kernel, so this file needs no library.
"""

from __future__ import annotations

import ctypes
import errno
import os

# what both machines have: name -> (x86-64, AArch64)
_BOTH = dict(
  # files and directories; what may be opened is decided elsewhere
  read=(0, 63), write=(1, 64), readv=(19, 65), writev=(20, 66), pread64=(17, 67), pwrite64=(18, 68), close=(3, 57),
  close_range=(436, 436), lseek=(8, 62), openat=(257, 56), newfstatat=(262, 79), fstat=(5, 80), statx=(332, 291),
  statfs=(137, 43), fstatfs=(138, 44), faccessat=(269, 48), faccessat2=(439, 439), getdents64=(217, 61),
  getcwd=(79, 17), chdir=(80, 49), fchdir=(81, 50), mkdirat=(258, 34), unlinkat=(263, 35), renameat=(264, 38),
  renameat2=(316, 276), linkat=(265, 37), symlinkat=(266, 36), readlinkat=(267, 78), ftruncate=(77, 46),
  fsync=(74, 82), fdatasync=(75, 83), umask=(95, 166), dup=(32, 23), dup3=(292, 24), pipe2=(293, 59),
  flock=(73, 32), sendfile=(40, 71), copy_file_range=(326, 285), fadvise64=(221, 223),
  # memory
  mmap=(9, 222), munmap=(11, 215), mprotect=(10, 226), mremap=(25, 216), madvise=(28, 233), brk=(12, 214),
  membarrier=(324, 283),
  # threads, time and the process itself
  futex=(202, 98), set_robust_list=(273, 99), get_robust_list=(274, 100), rseq=(334, 293), set_tid_address=(218, 96),
  exit=(60, 93), exit_group=(231, 94), gettid=(186, 178), getpid=(39, 172), getppid=(110, 173), sched_yield=(24, 124),
  sched_getaffinity=(204, 123), sched_getparam=(143, 121), sched_getscheduler=(145, 120),
  sched_get_priority_max=(146, 125), sched_get_priority_min=(147, 126), getcpu=(309, 168), nanosleep=(35, 101),
  clock_nanosleep=(230, 115), clock_gettime=(228, 113), clock_getres=(229, 114), gettimeofday=(96, 169),
  times=(100, 153), getrusage=(98, 165), sysinfo=(99, 179), uname=(63, 160), getrandom=(318, 278),
  getrlimit=(97, 163), setrlimit=(160, 164), restart_syscall=(219, 128), wait4=(61, 260), waitid=(247, 95),
  getuid=(102, 174), geteuid=(107, 175), getgid=(104, 176), getegid=(108, 177), getgroups=(115, 158),
  getresuid=(118, 148), getresgid=(120, 150), getpgid=(121, 155), getsid=(124, 156),
  rt_sigaction=(13, 134), rt_sigprocmask=(14, 135), rt_sigreturn=(15, 139), sigaltstack=(131, 132),
  rt_sigpending=(127, 136), rt_sigsuspend=(130, 133), rt_sigtimedwait=(128, 137), setitimer=(38, 103),
  getitimer=(36, 102),
  # waiting, and sockets that are connected to each other
  ppoll=(271, 73), pselect6=(270, 72), epoll_create1=(291, 20), epoll_ctl=(233, 21), epoll_pwait=(281, 22),
  epoll_pwait2=(441, 441), eventfd2=(290, 19), sendto=(44, 206), recvfrom=(45, 207), sendmsg=(46, 211),
  recvmsg=(47, 212), getsockname=(51, 204), getpeername=(52, 205), getsockopt=(55, 209),
  shutdown=(48, 210))
_X86_ONLY = dict(
  open=2, stat=4, lstat=6, access=21, readlink=89, creat=85, mkdir=83, rmdir=84, unlink=87, rename=82, link=86,
  symlink=88, dup2=33, pipe=22, poll=7, select=23, epoll_create=213, epoll_wait=232, eventfd=284, time=201,
  arch_prctl=158, alarm=37, pause=34, getpgrp=111, getdents=78)
# let through for some arguments only, see program()
_CONDITIONAL = dict(clone=(56, 220), ioctl=(16, 29), fcntl=(72, 25), kill=(62, 129), tkill=(200, 130),
                    tgkill=(234, 131), prlimit64=(302, 261), socketpair=(53, 199))
_CLONE3 = 435                                    # its flags are in memory, where a filter cannot look
# for programs that may start processes
_PROCESSES = dict(fork=(57, None), vfork=(58, None), setsid=(112, 157), setpgid=(109, 154))

MACHINES = dict(x86_64=(0, 0xC000003E), aarch64=(1, 0xC00000B7))   # column, AUDIT_ARCH
CLONE_THREAD, CLONE_NEW = 0x00010000, 0x7E020080                   # the latter: any namespace
IOCTLS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)          # TCGETS, window size, FIONREAD, FIONBIO, FIO(N)CLEX
# F_DUPFD, flags, locks, F_DUPFD_CLOEXEC, pipe size; not F_SETOWN and F_SETSIG, by which the kernel signals others
FCNTLS = (0, 1, 2, 3, 4, 5, 6, 7, 36, 37, 38, 1030, 1032)
AF_UNIX = 1
PR_GET_SECCOMP, PR_SET_SECCOMP = 21, 22

_LOAD, _JEQ, _JGE, _AND, _RET = 0x20, 0x15, 0x35, 0x54, 0x06       # BPF: ld abs word, jeq k, jge k, and k, ret k
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000


def program(machine: str, pid: int, processes: bool) -> list[tuple[int, int, int, int]]:
  """The filter as (code, jump if true, jump if false, k). pid: the one process that the program may signal."""
  column, arch = MACHINES[machine]
  allowed = {number[column] for number in _BOTH.values()} | (set(_X86_ONLY.values()) if column == 0 else set())
  special = {name: number[column] for name, number in _CONDITIONAL.items()}
  if processes:                                  # only in a PID namespace of its own, where there is nobody to harm
    allowed |= {number[column] for number in _PROCESSES.values() if number[column] is not None}
    allowed |= {special.pop(name) for name in ("kill", "tkill", "tgkill")}
  argument = lambda i: (_LOAD, 0, 0, 16 + 8 * i)  # low half: both machines are little-endian
  refuse = (_RET, 0, 0, _ERRNO | errno.EPERM)
  allow = (_RET, 0, 0, _ALLOW)
  one_of = lambda i, values: [argument(i)] + [x for v in values for x in ((_JEQ, 0, 1, v), allow)] + [refuse]
  flags = CLONE_NEW if processes else CLONE_NEW | CLONE_THREAD
  rules = dict(
    clone=[argument(0), (_AND, 0, 0, flags), (_JEQ, 0, 1, 0 if processes else CLONE_THREAD), allow, refuse],
    ioctl=one_of(1, IOCTLS), fcntl=one_of(1, FCNTLS), kill=one_of(0, (pid,)), tkill=one_of(0, (pid,)),
    tgkill=one_of(0, (pid,)), prlimit64=one_of(0, (0, pid)), socketpair=one_of(0, (AF_UNIX,)))
  out = [(_LOAD, 0, 0, 4), (_JEQ, 1, 0, arch), (_RET, 0, 0, _KILL), (_LOAD, 0, 0, 0)]
  if column == 0:
    out += [(_JGE, 0, 1, 0x40000000), (_RET, 0, 0, _KILL)]         # the x32 calls
  for name, number in special.items():
    out += [(_JEQ, 0, len(rules[name]), number), *rules[name]]
  out += [(_JEQ, 0, 1, _CLONE3), (_RET, 0, 0, _ERRNO | errno.ENOSYS)]   # libc then takes clone
  for number in sorted(allowed):
    out += [(_JEQ, 0, 1, number), allow]
  return out + [refuse]


class _Instruction(ctypes.Structure):
  _fields_ = (("code", ctypes.c_uint16), ("jt", ctypes.c_uint8), ("jf", ctypes.c_uint8), ("k", ctypes.c_uint32))


class _Program(ctypes.Structure):
  _fields_ = (("length", ctypes.c_uint16), ("filter", ctypes.POINTER(_Instruction)))


def install(libc, processes: bool) -> None:
  """For this thread and what it starts, for good. Needs no_new_privs. OSError where the kernel has no filters."""
  instructions = program(os.uname().machine, os.getpid(), processes)
  array = (_Instruction * len(instructions))(*(_Instruction(*i) for i in instructions))
  compiled = _Program(len(instructions), array)
  if libc.prctl(PR_SET_SECCOMP, 2, ctypes.byref(compiled), 0, 0):
    raise OSError(ctypes.get_errno(), "seccomp filter refused")
  if libc.prctl(PR_GET_SECCOMP, 0, 0, 0, 0) != -1:   # prctl is not on the list: only a filter in force refuses it
    raise OSError(errno.EINVAL, "seccomp filter not in force")
