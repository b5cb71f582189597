"""Vision models against torchvision's."""

import jax
import jax.numpy as jnp
import numpy as np
import parity
import peers
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from zoo.errors import UserError
from zoo.families import create_model, find, list_models
from zoo.families.convnext import convnext_table
from zoo.families.densenet import densenet_table
from zoo.families.mobilenet import efficientnet_table, mobilenet_table
from zoo.families.resnet import resnet_table
from zoo.families.squeezenet import squeezenet_table
from zoo.families.vgg import vgg_table
from zoo.families.vit import vit_table
from zoo.models import (
    VGG,
    ConvNeXt,
    DenseNet,
    EfficientNet,
    MobileNetV3,
    ResNet,
    SqueezeNet,
    ViT,
)
from zoo.models import mobilenet as mobilenets
from zoo.pretrained import tables_of
from zoo.weights.tables import variables_from_reference, variables_to_reference


def images(rows=4, side=32):
    return np.random.default_rng(0).normal(size=(rows, side, side, 3)).astype(np.float32)


def references():
    """torchvision's models, whose weights are drawn alike in every run."""
    peers.torch().manual_seed(0)
    return peers.torchvision().models


def drawn(model):
    """The reference with every parameter and statistic away from 0 and 1."""
    torch = peers.torch()
    for parameter in model.parameters():
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter, 1.0, 0.2)
        elif not parameter.any():
            torch.nn.init.normal_(parameter, 0.0, 0.3)
    for name, buffer in model.named_buffers():
        if "running" in name:
            torch.nn.init.uniform_(buffer, 0.5, 1.5)
    return model


def resnet(stages, bottleneck):
    models = references().resnet
    block = models.Bottleneck if bottleneck else models.BasicBlock
    theirs = models.ResNet(block, list(stages), num_classes=5)
    ours = ResNet(num_classes=5, stages=stages, bottleneck=bottleneck)
    return ours, drawn(theirs), resnet_table(stages, bottleneck=bottleneck)


def squeezenet():
    theirs = references().SqueezeNet("1_1", num_classes=5, dropout=0.0)
    ours = SqueezeNet(num_classes=5, dropout_rate=0.0)
    return ours, drawn(theirs), squeezenet_table(ours.stages)


def vgg(batch_norm):
    torch, models = peers.torch(), references().vgg
    layers = models.make_layers([4, "M", 8, 8, "M"], batch_norm=batch_norm)
    theirs = models.VGG(layers, num_classes=5, init_weights=False)
    # The same classifier, narrower: 100 million parameters are not what is compared.
    nn = torch.nn
    theirs.classifier = nn.Sequential(
        nn.Linear(8 * 49, 12), nn.ReLU(), nn.Dropout(0.0),
        nn.Linear(12, 12), nn.ReLU(), nn.Dropout(0.0), nn.Linear(12, 5),
    )  # fmt: skip
    ours = VGG(
        num_classes=5, stages=(1, 2), features=(4, 8), batch_norm=batch_norm,
        hidden_features=12, dropout_rate=0.0,
    )  # fmt: skip
    return ours, drawn(theirs), vgg_table((1, 2), batch_norm=batch_norm)


def vit():
    models = references()
    theirs = models.VisionTransformer(
        image_size=16, patch_size=8, num_layers=2, num_heads=2, hidden_dim=8, mlp_dim=12,
        num_classes=5,
    )  # fmt: skip
    ours = ViT(
        num_classes=5, image_size=16, patch_size=8, features=8, num_layers=2, num_heads=2,
        feedforward_features=12,
    )  # fmt: skip
    return ours, drawn(theirs), vit_table(2)


def convnext():
    models = references().convnext
    setting = [models.CNBlockConfig(4, 6, 1), models.CNBlockConfig(6, None, 2)]
    theirs = models.ConvNeXt(setting, num_classes=5)
    ours = ConvNeXt(num_classes=5, stages=(1, 2), features=(4, 6), stochastic_depth_rate=0.0)
    return ours, drawn(theirs), convnext_table((1, 2))


def densenet():
    models = references()
    theirs = models.DenseNet(
        growth_rate=4, block_config=(2, 1, 2), num_init_features=8, bn_size=2, num_classes=5
    )
    ours = DenseNet(num_classes=5, blocks=(2, 1, 2), growth=4, features=8, bottleneck=2)
    return ours, drawn(theirs), densenet_table((2, 1, 2))


def mobilenet(size):
    torch = peers.torch()
    theirs = getattr(references(), f"mobilenet_v3_{size}")(num_classes=5, dropout=0.0)

    class HardSigmoid(torch.nn.Module):
        """PyTorch's own, whose gradient has 1/6 in float32 even where all else is float64."""

        def forward(self, x):
            return torch.nn.functional.relu6(x + 3) / 6

    for module in theirs.modules():
        if hasattr(module, "scale_activation"):
            module.scale_activation = HardSigmoid()
    blocks, _ = mobilenets.SIZES[size]
    ours = MobileNetV3(num_classes=5, size=size, dropout_rate=0.0)
    return ours, drawn(theirs), mobilenet_table(blocks)


def efficientnet():
    models = references().efficientnet
    stages = ((1, 3, 1, 16, 1), (6, 5, 2, 24, 2), (6, 3, 1, 32, 1))
    inputs = (8, 16, 24)
    setting = [
        models.MBConvConfig(expansion, kernel, stride, before, after, layers)
        for before, (expansion, kernel, stride, after, layers) in zip(inputs, stages, strict=True)
    ]
    theirs = models.EfficientNet(
        setting, dropout=0.0, stochastic_depth_prob=0.0, num_classes=5, last_channel=12
    )
    ours = EfficientNet(
        num_classes=5, stages=stages, features=8, last_features=12, dropout_rate=0.0,
        stochastic_depth_rate=0.0,
    )  # fmt: skip
    return ours, drawn(theirs), efficientnet_table(stages)


MODELS = {
    "convnext": (convnext, 32),
    "densenet": (densenet, 33),
    "efficientnet": (efficientnet, 31),
    "mobilenet, small": (lambda: mobilenet("small"), 32),
    "mobilenet, large": (lambda: mobilenet("large"), 32),
    "resnet, basic": (lambda: resnet((1, 1, 1, 2), False), 32),
    "resnet, bottleneck": (lambda: resnet((1, 1, 1, 1), True), 32),
    # Of 16, 8 and 4 rows a last window of each pooling reaches over the edge.
    "squeezenet": (squeezenet, 33),
    "vgg": (lambda: vgg(False), 30),
    "vgg, batch norm": (lambda: vgg(True), 32),
    "vit": (vit, 16),
}
# Fifteen blocks at full width take a while to compile.
LONG = ("mobilenet, large",)


def names(*without):
    return [
        pytest.param(name, marks=pytest.mark.long) if name in LONG else name
        for name in MODELS
        if name not in without
    ]


# Numbers of parameters in torchvision's documentation.
PUBLISHED = {
    "resnet18": 11_689_512, "resnet34": 21_797_672, "resnet50": 25_557_032,
    "resnet101": 44_549_160, "resnet152": 60_192_808,
    "vgg11": 132_863_336, "vgg11_bn": 132_868_840, "vgg16": 138_357_544, "vgg16_bn": 138_365_992,
    "convnext_tiny": 28_589_128, "densenet121": 7_978_856, "efficientnet_b0": 5_288_548,
    "mobilenet_v3_large": 5_483_032, "mobilenet_v3_small": 2_542_856,
    "squeezenet1_1": 1_235_496, "vit_b_16": 86_567_656, "vit_l_16": 304_326_632,
}  # fmt: skip

every = pytest.mark.parametrize("name", names())


@every
def test_it_computes_what_torchvision_does(name):
    make, side = MODELS[name]
    parity.check_parity(*make(), images(2, side))


@pytest.mark.parametrize("name", names("convnext", "squeezenet", "vgg", "vit"))
def test_in_training_it_computes_and_keeps_what_torchvision_does(name):
    make, side = MODELS[name]
    parity.check_parity(*make(), images(4, side), train=True)


@every
def test_weights_there_and_back_are_the_same_bit_for_bit(name):
    make, side = MODELS[name]
    model, reference, table = make()
    state = {name: array.numpy() for name, array in reference.state_dict().items()}
    like = jax.eval_shape(model.init, jax.random.key(0), images(1, side))
    again = variables_to_reference(variables_from_reference(state, table, like), table)
    assert set(state) - set(again) == {n for n in state if n.endswith("num_batches_tracked")}
    for name, array in again.items():
        assert array.tobytes() == state[name].tobytes(), name


def test_rows_that_are_padding_teach_nothing():
    model = ResNet(num_classes=3, stages=(1,), features=4, stem="cifar")
    image = jnp.asarray(images(4, 8))
    variables = model.init(jax.random.key(0), image)
    mask = jnp.array([1.0, 1.0, 1.0, 0.0])
    options = {"train": True, "mutable": ["batch_stats"]}
    masked, kept = model.apply(variables, image, mask=mask, **options)
    alone, expected = model.apply(variables, image[:3], **options)
    np.testing.assert_allclose(masked[:3], alone, rtol=1e-5, atol=1e-6)
    for a, b in zip(jax.tree.leaves(kept), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    _, kept = model.apply(variables, image, mask=0 * mask, **options)
    for a, b in zip(jax.tree.leaves(kept), jax.tree.leaves(variables["batch_stats"]), strict=True):
        np.testing.assert_array_equal(a, b)


def test_two_devices_normalise_like_one():
    model = ResNet(num_classes=3, stages=(1,), features=4, stem="cifar")
    image = jnp.asarray(images(6, 8))
    mask = jnp.array([1.0, 1.0, 0.0, 1.0, 1.0, 1.0])
    variables = model.init(jax.random.key(0), image)

    @jax.jit
    def learn(params, image, mask):
        def loss(params):
            logits, kept = model.apply(
                variables | {"params": params}, image, train=True, mask=mask, mutable="batch_stats"
            )
            return jnp.square(logits).mean(), kept

        return jax.value_and_grad(loss, has_aux=True)(params)

    mesh = jax.make_mesh((2,), ("data",), (AxisType.Auto,), devices=jax.devices()[:2])
    rows = NamedSharding(mesh, PartitionSpec("data"))
    one = learn(variables["params"], image, mask)
    two = learn(variables["params"], jax.device_put(image, rows), jax.device_put(mask, rows))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        assert len(b.devices()) == 2
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("name", "parameters"), PUBLISHED.items())
def test_at_full_size_it_has_the_published_parameters(name, parameters):
    shapes = jax.eval_shape(create_model(name).init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == parameters


@pytest.mark.long
@pytest.mark.parametrize("name", [n for n in list_models() if n in PUBLISHED])
def test_at_full_size_it_computes_what_torchvision_does_on_a_photograph(name):
    torch = peers.torch()
    theirs = getattr(references(), name)().eval()
    model = create_model(name)
    state = {key: array.numpy() for key, array in theirs.state_dict().items()}
    image = images(1, 224)
    like = jax.eval_shape(model.init, jax.random.key(0), image)
    table = tables_of(find(name), model, like["params"])["torchvision"]
    variables = variables_from_reference(state, table, like)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(image.transpose(0, 3, 1, 2).copy())).numpy()
    found = jax.jit(model.apply)(variables, image)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("model", "shape", "words"),
    [
        (ResNet(stem="cifer"), (1, 32, 32, 3), "'imagenet' or 'cifar'"),
        (ResNet(), (32, 32, 3), r"must be \[batch, height, width, channels\]"),
        (SqueezeNet(), (32, 32, 3), r"must be \[batch, height, width, channels\]"),
        (SqueezeNet(), (1, 16, 17, 3), "not smaller than the window"),
        (VGG(stages=(1,)), (1, 32, 32, 3), "as many entries"),
        (ViT(), (1, 32, 32, 3), "image_size=224"),
        (ResNet(), (2, 3, 224, 224), r"\(2, 3, 224, 224\).*moveaxis"),
        (ViT(image_size=20, num_layers=1), (1, 20, 20, 3), "patch_size=16 must divide"),
    ],
)
def test_what_does_not_fit_is_refused(model, shape, words):
    with pytest.raises(UserError, match=words):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(shape))
