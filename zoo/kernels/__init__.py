"""This project's own kernels for a CPU, in C++, called by XLA: see ``zoo.kernels.library``."""
