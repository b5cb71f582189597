"""Predicted and published times of training steps on TPUs, side by side.

    python -m benchmarks.plans                  every step that is missing; writes the tables
    python -m benchmarks.plans --only llama-8b  one, compiled again
    python -m benchmarks.plans --tables         compiles nothing; writes the tables

Each step is compiled ahead of time for its slice with ``zoo.planning``: the zoo's train step, with
a decoder of the published shape that stands below. It needs the extra ``plan`` and a few minutes
for each step. What differs from the programs that were measured:

- they were written in maxtext, with its own kernels, compiler options and precision of gradients;
- times of the steps with a published share of the peak are those of maxtext's count of operations:
  six for each weight and token, and attention as if it were not causal.

``docs/plans.json`` keeps what each program does (``zoo.planning.roofline.Work``). The estimate's
shares are chosen from those steps that calibrate, half of all (``calibrated``), and the defaults of
``roofline.Shares`` are what came out.
"""

import argparse
import dataclasses
import functools
import itertools
import json
import math
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.ad_checkpoint import checkpoint_name

from benchmarks import machine, tables
from zoo.axes import constrain
from zoo.flops import count_flops
from zoo.planning import find_slice, programs, roofline
from zoo.planning.chips import CHIPS, Chip
from zoo.training import loop
from zoo.training.layout import Layout, make_mesh
from zoo.training.placement import placement_of
from zoo.training.state import create_state
from zoo.training.step import make_train_step

RESULTS = machine.ROOT / "docs" / "plans.json"
DOCUMENT = machine.ROOT / "docs" / "planning.md"
# Tokens of a row whose logits are computed together.
_CHUNK = 2048
# What maxtext's rematerialisation "minimal" keeps: the results of all linear layers.
_PRODUCTS = ("query", "key", "value", "out", "gate", "up")
# What a share is without a calibration, and how much it costs one to differ from it.
_ASSUMED, _PULL = (0.8, 0.8, 0.8, 0.5), 0.02
# What the recipes for v6e keep for the gradient, in the memory of the host.
_OFFLOADED = ("input", "query", "key", "value", "out")
_RECIPES = "AI-Hypercomputer/tpu-recipes, training/trillium"
_MAXTEXT = "AI-Hypercomputer/maxtext, README.md and MaxText/configs"


@dataclasses.dataclass(frozen=True)
class Decoder:
    """The shape of a decoder-only transformer with gated layers and grouped heads (Llama).

    Attributes:
        layers: number of blocks.
        width: of the residual stream.
        heads: of the queries.
        groups: heads of the keys and values.
        hidden: width of the gated layers.
        vocabulary: number of tokens.
        head: width of a head.
    """

    layers: int
    width: int
    heads: int
    groups: int
    hidden: int
    vocabulary: int
    head: int = 128

    @property
    def parameters(self) -> int:
        """Number of parameters in products."""
        attention = self.width * self.head * 2 * (self.heads + self.groups)
        block = attention + 3 * self.width * self.hidden
        return self.layers * block + self.vocabulary * self.width


LLAMA_8B = Decoder(32, 4096, 32, 8, 14336, 128256)
LLAMA_70B = Decoder(80, 8192, 64, 8, 28672, 128256)
MISTRAL_7B = Decoder(32, 4096, 32, 8, 14336, 32000)
# maxtext scales its base of 16 layers, width 2048, 16 heads and 7168 hidden features.
MAXTEXT_16B = Decoder(32, 4096, 64, 64, 28672, 32000)
MAXTEXT_32B = Decoder(32, 8192, 64, 64, 28672, 32000)
MAXTEXT_64B = Decoder(64, 8192, 64, 64, 28672, 32000)


@dataclasses.dataclass(frozen=True)
class Published:
    """A measured step.

    Attributes:
        shape: the model.
        topology: the chips.
        rows: of the batch, for each chip.
        length: tokens of a row.
        source: where it was published.
        seconds: the time of a step; 0 if ``mfu`` is given instead.
        mfu: the share of the chips' peak.
        tensor: devices along the mesh axis ``tensor``; the others lie along ``fsdp``.
        kept: what the gradient keeps of a layer besides its input; the rest is computed again.
        offloaded: what it keeps in the memory of the host.
        tile: tokens that the attention kernel takes at a time.
        calibrates: whether the estimate's constants may be chosen with it.
    """

    shape: Decoder
    topology: str
    rows: int
    length: int
    source: str
    seconds: float = 0.0
    mfu: float = 0.0
    tensor: int = 1
    kept: tuple[str, ...] = ()
    offloaded: tuple[str, ...] = ()
    tile: int = 512
    calibrates: bool = False

    def measured(self, chips: int, peak: float) -> float:
        """Returns the seconds of a step."""
        if self.seconds:
            return self.seconds
        tokens = self.rows * self.length * chips
        attention = 12 * self.shape.layers * self.length * self.shape.heads * self.shape.head
        return tokens * (6 * self.shape.parameters + attention) / (self.mfu * peak * chips)


STEPS: Mapping[str, Published] = {
    "llama-8b": Published(
        LLAMA_8B, "v6e:2x4", 3, 8192, _RECIPES, 3.443, offloaded=_OFFLOADED, tile=2048,
        calibrates=True,
    ),
    "mistral-7b": Published(
        MISTRAL_7B, "v6e:2x4", 6, 8192, _RECIPES, 6.320, offloaded=_OFFLOADED, tile=2048
    ),
    "llama-8b-256": Published(
        LLAMA_8B, "v6e:16x16", 4, 8192, _RECIPES, 4.546, offloaded=_OFFLOADED, tile=2048
    ),
    "llama-70b-256": Published(
        LLAMA_70B, "v6e:16x16", 5, 8192, _RECIPES, 42.656, offloaded=_OFFLOADED[:4], tile=2048,
        calibrates=True,
    ),
    "16b-256": Published(MAXTEXT_16B, "v5e:16x16", 6, 2048, _MAXTEXT, mfu=0.611, calibrates=True),
    "32b-256": Published(MAXTEXT_32B, "v5e:16x16", 4, 2048, _MAXTEXT, mfu=0.669),
    "64b-256": Published(MAXTEXT_64B, "v5e:16x16", 2, 2048, _MAXTEXT, mfu=0.599),
    "32b-64": Published(
        MAXTEXT_32B, "v5p:4x4x4", 6, 2048, _MAXTEXT, mfu=0.715, tensor=4, kept=_PRODUCTS,
        calibrates=True,
    ),
}  # fmt: skip


def predict(published: Published) -> dict[str, Any]:
    """Compiles a step for its slice and returns what is predicted."""
    slice_ = find_slice(published.topology)
    chips = len(slice_.devices)
    mesh = make_mesh(1, -1, published.tensor, devices=slice_.devices)
    optimizer = optax.adamw(1e-4)
    step = make_train_step(
        functools.partial(_loss, published, mesh), optimizer, precision="bfloat16"
    )
    shapes = jax.eval_shape(lambda: _parameters(published.shape))
    # Layers lie in one array, so a pattern names the last two axes.
    placement, _ = placement_of(_AXES, shapes, mesh)
    layout = Layout(mesh, placement)
    state = jax.eval_shape(
        lambda: create_state({"params": _parameters(published.shape)}, optimizer, jax.random.key(0))
    )
    tokens = jax.ShapeDtypeStruct((published.rows * chips, published.length + 1), jnp.int32)
    batch = {"tokens": tokens}
    begin = time.perf_counter()
    arrays = loop.abstract_arrays(state, step, batch, layout)
    training = loop.Training(**arrays, progress=loop.Progress())
    with programs.written_by_compiler("tpu") as (options, _):
        # Tiles of 2,048 tokens need more of a core's own memory than a kernel has by default.
        options |= {"xla_tpu_scoped_vmem_limit_kib": 98304} if published.tile > 512 else {}
        text, held = programs.scheduled(
            lambda: loop.compile_train_step(step, training, batch, layout, **options), options
        )
    done = programs.executions(programs.parse(text), chips)
    placed = dataclasses.replace(slice_, devices=list(mesh.devices.flat))
    work = roofline.work_of(done, placed, kernel_flops=_attention(published))
    return {
        "measured": published.measured(chips, slice_.chip.flops),
        "work": dataclasses.asdict(work),
        "collective_bytes": done.collective_bytes(),
        "gib": held / 2**30,
        "counted": count_flops(step, state, batch, platform="tpu"),
        "compile_seconds": time.perf_counter() - begin,
        "date": machine.today(),
    }


_AXES = (
    (r"(query|key|value)$", ("embed", "attention")),
    (r"out$", ("attention", "embed")),
    (r"(gate|up)$", ("embed", "hidden")),
    (r"down$", ("hidden", "embed")),
    (r"tokens$", ("vocab", "embed")),
    (r"output$", ("embed", "vocab")),
)


def _parameters(shape: Decoder) -> dict[str, Any]:
    layers, width, head = shape.layers, shape.width, shape.head
    sizes = {
        "query": (width, shape.heads * head), "key": (width, shape.groups * head),
        "value": (width, shape.groups * head), "out": (shape.heads * head, width),
        "gate": (width, shape.hidden), "up": (width, shape.hidden), "down": (shape.hidden, width),
        "norm_1": (width,), "norm_2": (width,),
    }  # fmt: skip
    return {
        "tokens": jnp.zeros((shape.vocabulary, width)),
        "blocks": {name: jnp.zeros((layers, *size)) for name, size in sizes.items()},
        "norm": jnp.zeros(width),
        "output": jnp.zeros((width, shape.vocabulary)),
    }


def _loss(
    published: Published, mesh: Any, params: Any, model_state: Any, batch: Any, key: Any
) -> Any:
    shape = published.shape
    tokens, targets = batch["tokens"][:, :-1], batch["tokens"][:, 1:]
    x = constrain(params["tokens"].at[tokens].get(), "batch", None, None)

    kept = jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=published.kept, names_which_can_be_offloaded=published.offloaded,
        offload_src="device", offload_dst="pinned_host",
    )  # fmt: skip

    @functools.partial(jax.checkpoint, policy=kept)
    def block(x: Any, weights: Any) -> tuple[Any, None]:
        x = checkpoint_name(x, "input")
        y = _normalised(x, weights["norm_1"])
        query, keys, values = (
            (y @ weights[name]).reshape(*y.shape[:2], -1, shape.head)
            for name in ("query", "key", "value")
        )
        query = checkpoint_name(_rotated(query), "query")
        keys, values = checkpoint_name(_rotated(keys), "key"), checkpoint_name(values, "value")
        mixed = _attend(mesh, query, keys, values, published.tile)
        # Between layers, features lie on the chips of ``tensor``, as in maxtext.
        out = constrain(mixed.reshape(*y.shape[:2], -1) @ weights["out"], "batch", None, "hidden")
        x = x + checkpoint_name(out, "out")
        y = _normalised(x, weights["norm_2"])
        gate, up = (checkpoint_name(y @ weights[name], name) for name in ("gate", "up"))
        x = x + (jax.nn.silu(gate) * up) @ weights["down"]
        return constrain(x, "batch", None, "hidden"), None

    x, _ = jax.lax.scan(block, x, params["blocks"])
    x = _normalised(x, params["norm"])

    @jax.checkpoint
    def part(total: Any, piece: Any) -> tuple[Any, None]:
        features, labels = piece
        logits = (features @ params["output"]).astype(jnp.float32)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return total + losses.sum(), None

    pieces = jax.tree.map(_in_chunks, (x, targets))
    total, _ = jax.lax.scan(part, jnp.float32(0), pieces)
    return total, (jnp.float32(targets.size), model_state, {})


def _in_chunks(x: Any) -> Any:
    count = max(1, x.shape[1] // _CHUNK)
    return jnp.moveaxis(x.reshape(x.shape[0], count, -1, *x.shape[2:]), 1, 0)


def _normalised(x: Any, scale: Any) -> Any:
    wide = x.astype(jnp.float32)
    wide = wide * jax.lax.rsqrt((wide**2).mean(axis=-1, keepdims=True) + 1e-5)
    return wide.astype(x.dtype) * (1 + scale)


def _rotated(x: Any) -> Any:
    half = x.shape[-1] // 2
    angles = jnp.arange(x.shape[1])[:, None] * 10000 ** (-jnp.arange(half) / half)
    cosine, sine = (f(angles)[:, None].astype(x.dtype) for f in (jnp.cos, jnp.sin))
    left, right = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([left * cosine - right * sine, right * cosine + left * sine], axis=-1)


def _attend(mesh: Any, query: Any, keys: Any, values: Any, tile: int) -> Any:
    """Returns causal attention by jax's own kernel, each device with rows and heads of its own."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
    from jax.sharding import PartitionSpec

    length, tensor = query.shape[1], mesh.shape["tensor"]
    heads, size = query.shape[2] // tensor, min(tile, length)
    repeats = query.shape[2] // keys.shape[2]
    keys, values = (jnp.repeat(x, repeats, axis=2) for x in (keys, values))
    sizes: dict[str, Any] = {"block_q_dq": size, "block_kv_dq": size}
    if tile > 512:
        sizes = {"use_fused_bwd_kernel": True}
    blocks = splash.BlockSizes(
        size, size, size, block_q_dkv=size, block_kv_dkv=size, block_kv_dkv_compute=size, **sizes
    )

    def on_one(query: Any, keys: Any, values: Any) -> Any:
        mask = masks.MultiHeadMask([masks.CausalMask((length, length))] * heads)
        kernel = splash.make_splash_mha(mask, block_sizes=blocks, head_shards=1, q_seq_shards=1)
        first = (jnp.swapaxes(x, 1, 2) for x in (query / shape_root, keys, values))
        return jnp.swapaxes(jax.vmap(kernel)(*first), 1, 2)

    shape_root = query.shape[-1] ** 0.5
    spec = PartitionSpec(("data", "fsdp"), None, "tensor", None)
    divided = jax.shard_map(
        on_one, mesh=mesh, in_specs=(spec,) * 3, out_specs=spec, check_vma=False
    )
    return divided(query, keys, values)


def _attention(published: Published) -> float:
    """Returns the operations of the attention kernels on a chip.

    Two products forward, and again for the gradient; then five in one kernel, or seven in two that
    both compute the weights anew. Tiles above the diagonal are left out.
    """
    shape, length = published.shape, published.length
    tiles = length // min(published.tile, length)
    below = (tiles + 1) / (2 * tiles)
    product = 2 * published.rows * length**2 * shape.heads * shape.head * below
    return shape.layers * (2 + 2 + (5 if published.tile > 512 else 7)) * product


def predicted(found: Mapping[str, Any], chip: Chip, shares: roofline.Shares) -> float:
    """Returns the seconds of a step that ``predict`` compiled."""
    return roofline.estimate(roofline.Work(**found["work"]), chip, shares).seconds


def calibrated(results: Mapping[str, Any]) -> roofline.Shares:
    """Returns the shares, on a grid, with which the steps that calibrate are met best.

    Best is the smallest sum of squared logarithms of predicted over measured. What these steps
    hardly depend on stays near what would be assumed without them (``_ASSUMED``).
    """
    steps = [
        (CHIPS[one.topology[:3]], roofline.Work(**results[name]["work"]), results[name]["measured"])
        for name, one in STEPS.items()
        if one.calibrates
    ]

    def cost(shares: roofline.Shares) -> float:
        off = [roofline.estimate(work, chip, shares).seconds / took for chip, work, took in steps]
        pairs = zip(dataclasses.astuple(shares), _ASSUMED, strict=True)
        far = sum(math.log(share / assumed) ** 2 for share, assumed in pairs)
        return sum(math.log(ratio) ** 2 for ratio in off) + _PULL * far

    usual = [round(0.05 * step, 2) for step in range(8, 21)]
    grid = itertools.product(usual, usual, usual, [round(0.1 * step, 1) for step in range(2, 11)])
    return min((roofline.Shares(*each) for each in grid), key=cost)


def as_markdown(results: Mapping[str, Any]) -> str:
    """Lays out the predicted and measured times."""
    header = ("step", "chips", "batch", "measured", "predicted", "ratio", "")
    rows = []
    for name, published in STEPS.items():
        if name not in results:
            continue
        found = results[name]
        seconds = predicted(found, CHIPS[published.topology[:3]], roofline.Shares())
        rows.append(
            (
                name,
                published.topology,
                f"{published.rows} x {published.length} a chip",
                f"{found['measured']:.3g} s",
                f"{seconds:.3g} s",
                f"{seconds / found['measured']:.2f}",
                "calibrates" if published.calibrates else "",
            )
        )
    return tables.markdown(header, rows)


def main() -> None:
    """Predicts what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plans", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--only", choices=STEPS, help="one step")
    parser.add_argument("--tables", action="store_true", help="compile nothing")
    parser.add_argument("--here", action="store_true", help="print --only alone, as JSON")
    options = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    if options.here:
        machine.answer(predict(STEPS[options.only]))
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    for name in STEPS:
        wanted = name == options.only if options.only else name not in results
        if options.tables or not wanted:
            continue
        # The compiler goes on in a process that ends once its program is known.
        results[name] = machine.run_for_json(["-m", "benchmarks.plans", "--here", f"--only={name}"])
        print(name, {**results[name], "work": ...}, flush=True)
        RESULTS.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    tables.write_between(DOCUMENT, "plans", as_markdown(results))


if __name__ == "__main__":
    main()
