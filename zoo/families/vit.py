"""``zoo.models.ViT``, and its weights in the layouts of torchvision and timm."""

from zoo import fields
from zoo.families import family
from zoo.families.transformer import attention_table
from zoo.models.vit import ViT
from zoo.weights.tables import (
    Entry,
    Table,
    attention_entries,
    conv_entries,
    linear_entries,
    norm_entries,
    renamed,
)


def vit_table(num_layers: int) -> Table:
    """Returns the table of a ``ViT`` for torchvision's ``vit_b_16`` and ``vit_l_16``.

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


def vit_old_table(num_layers: int) -> Table:
    """Returns the table for files of torchvision before 0.14: ``mlp.linear_1``, ``mlp.linear_2``.

    Args:
        num_layers: number of layers.
    """
    table = renamed(vit_table(num_layers), r"\.mlp\.0\.", ".mlp.linear_1.")
    return renamed(table, r"\.mlp\.3\.", ".mlp.linear_2.")


def vit_timm_table(num_layers: int) -> Table:
    """Returns the table of a ``ViT`` for timm's ``VisionTransformer``.

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


FAMILY = family.Family(
    module=ViT,
    kind="image_classifier",
    sizes={
        "vit_b_16": {},
        "vit_l_16": {
            "features": 1024, "num_layers": 24, "num_heads": 16, "feedforward_features": 4096,
        },
        "vit_s_16": {"features": 384, "num_heads": 6, "feedforward_features": 1536},
    },
    rules={
        **family.IMAGES,
        "image_size": fields.at_least(1),
        "patch_size": fields.at_least(1),
        "features": fields.at_least(1),
        "num_layers": family.DEPTH,
        "num_heads": fields.at_least(1),
        "feedforward_features": fields.at_least(1),
        "dropout_rate": fields.FRACTION,
    },
    example=lambda module: family.image(module.image_size)(module),
    weights={
        "torchvision": lambda module, params: vit_table(module.num_layers),
        "torchvision, older names": lambda module, params: vit_old_table(module.num_layers),
        "timm": lambda module, params: vit_timm_table(module.num_layers),
    },
    preprocessing=family.presets(
        "vit_b_16", "vit_s_16", vit_l_16=family.Preprocessing(resize=242)
    ),
    axes=(*family.ATTENTION_AXES, *family.HIDDEN_AXES, *family.EMBEDDING_AXES),
    check=lambda attributes: fields.check_divides(attributes, "num_heads", "features"),
)  # fmt: skip
