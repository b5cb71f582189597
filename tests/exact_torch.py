"""References of transformers that compute in float64 where their code says float32."""

import contextlib

import peers
import pytest


@contextlib.contextmanager
def exact(model):
    """Has a model whose parameters are float64 compute all in float64; others stay as they are.

    The code of Llama and its relatives casts to float32 in normalisations, rotary positions and the
    softmax, and keeps the rates of the positions in float32: in float64 it would then be as far
    from the truth as in float32.
    """
    torch = peers.torch()
    if next(model.parameters()).dtype != torch.float64:
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "float32", torch.float64)
        patch.setattr(torch, "float", torch.float64)
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        usual = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        for module in model.modules():
            if hasattr(module, "inv_freq"):
                module.inv_freq = rates(module)
                module.original_inv_freq = module.inv_freq
        try:
            yield
        finally:
            torch.set_default_dtype(usual)


def rates(module):
    """Returns the rates of a rotary module, computed anew."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    make = ROPE_INIT_FUNCTIONS.get(module.rope_type, module.compute_default_rope_parameters)
    return make(module.config)[0]
