"""Weights from and to other libraries."""

from zoo.pretrained.cnn import cnn_table
from zoo.pretrained.gpt import gpt_table
from zoo.pretrained.rnn import recurrent_table, rnn_table
from zoo.pretrained.tables import Entry, Part, from_reference, to_reference
from zoo.pretrained.transformer import transformer_table
from zoo.pretrained.unet import unet_table

__all__ = [
    "Entry",
    "Part",
    "cnn_table",
    "from_reference",
    "gpt_table",
    "recurrent_table",
    "rnn_table",
    "to_reference",
    "transformer_table",
    "unet_table",
]
