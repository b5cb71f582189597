"""Forms of layers that are faster on one platform, behind the layers' own calls and parameters.

Each chooses where it is lowered (``jax.lax.platform_dependent``), so that a program compiled for a
TPU on a CPU takes the plain form. The gradient's rule stands outermost and keeps the same
residuals on every platform; differentiation in forward mode is an error on all of them.
"""
