"""Injects what goes wrong in practice, and counts what survives.

``python -m tests.chaos --help`` says how. A *kind* is one sort of injection with the promise that
it tests. A *case* of it is a function of a seed alone, so a broken one can be repeated.
"""
