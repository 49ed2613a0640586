"""Scripts that take GRPO steps with other trainers, each run by an interpreter that has that trainer installed."""
