"""Weights in files, and in the names and layouts of other libraries."""
