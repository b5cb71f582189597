"""Weights from and to other libraries."""

from zoo.pretrained.tables import Entry, cnn_table, from_reference, to_reference

__all__ = ["Entry", "cnn_table", "from_reference", "to_reference"]
