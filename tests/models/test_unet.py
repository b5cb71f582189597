"""The UNet against diffusers' ``UNet2DConditionModel``."""

import jax
import jax.numpy as jnp
import numpy as np
import parity
import peers
import pytest

from zoo.errors import UserError
from zoo.families.unet import unet_table
from zoo.models import TextToImage, UNet
from zoo.models.text_to_image import from_patches, to_patches


def reference(features, attention, layers, scale_shift):
    torch, diffusers = peers.torch(), peers.diffusers()
    torch.manual_seed(0)
    kinds = ["CrossAttn" if a else "" for a in attention]
    model = diffusers.UNet2DConditionModel(
        sample_size=8, in_channels=3, out_channels=3, block_out_channels=features,
        down_block_types=tuple(f"{kind}DownBlock2D" for kind in kinds),
        up_block_types=tuple(f"{kind}UpBlock2D" for kind in reversed(kinds)),
        layers_per_block=layers, cross_attention_dim=6, attention_head_dim=2, norm_num_groups=2,
        class_embed_type="identity" if scale_shift else None,
        resnet_time_scale_shift="scale_shift" if scale_shift else "default",
    )  # fmt: skip
    for parameter in model.parameters():
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter, std=0.3)
    model.time_proj = _exact_in_float64(model)
    return model


def _exact_in_float64(model):
    """The embedding of steps, which diffusers computes in float32 whatever the model's type."""
    torch, inexact = peers.torch(), model.time_proj

    class TimeEmbedding(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("like", torch.zeros(1))  # of the type to which the model is cast

        def forward(self, step):
            if self.like.dtype == torch.float32:
                return inexact(step)
            half = inexact.num_channels // 2
            rate = 10_000 ** (-torch.arange(half, dtype=torch.float64) / half)
            angle = step[:, None] * rate
            return torch.cat([torch.cos(angle), torch.sin(angle)], dim=-1)

    return TimeEmbedding()


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(
    ("features", "attention", "layers", "size", "masked", "scale_shift"),
    [
        ((4, 8), (False, True), 1, (4, 2), True, False),
        ((4,), (False,), 1, (2, 2), True, True),
        pytest.param((4, 4), (True, False), 2, (4, 2), False, True, marks=pytest.mark.long),
    ],
)
def test_it_computes_what_diffusers_does(features, attention, layers, size, masked, scale_shift):
    torch = peers.torch()
    counts = np.array([[1, 1, 1], [1, 0, 0]], bool)
    step = np.array([3, 700])
    ours = UNet(
        features=features, attention=attention, layers_per_level=layers, num_heads=2,
        norm_groups=2, scale_shift=scale_shift,
    )  # fmt: skip

    def theirs(model, image, context, vector=None):
        mask = torch.tensor(counts) if masked else None
        known = {"class_labels": vector} if scale_shift else {}
        out = model(image, torch.tensor(step), context, encoder_attention_mask=mask, **known)
        return out.sample.permute(0, 2, 3, 1)

    parity.check_parity(
        _Fixed(ours, step),
        reference(features, attention, layers, scale_shift),
        unet_table(features, attention, layers),
        normal(2, *size, 3),
        normal(2, 3, 6, seed=1),
        # With scale and shift a vector comes too: the plain form is compared without.
        *([normal(2, 4 * features[0], seed=2)] if scale_shift else []),
        axes=None,
        ours=lambda apply, image, context, vector=None: apply(
            image,
            jnp.asarray(step),
            context,
            jnp.asarray(counts) if masked else None,
            vector=vector,
        ),
        theirs=lambda model, image, *others: theirs(model, image.permute(0, 3, 1, 2), *others),
    )


class _Fixed:
    """A module whose step is no input."""

    def __init__(self, module, step):
        self.module, self.step = module, step

    def init(self, key, image, context, vector=None):
        return self.module.init(key, image, self.step, context, vector=vector)

    def apply(self, *arguments, **options):
        return self.module.apply(*arguments, **options)


SMALL = TextToImage(
    vocab_size=7, text_features=8, text_layers=1, text_heads=2, max_length=5,
    features=(4, 8), attention=(False, True), num_heads=2, norm_groups=2,
)  # fmt: skip


def drawn(*inputs, model=SMALL):
    """Variables of a model without compiling its initialisation."""
    generator = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(generator.normal(size=leaf.shape) * 0.3, leaf.dtype),
        jax.eval_shape(model.init, jax.random.key(0), *inputs),
    )


apply_small = jax.jit(SMALL.apply)


def test_padding_of_a_caption_changes_nothing():
    image, step = normal(2, 4, 4, 3), jnp.array([3, 500])
    tokens = jnp.array([[1, 2, 0, 0, 0], [3, 0, 0, 0, 0]])
    variables = drawn(image, step, tokens)
    whole = apply_small(variables, image, step, tokens)
    np.testing.assert_allclose(
        apply_small(variables, image, step, tokens[:, :2]), whole, rtol=1e-4, atol=1e-5
    )
    other = apply_small(variables, image, step, tokens.at[0, 1].set(4))
    assert np.abs(other[0] - whole[0]).max() > 1e-4
    np.testing.assert_allclose(other[1], whole[1], rtol=1e-5, atol=1e-6)


def test_an_empty_caption_is_one_like_others():
    image, step = normal(1, 4, 4, 3), jnp.array([3])
    variables = drawn(image, step, jnp.zeros((1, 5), jnp.int32))

    def total(params):
        return (SMALL.apply({"params": params}, image, step, jnp.zeros((1, 5), int)) ** 2).sum()

    gradients = jax.jit(jax.grad(total))(variables["params"])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    assert np.abs(gradients["text"]["embed"]["tokens"]["embedding"][0]).sum() > 0


@pytest.mark.parametrize(
    ("attributes", "shape", "words"),
    [
        ({}, (1, 4, 6, 3), "multiples of 4"),
        ({}, (1, 3, 4, 4), r"must be \[batch, height, width, channels\]"),
        ({"channels": 2}, (1, 4, 4, 3), "channels=2. Make it with channels=3"),
        ({"attention": (True,)}, (1, 4, 4, 3), "as many entries"),
        ({"norm_groups": 3}, (1, 4, 4, 3), "num_groups=3"),
        ({"num_heads": 3}, (1, 4, 4, 3), "num_heads=3"),
    ],
)
def test_what_does_not_fit_is_refused(attributes, shape, words):
    small = {"features": (4, 4, 8), "attention": (False, False, True), "norm_groups": 2,
             "num_heads": 2, "layers_per_level": 1}  # fmt: skip
    with pytest.raises(UserError, match=words):
        jax.eval_shape(
            UNet(**small | attributes).init,
            *(jax.random.key(0), jnp.zeros(shape), jnp.zeros(1, int), jnp.zeros((1, 2, 4))),
        )


def test_a_patch_holds_the_pixels_of_its_square():
    image = normal(2, 4, 6, 3)
    patches = to_patches(image, 2)
    assert patches.shape == (2, 2, 3, 12)
    np.testing.assert_array_equal(
        np.sort(patches[1, 1, 2]), np.sort(image[1, 2:4, 4:6].reshape(-1))
    )
    np.testing.assert_array_equal(from_patches(patches, 2), image)


def test_it_sees_patches_as_a_unet_sees_pixels():
    model = SMALL.clone(patch_size=2)
    image, step = normal(1, 8, 8, 3), jnp.array([5])
    tokens = jnp.array([[1, 2, 0]])
    variables = drawn(image, step, tokens, model=model)
    assert variables["params"]["unet"]["conv_in"]["kernel"].shape[2] == 12
    out = jax.jit(model.apply)(variables, image, step, tokens)
    assert out.shape == image.shape
    with pytest.raises(UserError, match="multiples of patch_size=2"):
        model.init(jax.random.key(0), image[:, :7], step, tokens)
