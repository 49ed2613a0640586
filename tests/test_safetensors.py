"""safetensors: bytes written by hand, the package as an oracle, malformed files, FP8 blocks."""

import json
import mmap
import os
import random
import re
import weakref

import ml_dtypes
import numpy as np
import pytest

from r1jax import safetensors as st

oracle = pytest.importorskip("safetensors")
TORCH_ONLY = {"BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}   # no NumPy dtype of its own


def draw(code, shape=(3, 5), seed=0):
  """Any bits that are valid in the dtype: NaNs, infinities and denormals, too."""
  dtype = st.DTYPES[code]
  raw = np.random.default_rng(seed).integers(0, 2 if code == "BOOL" else 256, (*shape, dtype.itemsize), np.uint8)
  return raw.view(dtype).reshape(shape)


def specs_of(arrays):
  return {name: (array.dtype, array.shape) for name, array in arrays.items()}


def save(path, arrays, **kwargs):
  st.write(path, arrays.items(), specs_of(arrays), **kwargs)
  return path


def same(a, b):
  assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())


def file_of(header, data=b"", length=None):
  """The bytes of a file, well formed or not."""
  header = header if isinstance(header, bytes) else json.dumps(header).encode()
  return (len(header) if length is None else length).to_bytes(8, "little") + header + data


def entry(dtype="U8", shape=(4,), offsets=(0, 4), **more):
  return dict(dtype=dtype, shape=shape, data_offsets=offsets, **more)


# ----- well-formed files -----

def test_a_file_written_by_hand(tmp_path):
  path = tmp_path / "x.safetensors"
  header = b'{"__metadata__":{"k":"v"},"x":{"dtype":"I16","shape":[2],"data_offsets":[0,4]}} '   # 80 bytes
  by_hand = b"\x50\0\0\0\0\0\0\0" + header + b"\x01\x00\xfe\xff"
  path.write_bytes(by_hand)
  entries, metadata = st.read_header(path)
  assert entries == {"x": st.Entry("x", np.dtype("int16"), (2,), 88, 92)} and metadata == {"k": "v"}
  assert st.tensor(path, entries["x"]).tolist() == [1, -2]
  same(st.open_files(path).read("x"), np.array([1, -2], np.int16))
  written = save(tmp_path / "y.safetensors", {"x": np.array([1, -2], np.int16)}, metadata={"k": "v"})
  assert written.read_bytes() == by_hand


@pytest.mark.parametrize("code", st.DTYPES)
def test_the_package_reads_what_we_write_and_the_reverse(tmp_path, code):
  arrays = {"b": draw(code), "a": draw(code, (2, 1, 4), 1), "scalar": draw(code, (), 2), "none": draw(code, (0, 3))}
  ours, theirs = tmp_path / "ours.safetensors", tmp_path / "theirs.safetensors"
  save(ours, arrays)
  if code in TORCH_ONLY:
    torch = pytest.importorskip("torch")
    package = pytest.importorskip("safetensors.torch")
    bits, dtype = (np.uint16 if code == "BF16" else np.uint8), getattr(torch, TORCH_ONLY[code])
    package.save_file({n: torch.from_numpy(a.view(bits).copy()).view(dtype) for n, a in arrays.items()}, theirs)
    back = {n: t.view(getattr(torch, np.dtype(bits).name)).numpy().view(st.DTYPES[code])
            for n, t in package.load_file(ours).items() if t.dtype == dtype}
  else:
    package = pytest.importorskip("safetensors.numpy")
    package.save_file(arrays, theirs)
    back = package.load_file(ours)
  read = st.open_files(theirs)
  assert set(read.names) == set(back) == set(arrays)
  for name, array in arrays.items():
    same(read.read(name), array)
    same(back[name], array)
    assert (read.shape(name), read.dtype(name)) == (array.shape, array.dtype)


def test_metadata_as_the_package_sees_it(tmp_path):
  path = save(tmp_path / "x.safetensors", {"x": draw("F32")})
  with oracle.safe_open(path, "np") as file:
    assert file.metadata() == {"format": "pt"}
  save(path, {"x": draw("F32")}, metadata={"ü": "\n"})
  with oracle.safe_open(path, "np") as file:
    assert file.metadata() == st.read_header(path)[1] == {"ü": "\n"}
  assert st.read_header(save(path, {"x": draw("F32")}, metadata={}))[1] == {}


def test_mixed_dtypes_are_aligned_and_keep_their_order(tmp_path):
  arrays = {"u8": draw("U8", (3,)), "f32": draw("F32", (1,)), "bf16": draw("BF16", (5,)), "f64": draw("F64", (2,))}
  path = save(tmp_path / "x.safetensors", arrays)
  entries, _ = st.read_header(path)
  assert list(entries) == list(arrays) and all(e.start % e.dtype.itemsize == 0 for e in entries.values())
  st.write(path, reversed(arrays.items()), specs_of(arrays))
  for name, array in arrays.items():
    same(st.tensor(path, entries[name]), array)
  unaligned = {"a": entry(shape=[1], offsets=[0, 1]), "b": entry("F32", [1], [1, 5])}
  path.write_bytes(file_of(unaligned, b"\x07" + np.float32(1.5).tobytes()))
  assert st.open_files(path).read("b").tolist() == [1.5]


def test_an_empty_tensor_may_start_where_another_does(tmp_path):
  path = tmp_path / "x.safetensors"
  path.write_bytes(file_of({"a": entry(), "none": entry("F64", [3, 0], [0, 0])}, b"abcd"))
  assert st.open_files(path).read("none").shape == (3, 0) and st.open_files(path).read("a").tobytes() == b"abcd"


def test_a_file_without_tensors(tmp_path):
  path = save(tmp_path / "x.safetensors", {}, metadata={})
  assert path.read_bytes() == file_of(b"{}      ") and st.open_files(path).names == ()


def test_any_layout_in_memory_is_written_row_major(tmp_path):
  array = np.arange(24, dtype=np.float32).reshape(4, 6)
  path = save(tmp_path / "x.safetensors", {"t": array.T, "s": array[::2, ::3]})
  same(st.open_files(path).read("t"), np.ascontiguousarray(array.T))
  same(st.open_files(path).read("s"), array[::2, ::3].copy())


# ----- reading costs no memory -----

def test_reading_is_a_read_only_view(tmp_path):
  path = save(tmp_path / "x.safetensors", {"a": draw("F32", (8,)), "b": draw("F32", (8,))})
  checkpoint = st.open_files(path)
  assert not checkpoint.maps   # opening maps nothing
  first, again = checkpoint.read("a"), checkpoint.read("a")
  assert np.shares_memory(first, again) and not np.shares_memory(first, checkpoint.read("b"))
  assert not first.flags.writeable and not first.flags.owndata
  with pytest.raises(ValueError, match="WRITEABLE flag"):
    first.flags.writeable = True
  kept = first.copy()
  checkpoint.release("a")
  checkpoint.close()
  same(first, kept)   # neither takes a view away
  same(checkpoint.read("a"), kept)
  with pytest.raises(ValueError, match="no tensor 'c' among 2"):
    checkpoint.read("c")


def resident():
  with open("/proc/self/status") as status:
    return int(re.search(r"VmRSS:\s+(\d+) kB", status.read())[1]) * 1024


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="resident pages are read from /proc")
def test_release_gives_the_pages_back(tmp_path):
  size = 64 << 20
  path = tmp_path / "x.safetensors"
  path.write_bytes(file_of({"x": entry(shape=[size], offsets=[0, size])}, bytes(size)))
  checkpoint, before = st.open_files(path), resident()
  view = checkpoint.read("x")
  opened = resident() - before
  assert not view[::4096].any()
  if resident() - before < size // 2:
    pytest.skip("this kernel does not count the pages of a mapped file")
  checkpoint.release("x")
  assert opened < size // 8 and resident() - before < size // 8


def test_release_of_what_holds_no_page(tmp_path):
  path = tmp_path / "x.safetensors"
  header = json.dumps({"a": entry(), "none": entry(shape=[0], offsets=[4, 4])}).encode()
  path.write_bytes(file_of(header.ljust(mmap.PAGESIZE - 12), b"abcd"))   # `none` starts where the file and its page end
  checkpoint = st.open_files(path)
  checkpoint.release("a")   # never read
  assert checkpoint.read("none").size == 0
  checkpoint.release("none")
  assert checkpoint.read("a").tobytes() == b"abcd"


# ----- malformed files -----

ROW = entry("F32", [2, 2], [0, 16])
DEEP = 100_000
MALFORMED = dict(
  empty=(b"", "0 bytes"),
  seven_bytes=(b"\x02\0\0\0\0\0\0", "7 bytes"),
  no_header=(file_of(b"", length=2), "header of 2 bytes in a file of 8"),
  header_past_the_end=(file_of(b"{}", length=3), "header of 3 bytes in a file of 10"),
  header_huge=(file_of(b"{}", length=2**64 - 1), "header of 18446744073709551615 bytes; the limit is 100000000"),
  header_of_no_bytes=(file_of(b"", b"{}"), "not UTF-8 JSON"),
  not_utf8=(file_of(b'{"\xff":{}}'), "not UTF-8"),
  not_json=(file_of(b'{"a":'), "not UTF-8 JSON"),
  utf16=(file_of("{}".encode("utf-16-le")), "not UTF-8 JSON"),
  byte_order_mark=(file_of(b"\xef\xbb\xbf{}"), "BOM"),
  leading_space=(file_of(b" {}"), "starts with '{'"),
  text_after_json=(file_of(b"{} x"), "Extra data"),
  a_list=(file_of(b"[]"), "must be a JSON object"),
  a_number=(file_of(b"7"), "must be a JSON object"),
  lone_surrogate=(file_of(b'{"\\ud800":1}'), "surrogates not allowed"),
  long_integer=(file_of(b'{"a":' + b"9" * 5000 + b"}"), "not UTF-8 JSON"),
  nested=(file_of(b'{"a":' + b"[" * DEEP + b"]" * DEEP + b"}"), "RecursionError"),
  nested_objects=(file_of(b'{"a":' * DEEP + b"1" + b"}" * DEEP), "RecursionError"),
  nested_less=(file_of(b'{"a":' + b"[" * 500 + b"]" * 500 + b"}"), "must be an object of dtype"),
  same_name=(file_of(b'{"a":%s,"a":%s}' % ((json.dumps(entry()).encode(),) * 2), bytes(4)), "'a' occurs twice"),
  same_field=(file_of(b'{"a":{"dtype":"U8","dtype":"I8","shape":[4],"data_offsets":[0,4]}}', bytes(4)),
              "'dtype' occurs twice"),
  metadata_list=(file_of({"__metadata__": []}), "__metadata__ must map"),
  metadata_number=(file_of({"__metadata__": {"a": 1}}), "__metadata__ must map"),
  metadata_null=(file_of({"__metadata__": None}), "__metadata__ must map"),
  entry_list=(file_of({"a": [1]}), "tensor 'a': must be an object"),
  entry_null=(file_of({"a": None}), "tensor 'a': must be an object"),
  no_dtype=(file_of({"a": dict(shape=[4], data_offsets=[0, 4])}, bytes(4)), "must be an object of dtype"),
  no_shape=(file_of({"a": dict(dtype="U8", data_offsets=[0, 4])}, bytes(4)), "must be an object of dtype"),
  no_offsets=(file_of({"a": dict(dtype="U8", shape=[4])}, bytes(4)), "must be an object of dtype"),
  unknown_field=(file_of({"a": entry(strides=[1])}, bytes(4)), "must be an object of dtype"),
  unknown_dtype=(file_of({"a": entry("F7")}, bytes(4)), "tensor 'a': unknown dtype 'F7'"),
  lower_case_dtype=(file_of({"a": entry("u8")}, bytes(4)), "tensor 'a': unknown dtype 'u8'"),
  dtype_list=(file_of({"a": entry(["U8"])}, bytes(4)), "unknown dtype ['U8']"),
  shape_number=(file_of({"a": entry(shape=4)}, bytes(4)), "shape must be a list"),
  shape_bool=(file_of({"a": entry(shape=[4, True])}, bytes(4)), "shape must be a list"),
  shape_float=(file_of({"a": entry(shape=[4.0])}, bytes(4)), "shape must be a list"),
  shape_negative=(file_of({"a": entry(shape=[-2, -2])}, bytes(4)), "shape must be a list"),
  shape_text=(file_of({"a": entry(shape="4")}, bytes(4)), "shape must be a list"),
  shape_nan=(file_of({"a": entry(shape=[float("nan")])}, bytes(4)), "shape must be a list"),
  shape_of_many=(file_of({"a": entry(shape=[1] * 33, offsets=[0, 1])}, bytes(1)), "at most 32 integers"),
  overflow=(file_of({"a": entry(shape=[2**32, 2**32], offsets=[0, 0])}), "overflows 63 bits"),
  overflow_of_bytes=(file_of({"a": entry("F64", [2**60], [0, 4])}, bytes(4)), "overflows 63 bits"),
  overflow_times_zero=(file_of({"a": entry(shape=[0, 2**40, 2**40], offsets=[0, 0])}), "overflows 63 bits"),
  offsets_three=(file_of({"a": entry(offsets=[0, 4, 4])}, bytes(4)), "data_offsets must be"),
  offsets_bool=(file_of({"a": entry(shape=[1], offsets=[False, True])}, bytes(1)), "data_offsets must be"),
  offsets_float=(file_of({"a": entry(offsets=[0, 4.0])}, bytes(4)), "data_offsets must be"),
  offsets_negative=(file_of({"a": entry(offsets=[-4, 0])}, bytes(4)), "data_offsets must be"),
  offsets_backward=(file_of({"a": entry(offsets=[4, 0])}, bytes(4)), "data_offsets must be integers 0 <= start"),
  past_the_end=(file_of({"a": entry()}, bytes(3)), "ends at data byte 4, but the file has 3"),
  far_past_the_end=(file_of({"a": entry(shape=[10**18], offsets=[0, 10**18])}, bytes(3)), "the file has 3"),
  too_few_bytes=(file_of({"a": entry("F32", [2], [0, 4])}, bytes(4)), "takes 8 bytes, but data_offsets give 4"),
  wrong_dtype=(file_of({"a": entry("F16", [2, 2], [0, 16])}, bytes(16)), "takes 8 bytes, but data_offsets give 16"),
  scalar_of_two=(file_of({"a": entry(shape=[], offsets=[0, 2])}, bytes(2)), "takes 1 bytes"),
  overlap=(file_of({"a": ROW, "b": entry(offsets=[14, 18])}, bytes(18)), "'b' overlaps the one before: data byte 14"),
  same_range=(file_of({"a": ROW, "b": ROW}, bytes(16)), "'b' overlaps"),
  empty_inside=(file_of({"a": ROW, "b": entry(shape=[0], offsets=[8, 8])}, bytes(16)), "'b' overlaps"),
  hole=(file_of({"a": ROW, "b": entry(offsets=[17, 21])}, bytes(21)), "'b' leaves a hole before it: data byte 17"),
  hole_at_the_start=(file_of({"a": entry(offsets=[1, 5])}, bytes(5)), "'a' leaves a hole"),
  empty_past_the_rest=(file_of({"a": ROW, "b": entry(shape=[0], offsets=[17, 17])}, bytes(17)), "'b' leaves a hole"),
  trailing=(file_of({"a": ROW}, bytes(19)), "3 trailing bytes"),
  trailing_alone=(file_of(b"{}", b"x"), "1 trailing bytes"),
)


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_files_are_refused(tmp_path, case):
  content, message = MALFORMED[case]
  path = tmp_path / "bad.safetensors"
  path.write_bytes(content)
  for read in (st.read_header, st.open_files):
    with pytest.raises(ValueError, match=re.escape(message)) as refused:
      read(path)
    assert str(path) in str(refused.value) and len(str(refused.value)) < 1000


def test_a_long_header_is_refused_before_it_is_read(tmp_path):
  path = tmp_path / "sparse.safetensors"
  path.write_bytes((st.MAX_HEADER + 1).to_bytes(8, "little"))
  os.truncate(path, st.MAX_HEADER + 100)
  with pytest.raises(ValueError, match="header of 100000001 bytes; the limit is 100000000"):
    st.read_header(path)


def test_what_a_header_cannot_show(tmp_path):
  path = tmp_path / "x.safetensors"
  path.write_bytes(file_of({"a": entry("BOOL")}, b"\0\1\2\0"))
  with pytest.raises(ValueError, match=rf"{path}: tensor 'a': BOOL byte 2"):
    st.open_files(path).read("a")
  checkpoint = st.open_files(save(path, {"a": draw("U8", (9000,))}))
  os.truncate(path, 5000)
  with pytest.raises(ValueError, match=r"tensor 'a' ends at byte \d+, but the file has only 5000 now"):
    checkpoint.read("a")
  for missing in (tmp_path / "nothing", tmp_path):
    with pytest.raises(FileNotFoundError, match=str(missing)):
      st.read_header(missing)


def outcome(path):
  """All tensors of a file, or None if it is refused; whatever else is raised goes through."""
  try:
    entries, _ = st.read_header(path)
    return {name: st.tensor(path, e) for name, e in entries.items()}
  except ValueError:
    return None


FUZZED = {"a.weight": entry("F32", [2, 3], [0, 24]), "b": entry("BF16", [4], [24, 32]),
          "c": entry("BOOL", [2], [32, 34]), "d": entry("I64", [], [34, 42]), "e": entry("U8", [0, 7], [42, 42]),
          "__metadata__": {"format": "pt"}}
DATA = bytes(range(32)) + b"\1\0" + bytes(range(8))


def test_a_file_cut_anywhere_is_refused(tmp_path):
  path, whole = tmp_path / "x.safetensors", file_of(FUZZED, DATA)
  path.write_bytes(whole)
  assert outcome(path).keys() == FUZZED.keys() - {"__metadata__"}
  for size in sorted({*range(0, len(whole), 7), len(whole) - 1}):
    path.write_bytes(whole[:size])
    assert outcome(path) is None, size


def test_flipped_header_bytes_give_a_refusal_or_a_valid_file(tmp_path):
  """What we accept, the package accepts, too, and reads the same from it."""
  path, whole, rng = tmp_path / "x.safetensors", file_of(FUZZED, DATA), random.Random(0)
  refused = 0
  for _ in range(2000):
    content = bytearray(whole)
    for _ in range(rng.randint(1, 3)):
      likely = rng.choice(b'0123456789-[]{},:"\\ eE.tU')
      content[rng.randrange(len(whole) - len(DATA))] = likely if rng.random() < 0.7 else rng.randrange(256)
    path.write_bytes(content)
    found = outcome(path)
    refused += found is None
    if found is not None:
      theirs = {name: (tuple(t["shape"]), bytes(t["data"])) for name, t in oracle.deserialize(bytes(content))}
      assert theirs == {name: (array.shape, array.tobytes()) for name, array in found.items()}, bytes(content)
  assert 200 < refused < 1990   # both kinds have been seen


# ----- writing -----

WRONG_WRITES = dict(
  unknown=([("a", np.zeros(2, np.float32)), ("z", np.zeros(2, np.float32))], "'z' is not in specs"),
  twice=([("a", np.zeros(2, np.float32))] * 2, "'a' comes twice"),
  never=([("a", np.zeros(2, np.float32))], r"1 tensors of specs never came, as \['b'\]"),
  shape=([("a", np.zeros((2, 1), np.float32))], r"'a' is float32\[2, 1\], but specs say float32\[2\]"),
  dtype=([("a", np.zeros(2, np.float64))], r"'a' is float64\[2\], but specs say float32\[2\]"),
  byte_order=([("a", np.zeros(2, ">f4"))], r"'a' is >f4\[2\]"),
)


@pytest.mark.parametrize("case", WRONG_WRITES)
def test_a_refused_write_leaves_the_old_file(tmp_path, case):
  tensors, message = WRONG_WRITES[case]
  path = tmp_path / "x.safetensors"
  path.write_bytes(b"old")
  with pytest.raises(ValueError, match=message):
    st.write(path, tensors, {"a": (np.float32, (2,)), "b": (np.uint8, (1,))})
  assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["x.safetensors"]


def test_a_write_cut_short_leaves_the_old_file(tmp_path):
  path = save(tmp_path / "x.safetensors", {"a": draw("F32"), "b": draw("U8")})
  old = path.read_bytes()

  def cut_short():
    yield "a", draw("F32", seed=1)
    assert len(os.listdir(tmp_path)) == 2   # the new file is being written beside the old one
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    st.write(path, cut_short(), {"a": (np.float32, (3, 5)), "b": (np.uint8, (3, 5))})
  assert path.read_bytes() == old and os.listdir(tmp_path) == ["x.safetensors"]


@pytest.mark.parametrize("specs, metadata, message", [
  ({"a": (np.complex64, (1,))}, {}, "tensor 'a': cannot write dtype complex64"),
  ({"a": (">f4", (1,))}, {}, "tensor 'a': cannot write dtype >f4"),
  ({"a": (np.uint8, (-1,))}, {}, "tensor 'a': cannot write dtype uint8, shape"),
  ({"a": (np.uint8, (1,) * 33)}, {}, "tensor 'a': cannot write dtype uint8, shape"),
  ({"__metadata__": (np.uint8, (1,))}, {}, "__metadata__ must be no tensor"),
  ({}, {"step": 3}, "__metadata__ must .* strings to strings"),
])
def test_specs_that_no_file_can_hold(tmp_path, specs, metadata, message):
  with pytest.raises(ValueError, match=message):
    st.write(tmp_path / "x.safetensors", (), specs, metadata)
  assert not os.listdir(tmp_path)


# ----- shards and their index -----

ARRAYS = {"w.2": draw("F32", (5, 4)), "w.10": draw("BF16", (7, 4)), "b": draw("F8_E4M3", (30,)),
          "big": draw("F32", (50,)), "last": draw("U8", (3,)), "scalar": draw("F32", ())}
# of 80, 56, 30, 200, 3 and 4 bytes


def shard(folder, arrays=None, size=140, **kwargs):
  arrays = ARRAYS if arrays is None else arrays
  return st.write_sharded(folder, specs_of(arrays), arrays.__getitem__, size, **kwargs)


def test_shards_are_filled_in_order_and_come_back_bit_for_bit(tmp_path):
  names = [f"model-0000{i}-of-00004.safetensors" for i in (1, 2, 3, 4)]
  assert [path.name for path in shard(tmp_path)] == names
  assert sorted(os.listdir(tmp_path)) == [*names, st.INDEX]
  index = json.loads((tmp_path / st.INDEX).read_text())
  assert index["metadata"] == {"total_size": 373}
  assert list(index["weight_map"].items()) == list(zip(ARRAYS, [names[i] for i in (0, 0, 1, 2, 3, 3)], strict=True))
  checkpoint = st.open_files(tmp_path)
  assert checkpoint.names == tuple(ARRAYS)
  for name, array in ARRAYS.items():
    same(checkpoint.read(name), array)
  assert len(checkpoint.maps) == 4
  with oracle.safe_open(tmp_path / names[0], "np") as file:
    assert set(file.keys()) == {"w.2", "w.10"} and file.metadata() == {"format": "pt"}


def test_no_more_than_one_tensor_is_held(tmp_path):
  held = []

  def get(name):
    assert not any(array() is not None for array in held)
    array = ARRAYS[name].copy()
    held.append(weakref.ref(array))
    return array

  st.write_sharded(tmp_path, specs_of(ARRAYS), get, 300)
  assert len(held) == len(ARRAYS)


def test_what_fits_into_one_file_needs_no_index(tmp_path):
  shard(tmp_path / "new" / "folder", size=373)
  assert os.listdir(tmp_path / "new" / "folder") == [st.SINGLE]
  for path in (tmp_path / "new" / "folder", tmp_path / "new" / "folder" / st.SINGLE):
    same(st.open_files(path).read("big"), ARRAYS["big"])
  (tmp_path / "new" / "folder" / "consolidated.safetensors").write_bytes(b"of another kind")
  assert st.open_files(tmp_path / "new" / "folder").names == tuple(ARRAYS)
  with pytest.raises(ValueError, match="max_shard_bytes=0"):
    shard(tmp_path, size=0)


@pytest.mark.parametrize("before, after", [(140, 373), (373, 140), (140, 90), (373, 373)])
def test_a_new_checkpoint_replaces_the_old_one_that_it_is_read_from(tmp_path, before, after):
  shard(tmp_path, size=before)
  (tmp_path / "model-card.safetensors").write_bytes(b"not ours")
  old, plus = st.open_files(tmp_path), lambda name: old.read(name).view(np.uint8) ^ 1
  new = {name: (np.uint8, plus(name).shape) for name in old.names if old.shape(name)}
  expected = {name: plus(name).copy() for name in new}
  files = st.write_sharded(tmp_path, new, plus, after)
  assert {p.name for p in tmp_path.iterdir()} == {p.name for p in files} | {"model-card.safetensors"} | (
    {st.INDEX} if len(files) > 1 else set())
  for name in new:
    same(st.open_files(tmp_path).read(name), expected[name])


def test_if_get_raises_the_old_checkpoint_stays(tmp_path):
  shard(tmp_path)
  content = lambda: {path.name: path.read_bytes() for path in tmp_path.iterdir()}
  old = content()

  def get(name):
    if name == "last":
      raise KeyError(name)
    return ARRAYS[name] * 0

  with pytest.raises(KeyError, match="last"):
    st.write_sharded(tmp_path, specs_of(ARRAYS), get, 90)
  assert content() == old


def edit(folder, change):
  path = folder / st.INDEX
  index = json.loads(path.read_text())
  change(index)
  path.write_text(json.dumps(index))


FIRST, SECOND = "model-00001-of-00004.safetensors", "model-00002-of-00004.safetensors"
point = lambda file: lambda folder: edit(folder, lambda index: index["weight_map"].update({"w.2": file}))
BAD_FOLDERS = dict(
  index_not_json=(lambda f: (f / st.INDEX).write_text("{"), "index is not UTF-8 JSON"),
  index_list=(lambda f: (f / st.INDEX).write_text("[]"), "index must be a JSON object"),
  index_twice=(lambda f: (f / st.INDEX).write_text('{"weight_map":{"a":"x","a":"y"}}'), "'a' occurs twice"),
  index_nested=(lambda f: (f / st.INDEX).write_text("[" * DEEP), "RecursionError"),
  index_long=(lambda f: os.truncate(f / st.INDEX, st.MAX_HEADER + 1), "index of 100000001 bytes"),
  no_map=(lambda f: (f / st.INDEX).write_text("{}"), "weight_map must be an object, got None"),
  map_list=(lambda f: (f / st.INDEX).write_text('{"weight_map":[]}'), "weight_map must be an object"),
  number=(point(3), "tensor 'w.2': 3 is no name"),
  parent=(point("../x.safetensors"), "tensor 'w.2': '../x.safetensors' is no name"),
  dots=(point(".."), "'..' is no name"),
  folder=(point("a/x.safetensors"), "'a/x.safetensors' is no name"),
  backslash=(point("a\\x.safetensors"), "is no name"),
  absolute=(point("/x.safetensors"), "'/x.safetensors' is no name"),
  drive=(point("c:x.safetensors"), "'c:x.safetensors' is no name"),
  zero_byte=(point("x\0.safetensors"), "is no name"),
  other_kind=(point("x.bin"), "'x.bin' is no name"),
  long_name=(point("x" * 5000 + ".safetensors"), "is missing"),
  absent=(point("x.safetensors"), "shard 'x.safetensors' is missing"),
  shard_lost=(lambda f: (f / SECOND).unlink(), f"shard '{SECOND}' is missing"),
  shard_is_a_folder=(lambda f: ((f / SECOND).unlink(), (f / SECOND).mkdir()), f"shard '{SECOND}' is missing"),
  shard_bad=(lambda f: os.truncate(f / SECOND, 100), SECOND),
  other_shard=(point(SECOND), f"{FIRST}: holds tensor 'w.2', for which the index says '{SECOND}'"),
  not_in_index=(lambda f: edit(f, lambda i: i["weight_map"].pop("w.2")), f"{FIRST}: holds tensor 'w.2', for which"),
  not_in_shard=(lambda f: edit(f, lambda i: i["weight_map"].update(z=FIRST)), f"{FIRST}: lacks tensor 'z'"),
  twice=(lambda f: save(f / SECOND, {n: ARRAYS[n] for n in ("b", "w.2")}), f"{SECOND}: holds tensor 'w.2'"),
  single_beside=(lambda f: save(f / st.SINGLE, ARRAYS), "which of the two is meant?"),
  no_index=(lambda f: (f / st.INDEX).unlink(), f"has shards but no {st.INDEX}"),
)


@pytest.mark.parametrize("case", BAD_FOLDERS)
def test_folders_that_do_not_fit_together_are_refused(tmp_path, case):
  damage, message = BAD_FOLDERS[case]
  shard(tmp_path)
  damage(tmp_path)
  with pytest.raises(ValueError, match=re.escape(message)) as refused:
    st.open_files(tmp_path)
  assert str(tmp_path) in str(refused.value)


def test_a_folder_must_leave_no_choice(tmp_path):
  with pytest.raises(ValueError, match="got 0 of the last"):
    st.open_files(tmp_path)
  save(tmp_path / "a.safetensors", {"x": draw("U8")})
  assert st.open_files(tmp_path).names == ("x",)
  save(tmp_path / "b.safetensors", {"x": draw("U8")})
  with pytest.raises(ValueError, match="got 2 of the last"):
    st.open_files(tmp_path)
  with pytest.raises(FileNotFoundError, match="nothing"):
    st.open_files(tmp_path / "nothing")


def test_shards_may_be_links(tmp_path):
  """As in Hugging Face's cache, where a snapshot links into a folder of blobs."""
  shard(tmp_path / "blobs")
  (tmp_path / "snapshot").mkdir()
  for path in (tmp_path / "blobs").iterdir():
    (tmp_path / "snapshot" / path.name).symlink_to(path)
  same(st.open_files(tmp_path / "snapshot").read("big"), ARRAYS["big"])


# ----- FP8 -----

def loop_dequantize(w, scale_inv, block, dtype):
  out = np.empty(w.shape, dtype)
  for m in range(w.shape[0]):
    for n in range(w.shape[1]):
      out[m, n] = np.float32(w[m, n]) * scale_inv[m // block[0], n // block[1]]
  return out


def loop_quantize(w, block):
  grid = -(-w.shape[0] // block[0]), -(-w.shape[1] // block[1])
  q, scale_inv = np.empty(w.shape, ml_dtypes.float8_e4m3fn), np.empty(grid, np.float32)
  for i in range(grid[0]):
    for j in range(grid[1]):
      here = np.s_[i * block[0]:(i + 1) * block[0], j * block[1]:(j + 1) * block[1]]
      amax = np.float32(np.abs(w[here].astype(np.float32)).max())
      scale_inv[i, j] = amax / np.float32(448) if amax else 1
      q[here] = w[here].astype(np.float32) / scale_inv[i, j]
  return q, scale_inv


@pytest.mark.parametrize("shape, block", [
  ((128, 256), (128, 128)), ((130, 257), (128, 128)), ((7, 5), (128, 128)), ((9, 11), (2, 3)), ((1, 6), (4, 2))])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_fp8_blocks_as_plain_loops_compute_them(shape, block, dtype):
  rng = np.random.default_rng(0)
  w = (rng.normal(size=shape) * np.exp(rng.normal(size=(shape[0], 1)) * 3)).astype(dtype)
  if several := shape[1] > block[1]:
    w[:block[0], :block[1]] = 0
  q, scale_inv = st.quantize_blocks(w, block)
  for ours, loops in zip((q, scale_inv), loop_quantize(w, block), strict=True):
    same(ours, loops)
  back = st.dequantize_blocks(q, scale_inv, block, dtype)
  same(back, loop_dequantize(q, scale_inv, block, dtype))
  assert not several or (scale_inv[0, 0] == 1 and not back[:block[0], :block[1]].any())
  scale_MN = np.kron(scale_inv, np.ones(block, np.float32))[:shape[0], :shape[1]]
  # E4M3 keeps 4 significant bits, down to steps of 2^-9; bfloat16 keeps 8
  bound = np.abs(w.astype(np.float32)) * (2**-4 + 2**-8) + scale_MN * 2**-10
  assert (np.abs(back.astype(np.float32) - w.astype(np.float32)) <= bound).all()


def test_fp8_numbers_computed_by_hand():
  w = np.array([[896, -2, 0, 0], [1, 0.5, 0, 0], [-7, 0, 448, 0]], np.float32)
  q, scale_inv = st.quantize_blocks(w, (2, 2))
  assert scale_inv.tolist() == [[2, 1], [0.015625, 1]]
  assert q.view(np.uint8).tolist() == [[0x7E, 0xB8, 0, 0], [0x30, 0x28, 0, 0], [0xFE, 0, 0x7E, 0]]
  back = st.dequantize_blocks(q, scale_inv, (2, 2))
  assert back.dtype == ml_dtypes.bfloat16 and back.tolist() == w.tolist()
  back = st.dequantize_blocks(q, np.float32([[3, 5], [7, 11]]), (2, 2), np.float32)
  assert back.tolist() == [[1344, -3, 0, 0], [1.5, 0.75, 0, 0], [-3136, 0, 4928, 0]]


def test_fp8_of_tiny_values_does_not_overflow():
  w = np.full((1, 2), 2.0**-149, np.float32)
  q, scale_inv = st.quantize_blocks(w)
  assert np.isfinite(q.astype(np.float32)).all() and scale_inv[0, 0] == np.finfo(np.float32).tiny


def test_fp8_refusals():
  w, scale_inv = np.zeros((4, 5), ml_dtypes.float8_e4m3fn), np.ones((2, 3), np.float32)
  st.dequantize_blocks(w, scale_inv, (2, 2))
  wide = scale_inv.astype(np.float64)
  for q, scale in ((w, scale_inv.T), (w, wide), (w.astype(np.float32), scale_inv), (w[..., None], scale_inv)):
    with pytest.raises(ValueError, match=r"expected float8_e4m3fn\[M,N\] and float32\["):
      st.dequantize_blocks(q, scale, (2, 2))
  for value in (np.nan, -np.inf):
    with pytest.raises(ValueError, match="rows 2 to 3 hold a value that is not finite"):
      st.quantize_blocks(np.array([[1.0], [1], [1], [value], [1]]), (2, 2))
  with pytest.raises(ValueError, match="expected a matrix"):
    st.quantize_blocks(np.zeros(4))
