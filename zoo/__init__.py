"""A functional model zoo for JAX."""
