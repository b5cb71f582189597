"""Weights of recurrent layers from and to ``torch.nn.RNN``, ``LSTM`` and ``GRU``."""

from zoo.pretrained.tables import Entry, Table, linear_entries
from zoo.pretrained.transforms import LINEAR_TRANSPOSED


def recurrent_table(num_layers: int, reference: str = "", ours: str = "") -> Table:
    """The table of ``zoo.layers.Recurrent``; the gates are in PyTorch's order.

    Args:
        num_layers: number of layers.
        reference: what stands before the reference's names, such as ``rnn.``.
        ours: what stands before our paths, such as ``layers/``.
    """
    return [
        entry
        for layer in range(num_layers)
        for theirs, name in (("ih", "input"), ("hh", "recurrent"))
        for entry in (
            Entry(
                f"{reference}weight_{theirs}_l{layer}",
                f"{ours}{name}_kernel_{layer}",
                LINEAR_TRANSPOSED,
            ),
            Entry(f"{reference}bias_{theirs}_l{layer}", f"{ours}{name}_bias_{layer}"),
        )
    ]


def rnn_table(num_layers: int) -> Table:
    """The table of ``zoo.models.RNN`` and a PyTorch class with ``embed``, ``rnn`` and ``output``.

    Args:
        num_layers: number of recurrent layers.
    """
    return [
        Entry("embed.weight", "embed/embedding"),
        *recurrent_table(num_layers, "rnn.", "layers/"),
        *linear_entries("output", "output"),
    ]
