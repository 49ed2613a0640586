"""The CPU backend's memory in processes of their own: kept when freed, in huge pages, and never a reason to fail."""

import subprocess
import sys
from pathlib import Path

import pytest

from r1jax import cpu

SIZE = 2**28
START = f"""
import ctypes, resource
from r1jax import cpu
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
def held():
  return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
def used_and_freed():
  block = libc.malloc({SIZE})
  libc.memset(block, 1, {SIZE})
  libc.free(block)
  return block
"""


def run(text: str) -> str:
  return subprocess.run([sys.executable, "-c", START + text], capture_output=True, text=True, check=True).stdout


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("keeps", [True, False])
def test_freed_memory_is_kept(keeps):
  before, after = map(int, run(f"""
if {keeps}:
  assert cpu.keep_memory() and cpu.keep_memory()
before = held()
used_and_freed()
print(before, held())""").split())
  assert (after - before > SIZE * 0.9) == keeps


@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage").exists() or cpu.counts_addresses(),
                    reason="a kernel without huge pages, or addresses are counted")
@pytest.mark.parametrize("keeps", [True, False])
def test_the_heap_asks_for_huge_pages_and_takes_none_of_them_yet(keeps):
  flags, taken = run(f"""
before = held()
if {keeps}:
  assert cpu.keep_memory()
taken = held() - before
block = used_and_freed() + {SIZE} // 2
for line in open("/proc/self/smaps"):
  first = line.split()[0]
  if "-" in first and not first.endswith(":"):
    start, end = (int(x, 16) for x in first.split("-"))
  if first == "VmFlags:" and start <= block < end:
    print("hg" in line.split(), taken)
    break
else:
  print(False, taken)""").split()
  assert (flags == "True") == keeps and int(taken) < 2**24


@pytest.mark.skipif(sys.platform != "linux", reason="a limit of addresses")
def test_where_addresses_are_limited_none_are_taken():
  assert run("""
import mmap
resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31))
assert cpu.keep_memory() and cpu.counts_addresses()
print(len(mmap.mmap(-1, 2**30)) + (used_and_freed() is None))""") == f"{2**30}\n"
