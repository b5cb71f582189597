"""Weights of ``zoo.models.GPT`` from and to Hugging Face's ``GPT2LMHeadModel``."""

from zoo.pretrained.tables import Entry, Part, Table, norm_entries


def gpt_table(num_layers: int) -> Table:
    """The table of ``zoo.models.GPT`` with biases; the output's weights are the tokens' vectors.

    The reference's linear layers are [in, out] as ours, with query, key and value side by side.

    Args:
        num_layers: number of blocks.
    """
    table = [
        Entry("transformer.wte.weight", "tokens/embedding"),
        Entry("transformer.wpe.weight", "positions/embedding"),
        *norm_entries("transformer.ln_f", "ln_f"),
    ]
    for layer in range(num_layers):
        theirs, ours = f"transformer.h.{layer}", f"block_{layer}"
        for index, name in enumerate(("query", "key", "value")):
            path = f"{ours}/attention/{name}"
            table += [
                Entry(
                    f"{theirs}.attn.c_attn.weight", f"{path}/kernel", part=Part(index, 3, axis=1)
                ),
                Entry(f"{theirs}.attn.c_attn.bias", f"{path}/bias", part=Part(index, 3)),
            ]
        for reference, path in (
            ("attn.c_proj", "attention/out"), ("mlp.c_fc", "up"), ("mlp.c_proj", "down"),
        ):  # fmt: skip
            table += [
                Entry(f"{theirs}.{reference}.weight", f"{ours}/{path}/kernel"),
                Entry(f"{theirs}.{reference}.bias", f"{ours}/{path}/bias"),
            ]
        table += norm_entries(f"{theirs}.ln_1", f"{ours}/ln_1")
        table += norm_entries(f"{theirs}.ln_2", f"{ours}/ln_2")
    return table
