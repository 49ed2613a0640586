"""Scores of a policy on problems that it was not trained on: greedy, pass@k, cons@k, strict and lenient."""
