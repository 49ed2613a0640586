"""The task of files."""

import json

from r1jax.tasks import DataConfig, r1


def test_a_question_of_formulas_alone_is_to_be_thought_about_in_english(tmp_path):
  path = tmp_path / "a.jsonl"
  path.write_text("".join(json.dumps(dict(question=q, answer="84")) + "\n" for q in ("12 * 7 = ?", "十二乘以七是多少")))
  formula, chinese = r1.make(r1.Config(), DataConfig(train=str(path), test=str(path))).held_out
  english = lambda problem: r1.language(problem, "<think>so it is</think> 84").value
  assert english(formula) == 1 and english(chinese) == 0
  assert r1.language(formula, "<think>所以是</think> 84").value == 0
