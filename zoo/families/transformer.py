"""``zoo.models.Transformer``, and its weights in the layout of ``torch.nn.Transformer``."""

from zoo import fields
from zoo.families import family
from zoo.models.transformer import Transformer
from zoo.weights.tables import (
    Entry,
    Table,
    attention_entries,
    copy_entry,
    linear_entries,
    norm_entries,
)


def transformer_table(
    num_encoder_layers: int,
    num_decoder_layers: int,
    *,
    learned_positions: bool = False,
    tie_weights: bool = False,
) -> Table:
    """Returns the table of a ``Transformer``.

    The reference is a PyTorch class with ``source_embed`` and ``target_embed``
    (``torch.nn.Embedding``), ``transformer`` (``torch.nn.Transformer``) and ``output``
    (``torch.nn.Linear``; tied it has no bias). With learned positions it also has
    ``source_positions`` and ``target_positions`` (``torch.nn.Embedding``).

    Args:
        num_encoder_layers: number of layers in the encoder.
        num_decoder_layers: number of layers in the decoder.
        learned_positions: whether the positions are learned, not sinusoidal.
        tie_weights: see the model.
    """
    table = [
        Entry("source_embed.weight", "encoder/embed/tokens/embedding"),
        Entry("target_embed.weight", "decoder/embed/tokens/embedding"),
    ]
    if tie_weights:
        table.append(copy_entry("output.weight", "decoder/embed/tokens/embedding"))
    else:
        table += linear_entries("output", "decoder/output")
    if learned_positions:
        table += [
            Entry("source_positions.weight", "encoder/embed/learned/embedding"),
            Entry("target_positions.weight", "decoder/embed/learned/embedding"),
        ]
    for stack, layers in (("encoder", num_encoder_layers), ("decoder", num_decoder_layers)):
        table += norm_entries(f"transformer.{stack}.norm", f"{stack}/norm")
        for layer in range(layers):
            table += _layer(
                f"transformer.{stack}.layers.{layer}", f"{stack}/layer_{layer}", stack == "decoder"
            )
    return table


def encoder_table(num_layers: int) -> Table:
    """Returns the table of a ``TransformerEncoder`` with learned positions.

    The reference is a PyTorch class with ``embed`` and ``positions`` (``torch.nn.Embedding``) and
    ``encoder`` (``torch.nn.TransformerEncoder``).

    Args:
        num_layers: number of layers.
    """
    table = [
        Entry("embed.weight", "embed/tokens/embedding"),
        Entry("positions.weight", "embed/learned/embedding"),
        *norm_entries("encoder.norm", "norm"),
    ]
    for layer in range(num_layers):
        table += _layer(f"encoder.layers.{layer}", f"layer_{layer}", decoder=False)
    return table


def attention_table(reference: str, ours: str) -> Table:
    """Returns the entries of ``torch.nn.MultiheadAttention``, whose projections share an array."""
    return attention_entries(
        f"{reference}.in_proj_weight", f"{reference}.in_proj_bias", f"{reference}.out_proj", ours
    )


def _layer(reference: str, ours: str, decoder: bool) -> Table:
    table = [
        *attention_table(f"{reference}.self_attn", f"{ours}/self_attention"),
        *linear_entries(f"{reference}.linear1", f"{ours}/feedforward/up"),
        *linear_entries(f"{reference}.linear2", f"{ours}/feedforward/down"),
        *norm_entries(f"{reference}.norm1", f"{ours}/norm1"),
        # A layer of the reference's encoder has two normalisations, norm1 and norm2.
        *norm_entries(f"{reference}.norm{3 if decoder else 2}", f"{ours}/norm3"),
    ]
    if decoder:
        table += attention_table(f"{reference}.multihead_attn", f"{ours}/cross_attention")
        table += norm_entries(f"{reference}.norm2", f"{ours}/norm2")
    return table


FAMILY = family.Family(
    module=Transformer,
    kind="encoder_decoder",
    sizes={"transformer": {}},
    rules={
        "source_vocab_size": family.FROM_DATA,
        "target_vocab_size": family.FROM_DATA,
        "features": fields.at_least(1),
        "num_heads": fields.at_least(1),
        "num_encoder_layers": family.DEPTH,
        "num_decoder_layers": family.DEPTH,
        "feedforward_features": fields.at_least(1),
        "dropout_rate": fields.FRACTION,
        "activation": family.ACTIVATION,
        "positions": fields.choice("learned", "sinusoidal"),
        "max_length": fields.at_least(1),
    },
    example=family.tokens("source", "target"),
    weights={
        "pytorch": lambda module, params: transformer_table(
            module.num_encoder_layers,
            module.num_decoder_layers,
            learned_positions=module.positions == "learned",
            tie_weights=module.tie_weights,
        )
    },
    axes=(*family.ATTENTION_AXES, *family.HIDDEN_AXES, *family.EMBEDDING_AXES),
    check=lambda attributes: fields.check_divides(attributes, "num_heads", "features"),
)
