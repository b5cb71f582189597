"""Python imports this at its start if the folder is in ``PYTHONPATH``."""

from network import cut_off

cut_off()
