"""The commands: r1jax run | eval | sample | report | bench."""
