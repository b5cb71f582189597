"""Forms of layers that are faster on a CPU, behind the layers' own calls and parameters.

The output is XLA's own; only how a gradient is computed differs. Where a form would be slower on
another platform, it is chosen where it is lowered (``jax.lax.platform_dependent``), so that a
program compiled for a TPU on a CPU takes the plain form, and what is kept for the gradient is the
same everywhere.
"""
