"""C++ functions for the CPU that XLA calls: see ``zoo.native.library``."""
