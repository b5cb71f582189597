"""Weights of ``zoo.models.UNet`` in the layout of diffusers' ``UNet2DConditionModel``."""

from collections.abc import Sequence

from zoo.weights.tables import Entry, Table, linear_entries, norm_entries
from zoo.weights.transforms import CONV_OIHW


def unet_table(
    features: Sequence[int],
    attention: Sequence[bool],
    layers_per_level: int,
) -> Table:
    """Returns the table of a ``UNet`` for ``UNet2DConditionModel``.

    Args:
        features: see the model.
        attention: see the model.
        layers_per_level: see the model.
    """
    levels = len(features)
    table = [
        *linear_entries("time_embedding.linear_1", "time1"),
        *linear_entries("time_embedding.linear_2", "time2"),
        *_conv("conv_in", "conv_in"),
        *_conv("conv_out", "conv_out"),
        *norm_entries("conv_norm_out", "norm_out"),
        *_transformer("mid_block.attentions.0", "middle_attention"),
        *_block("mid_block.resnets.0", "middle_block0", shortcut=False),
        *_block("mid_block.resnets.1", "middle_block1", shortcut=False),
    ]
    inputs = features[0]
    for level, width in enumerate(features):
        theirs, ours = f"down_blocks.{level}", f"down{level}"
        for layer in range(layers_per_level):
            shortcut = inputs != width
            table += _block(f"{theirs}.resnets.{layer}", f"{ours}_block{layer}", shortcut=shortcut)
            if attention[level]:
                table += _transformer(f"{theirs}.attentions.{layer}", f"{ours}_attention{layer}")
            inputs = width
        if level < levels - 1:
            table += _conv(f"{theirs}.downsamplers.0.conv", f"{ours}_halve")
    for level in reversed(range(levels)):
        # The reference counts upwards from the lowest level.
        theirs, ours = f"up_blocks.{levels - 1 - level}", f"up{level}"
        for layer in range(layers_per_level + 1):
            # The input is concatenated with the features from the way down, so it always has more
            # channels than the output.
            table += _block(f"{theirs}.resnets.{layer}", f"{ours}_block{layer}", shortcut=True)
            if attention[level]:
                table += _transformer(f"{theirs}.attentions.{layer}", f"{ours}_attention{layer}")
        if level > 0:
            table += _conv(f"{theirs}.upsamplers.0.conv", f"{ours}_double")
    return table


def _conv(reference: str, ours: str) -> Table:
    return [
        Entry(f"{reference}.weight", f"{ours}/kernel", CONV_OIHW),
        Entry(f"{reference}.bias", f"{ours}/bias"),
    ]


def _block(reference: str, ours: str, *, shortcut: bool) -> Table:
    return [
        *norm_entries(f"{reference}.norm1", f"{ours}/norm1"),
        *_conv(f"{reference}.conv1", f"{ours}/conv1"),
        *linear_entries(f"{reference}.time_emb_proj", f"{ours}/time"),
        *norm_entries(f"{reference}.norm2", f"{ours}/norm2"),
        *_conv(f"{reference}.conv2", f"{ours}/conv2"),
        *(_conv(f"{reference}.conv_shortcut", f"{ours}/shortcut") if shortcut else []),
    ]


def _transformer(reference: str, ours: str) -> Table:
    layer = f"{reference}.transformer_blocks.0"
    table = [
        *norm_entries(f"{reference}.norm", f"{ours}/norm"),
        *_conv(f"{reference}.proj_in", f"{ours}/proj_in"),
        *_conv(f"{reference}.proj_out", f"{ours}/proj_out"),
        *linear_entries(f"{layer}.ff.net.0.proj", f"{ours}/gate"),
        *linear_entries(f"{layer}.ff.net.2", f"{ours}/down"),
    ]
    for number in (1, 2, 3):
        table += norm_entries(f"{layer}.norm{number}", f"{ours}/norm{number}")
    for theirs, name in (("attn1", "self_attention"), ("attn2", "cross_attention")):
        for letter, projection in (("q", "query"), ("k", "key"), ("v", "value")):
            table += linear_entries(
                f"{layer}.{theirs}.to_{letter}", f"{ours}/{name}/{projection}", bias=False
            )
        table += linear_entries(f"{layer}.{theirs}.to_out.0", f"{ours}/{name}/out")
    return table
