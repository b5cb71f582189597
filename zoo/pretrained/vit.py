"""Weights of ``zoo.models.ViT`` from and to torchvision's."""

from zoo.pretrained.tables import (
    Entry,
    Table,
    attention_entries,
    conv_entries,
    linear_entries,
    norm_entries,
)
from zoo.pretrained.transformer import attention_table


def vit_table(num_layers: int) -> Table:
    """The table of a ``ViT`` and torchvision's ``vit_b_16`` and ``vit_l_16``.

    Args:
        num_layers: number of layers.
    """
    table = [
        Entry("class_token", "class_token"),
        Entry("encoder.pos_embedding", "positions"),
        *conv_entries("conv_proj", "patches"),
        *norm_entries("encoder.ln", "ln"),
        *linear_entries("heads.head", "head"),
    ]
    for layer in range(num_layers):
        theirs, ours = f"encoder.layers.encoder_layer_{layer}", f"block_{layer}"
        table += attention_table(f"{theirs}.self_attention", f"{ours}/attention")
        table += norm_entries(f"{theirs}.ln_1", f"{ours}/ln_1")
        table += norm_entries(f"{theirs}.ln_2", f"{ours}/ln_2")
        table += linear_entries(f"{theirs}.mlp.0", f"{ours}/up")
        table += linear_entries(f"{theirs}.mlp.3", f"{ours}/down")
    return table


def vit_timm_table(num_layers: int) -> Table:
    """The table of a ``ViT`` and timm's ``VisionTransformer``.

    Args:
        num_layers: number of layers.
    """
    table = [
        Entry("cls_token", "class_token"),
        Entry("pos_embed", "positions"),
        *conv_entries("patch_embed.proj", "patches"),
        *norm_entries("norm", "ln"),
        *linear_entries("head", "head"),
    ]
    for layer in range(num_layers):
        theirs, ours = f"blocks.{layer}", f"block_{layer}"
        qkv, out = f"{theirs}.attn.qkv", f"{theirs}.attn.proj"
        table += attention_entries(f"{qkv}.weight", f"{qkv}.bias", out, f"{ours}/attention")
        table += norm_entries(f"{theirs}.norm1", f"{ours}/ln_1")
        table += norm_entries(f"{theirs}.norm2", f"{ours}/ln_2")
        table += linear_entries(f"{theirs}.mlp.fc1", f"{ours}/up")
        table += linear_entries(f"{theirs}.mlp.fc2", f"{ours}/down")
    return table
