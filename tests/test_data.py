"""Which items a step reads."""

import pytest

from r1jax import data


def stream(steps, count, size, seed=0):
  return [i for step in range(steps) for i in data.positions(step, count, size, seed)]


@pytest.mark.parametrize(("count", "size"), [(4, 12), (5, 12), (1, 7), (12, 12), (30, 12), (3, 1)])
def test_each_epoch_sees_every_item_once_however_steps_cut_it(count, size):
  seen = stream(6 * size, count, size)
  for start in range(0, len(seen) - size + 1, size):
    assert sorted(seen[start:start + size]) == list(range(size))


def test_the_stream_does_not_depend_on_how_many_items_a_step_reads():
  assert stream(30, 2, 12) == stream(12, 5, 12) == stream(1, 60, 12)


def test_epochs_and_seeds_have_orders_of_their_own():
  seen = stream(5, 50, 50)
  orders = [tuple(seen[e * 50:e * 50 + 50]) for e in range(5)] + [tuple(stream(1, 50, 50, seed=1))]
  assert len(set(orders)) == 6
  assert tuple(range(50)) not in orders


def test_a_step_reads_the_same_whoever_asks_and_whatever_was_asked_before():
  assert data.positions(7, 5, 12, 3) == stream(8, 5, 12, seed=3)[-5:]
  assert data.positions(7, 5, 12, 3) == data.positions(7, 5, 12, 3)


def test_without_an_end_it_counts_on():
  assert stream(3, 4, None) == list(range(12))


def test_positions_are_plain_integers():
  assert {type(i) for i in stream(2, 5, 12)} == {int}


@pytest.mark.parametrize("value, reason", [
  ("NaN", "NaN is not a finite number"), ("[-Infinity]", "-Infinity is not a finite number"),
  ("1e999", "1e999 is not a finite number"), (r'"q \ud800"', r"\\ud800 is half a surrogate pair"),
  (r'{"\uDFFF": 1}', r"\\udfff is half a surrogate pair")])
def test_what_is_no_number_or_no_text_is_refused_with_its_line(value, reason, tmp_path):
  path = tmp_path / "a.jsonl"
  path.write_text(r'{"a": "\ud83d\ude00 \\ud800", "b": 1e300}' + "\n" + f'{{"a": {value}}}\n')
  rows = data.read_jsonl(path)
  assert next(rows) == (1, dict(a="😀 \\ud800", b=1e300))
  with pytest.raises(ValueError, match=f"a.jsonl:2: .*{reason}"):
    next(rows)
