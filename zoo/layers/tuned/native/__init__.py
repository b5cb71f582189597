"""Kernels of this project's own for a CPU, in C++, and what calls them."""
