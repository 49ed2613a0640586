"""The commands of r1jax, a file each; main.py lists them."""
