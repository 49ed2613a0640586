"""r1jax: the training system behind DeepSeek-R1, pure-functional, in JAX."""

__version__ = "0.1.0"
