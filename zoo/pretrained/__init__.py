"""Weights from and to other libraries."""

from zoo.pretrained.cnn import cnn_table
from zoo.pretrained.convnext import convnext_table
from zoo.pretrained.densenet import densenet_table
from zoo.pretrained.gpt import gpt_table
from zoo.pretrained.mobilenet import efficientnet_table, mobilenet_table
from zoo.pretrained.published import Preprocessing, Pretrained, from_pretrained
from zoo.pretrained.resnet import resnet_table
from zoo.pretrained.rnn import recurrent_table, rnn_table
from zoo.pretrained.squeezenet import squeezenet_table
from zoo.pretrained.tables import (
    Entry,
    Part,
    from_reference,
    to_reference,
    variables_from_reference,
    variables_to_reference,
)
from zoo.pretrained.transformer import transformer_table
from zoo.pretrained.unet import unet_table
from zoo.pretrained.vgg import vgg_table
from zoo.pretrained.vit import vit_table

__all__ = [
    "Entry",
    "Part",
    "Preprocessing",
    "Pretrained",
    "cnn_table",
    "convnext_table",
    "densenet_table",
    "efficientnet_table",
    "from_pretrained",
    "from_reference",
    "gpt_table",
    "mobilenet_table",
    "recurrent_table",
    "resnet_table",
    "rnn_table",
    "squeezenet_table",
    "to_reference",
    "transformer_table",
    "unet_table",
    "variables_from_reference",
    "variables_to_reference",
    "vgg_table",
    "vit_table",
]
