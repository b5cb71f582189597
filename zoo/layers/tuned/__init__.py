"""Forms of layers that are faster on a CPU, behind the layers' own calls and parameters.

Only the order of the arithmetic differs from XLA's own. Where a form would be slower on another
platform, it is chosen where it is lowered (``jax.lax.platform_dependent``), so that a program
compiled for a TPU on a CPU takes the plain form, and what is kept for the gradient is the same
everywhere.
"""
