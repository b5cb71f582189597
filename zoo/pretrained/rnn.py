"""Weights of recurrent layers from and to ``torch.nn.RNN``, ``LSTM`` and ``GRU``."""

from zoo.pretrained.tables import Entry, Table, linear_entries
from zoo.pretrained.transforms import LINEAR_TRANSPOSED


def recurrent_table(
    num_layers: int,
    reference: str = "",
    ours: str = "",
    *,
    bidirectional: bool = False,
    projection: bool = False,
    use_bias: bool = True,
) -> Table:
    """The table of ``zoo.layers.Recurrent``; the gates are in PyTorch's order.

    Args:
        num_layers: number of layers.
        reference: what stands before the reference's names, such as ``rnn.``.
        ours: what stands before our paths, such as ``layers/``.
        bidirectional: the layer's.
        projection: whether the layer has one.
        use_bias: the layer's.
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
    """The table of ``zoo.models.RNN`` and a PyTorch class with ``embed``, ``rnn`` and ``output``.

    Also of ``TextClassifier``, ``SpeechRecognizer`` and ``Forecaster``.

    Args:
        num_layers: number of recurrent layers.
        embeds: whether tokens are read, by ``embed``.
        bidirectional: the layers'.
    """
    return [
        *([Entry("embed.weight", "embed/embedding")] if embeds else []),
        *recurrent_table(num_layers, "rnn.", "layers/", bidirectional=bidirectional),
        *linear_entries("output", "output"),
    ]
