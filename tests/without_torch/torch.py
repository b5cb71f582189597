"""Stands before PyTorch on the path of a process that shall start as a user's does.

The project does not need PyTorch, but tensorboardX imports it where it is installed, which takes
three seconds.
"""

raise ImportError("PyTorch is not for this process: see tests/without_torch")
