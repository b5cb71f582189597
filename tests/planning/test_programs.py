import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from zoo.planning import programs
from zoo.planning.programs import Array

ROWS, WIDTH, LAYERS = 64, 32, 5


def read(function, *arguments, devices=1):
    return programs.executions(
        programs.parse(jax.jit(function).lower(*arguments).compile().as_text()), devices
    )


def spread(shape, *axes, mesh):
    return jax.ShapeDtypeStruct(
        shape, jnp.float32, sharding=NamedSharding(mesh, PartitionSpec(*axes))
    )


def scanned(x, weights):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0]


def test_a_loop_counts_as_often_as_it_runs():
    x, weights = jnp.ones((ROWS, WIDTH)), jnp.ones((LAYERS, WIDTH, WIDTH))
    done = read(scanned, x, weights)
    assert done.flops == LAYERS * 2 * ROWS * WIDTH * WIDTH
    assert done.unknown_loops == 0


def test_trip_counts_without_the_compilers_note():
    # The compiler for TPUs notes none: they are read from the counter.
    x, weights = jnp.ones((ROWS, WIDTH)), jnp.ones((LAYERS, WIDTH, WIDTH))
    text = jax.jit(scanned).lower(x, weights).compile().as_text()
    assert "known_trip_count" in text
    done = programs.executions(programs.parse(text.replace("known_trip_count", "hidden")), 1)
    assert done.flops == LAYERS * 2 * ROWS * WIDTH * WIDTH
    assert done.unknown_loops == 0


def test_a_loop_of_unknown_length_is_reported():
    def halved(x):
        return jax.lax.while_loop(lambda x: x.sum() > 1, lambda x: x / 2, x)

    assert read(halved, jnp.ones(8)).unknown_loops == 1


def test_elementwise_work_moves_what_it_reads_and_writes():
    n = 4096
    done = read(lambda x, y: jnp.tanh(x) * y + 1, jnp.ones(n), jnp.ones(n))
    assert done.flops == 0
    assert done.bytes == 3 * 4 * n


def test_a_slice_of_a_large_array_moves_only_the_slice():
    done = read(lambda x, i: jax.lax.dynamic_slice(x, (i, 0), (1, WIDTH)) + 1,
                jnp.ones((1000, WIDTH)), jnp.int32(3))  # fmt: skip
    assert done.bytes < 10 * WIDTH * 4


def test_a_slice_in_a_fusion_within_a_fusion_moves_only_the_slice():
    # As the compiler for TPUs writes what a loop takes of a stacked array.
    text = """%inner (p: f32[32,64,64], i: s32[]) -> f32[64,64] {
  %p = f32[32,64,64] parameter(0)
  %i = s32[] parameter(1)
  %s = f32[1,64,64] dynamic-slice(%p, %i), dynamic_slice_sizes={1,64,64}
  ROOT %b = f32[64,64] bitcast(%s)
}
%outer (p.1: f32[32,64,64], i.1: s32[], x.1: f32[64,64]) -> f32[64,64] {
  %p.1 = f32[32,64,64] parameter(0)
  %i.1 = s32[] parameter(1)
  %x.1 = f32[64,64] parameter(2)
  %f.1 = f32[64,64] fusion(%p.1, %i.1), kind=kLoop, calls=%inner
  ROOT %d.1 = f32[64,64] dot(%f.1, %x.1), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}
ENTRY %main (a: f32[32,64,64], n: s32[], x: f32[64,64]) -> f32[64,64] {
  %a = f32[32,64,64] parameter(0)
  %n = s32[] parameter(1)
  %x = f32[64,64] parameter(2)
  ROOT %r = f32[64,64] fusion(%a, %n, %x), kind=kOutput, calls=%outer
}"""
    done = programs.executions(programs.parse(text), 1)
    assert done.flops == 2 * 64**3
    # The slice, the other factor, the product and the index.
    assert done.bytes == 3 * 64 * 64 * 4 + 4


def test_a_kernel_that_writes_its_notes_in_lines_of_their_own():
    text = """ENTRY %main (a: f32[8,128]) -> f32[8,128] {
  %a = f32[8,128] parameter(0)
  %k = f32[8,128] custom-call(%a), custom_call_target="tpu_custom_call", notes={kernel_metadata={
"xprof_metadata":"{\\"block\\": 512}"
}}, metadata={op_name="kernel"}
  ROOT %t = f32[8,128] tanh(%k)
}"""
    done = programs.executions(programs.parse(text), 1)
    assert done.has_kernels
    assert done.bytes == 4 * 8 * 128 * 4
    told = text.replace("metadata={op", 'backend_config={"cost_estimate":{"flops":"77"}}, m={op')
    done = programs.executions(programs.parse(told), 1)
    assert (done.flops, done.has_kernels) == (77, False)


@pytest.mark.parametrize("sizes", [(8, 1), (1, 8), (4, 2)])
def test_collectives_of_a_gradient_by_their_closed_forms(sizes):
    mesh = Mesh(np.array(jax.devices()).reshape(sizes), ("data", "model"))

    def gradient(weights, x):
        return jax.grad(lambda w: ((x @ w) ** 2).sum())(weights)

    weights = spread((WIDTH, WIDTH), "model", mesh=mesh)
    x = spread((ROWS, WIDTH), ("data", "model"), mesh=mesh)
    made = jax.jit(gradient, out_shardings=weights.sharding).lower(weights, x).compile()
    done = programs.executions(programs.parse(made.as_text()), 8)
    sent = done.collective_bytes()
    assert done.flops == 2 * 2 * ROWS / 8 * WIDTH * WIDTH
    # The weights are gathered once along ``model``; the gradient is summed over all devices.
    assert sent.get("all-gather", 0) == (WIDTH * WIDTH * 4 if sizes[1] > 1 else 0)
    summed = sent.get("all-reduce", 0) + sent.get("reduce-scatter", 0)
    assert WIDTH * WIDTH * 4 <= summed <= WIDTH * WIDTH * 4 * 2


def test_a_collective_in_a_loop_counts_every_time():
    mesh = Mesh(np.array(jax.devices()), ("data",))
    x = spread((8, WIDTH), "data", mesh=mesh)

    def repeated(x):
        def body(x):
            return jax.lax.scan(lambda x, _: (jax.lax.psum(x, "data") / 8, None), x, length=LAYERS)[
                0
            ]

        spec = PartitionSpec("data")
        return jax.shard_map(body, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)(x)

    done = programs.executions(programs.parse(jax.jit(repeated).lower(x).compile().as_text()), 8)
    assert done.collective_bytes() == {"all-reduce": LAYERS * WIDTH * 4}


@pytest.mark.parametrize(
    ("attributes", "group"),
    [
        ("replica_groups={{0,2},{1,3}}", (0, 2)),
        ("replica_groups=[2,2]<=[4]", (0, 1)),
        ("replica_groups=[2,2]<=[2,2]T(1,0)", (0, 2)),
        ("replica_groups=mesh['x'=2,'y'=4] {'y'}", (0, 1, 2, 3)),
        ("replica_groups=mesh['x'=2,'y'=4] {'x'}", (0, 4)),
        ("replica_groups=mesh['x'=2,'y'=4] {'y':(2)2}", (0, 1)),
        ("replica_groups=mesh['x'=2,'y'=4] {'y':(1)2}", (0, 2)),
        ("source_target_pairs={{0,3},{1,2}}", (0, 3)),
        ("replica_groups={}", (0, 1, 2, 3, 4, 5, 6, 7)),
    ],
)  # fmt: skip
def test_groups_in_every_notation(attributes, group):
    assert programs.first_group(attributes, 8) == group


def test_a_convolution_that_stands_for_a_batch_of_products():
    # As the compiler for TPUs writes them: the batch is a window that meets one place at a time.
    text = """ENTRY %main (a: bf16[8,12,128,64], b: bf16[8,12,64,128]) -> f32[8,12,128,128] {
  %a = bf16[8,12,128,64]{3,2,1,0:T(8,128)(2,1)} parameter(0)
  %b = bf16[8,12,64,128]{3,2,1,0:T(8,128)(2,1)} parameter(1)
  ROOT %c = f32[8,12,128,128]{3,2,1,0:T(8,128)S(1)} convolution(%a, %b), \
window={size=8x12 stride=7x11 lhs_dilate=8x12}, dim_labels=01bf_01io->01bf
}"""
    done = programs.executions(programs.parse(text), 1)
    assert done.flops == 2 * 8 * 12 * 128 * 128 * 64
    # The result stays in the core's own memory.
    assert done.bytes == 2 * 2 * 8 * 12 * 128 * 64


def test_convolutions_count_as_the_jaxpr_does_without_padding():
    from zoo.flops import count_flops

    image, kernel = jnp.ones((2, 9, 9, 4)), jnp.ones((3, 3, 4, 6))

    def convolve(image, kernel):
        return jax.lax.conv_general_dilated(
            image, kernel, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    assert read(convolve, image, kernel).flops == count_flops(convolve, image, kernel)


def test_bytes_of_arrays():
    assert Array("bf16", (3, 5)).bytes == 30
    assert Array("s4", (3,)).bytes == 2
    assert Array("pred", ()).bytes == 1
    assert Array("f32", (8,), is_in_main_memory=False).moved == 0
