"""``zoo.models.RNN``, and weights of recurrent layers in PyTorch's layout."""

from zoo import fields
from zoo.families import family
from zoo.models.rnn import RNN
from zoo.weights.tables import Entry, Table, linear_entries
from zoo.weights.transforms import LINEAR_TRANSPOSED


def recurrent_table(
    num_layers: int,
    reference: str = "",
    ours: str = "",
    *,
    bidirectional: bool = False,
    projection: bool = False,
    use_bias: bool = True,
) -> Table:
    """Returns the table of ``zoo.layers.Recurrent``; the gates are in PyTorch's order.

    Args:
        num_layers: number of layers.
        reference: prefix of the reference's names, such as ``rnn.``.
        ours: prefix of the zoo's paths, such as ``layers/``.
        bidirectional: see the layer.
        projection: whether the layer has a projection.
        use_bias: see the layer.
    """
    table: list[Entry] = []
    for layer in range(num_layers):
        for way in ("", "_reverse") if bidirectional else ("",):
            name = f"{layer}{way}"
            for theirs, role in (("ih", "input"), ("hh", "recurrent")):
                kernel = (f"{reference}weight_{theirs}_l{name}", f"{ours}{role}_kernel_{name}")
                table.append(Entry(*kernel, LINEAR_TRANSPOSED))
                if use_bias:
                    bias = (f"{reference}bias_{theirs}_l{name}", f"{ours}{role}_bias_{name}")
                    table.append(Entry(*bias))
            if projection:
                kernel = (f"{reference}weight_hr_l{name}", f"{ours}projection_kernel_{name}")
                table.append(Entry(*kernel, LINEAR_TRANSPOSED))
    return table


def rnn_table(num_layers: int, *, embeds: bool = True, bidirectional: bool = False) -> Table:
    """Returns the table of ``zoo.models.RNN`` for a PyTorch class.

    The class has the layers ``embed``, ``rnn`` and ``output``. The table also serves
    ``TextClassifier``, ``SpeechRecognizer`` and ``Forecaster``.

    Args:
        num_layers: number of recurrent layers.
        embeds: whether the model reads tokens with ``embed``.
        bidirectional: whether the recurrent layers are bidirectional.
    """
    return [
        *([Entry("embed.weight", "embed/embedding")] if embeds else []),
        *recurrent_table(num_layers, "rnn.", "layers/", bidirectional=bidirectional),
        *linear_entries("output", "output"),
    ]


FAMILY = family.Family(
    module=RNN,
    kind="causal_lm",
    sizes={"rnn": {}},
    rules={
        "vocab_size": family.FROM_DATA,
        "cell": family.CELL,
        "embed_features": fields.at_least(1),
        "features": fields.at_least(1),
        "num_layers": family.DEPTH,
        "dropout_rate": fields.FRACTION,
        "initialization": family.INITIALIZATION,
    },
    example=family.tokens("tokens"),
    weights={"pytorch": lambda module, params: rnn_table(module.num_layers)},
    axes=family.EMBEDDING_AXES,
)
