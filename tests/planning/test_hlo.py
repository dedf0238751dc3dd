"""Programs as XLA prints them: parsed whole, loops with their number of turns, groups with axes."""

import math

import jax
import jax.numpy as jnp
import pytest

from fst_jax.planning.collectives import participants
from fst_jax.planning.cost import cost_of
from fst_jax.planning.hlo import Instruction, parse, trips

MESH = {"data": 2, "fsdp": 4}

# As the TPU's compiler writes it: shapes with tiles and memory spaces, attributes over several
# lines, no note of the loop's turns, a product as a convolution whose window is mostly padding.
TPU = """HloModule step

%body (p: (s32[], bf16[64,2048,8,128])) -> (s32[], bf16[64,2048,8,128]) {
  %p = (s32[]{:T(128)}, bf16[64,2048,8,128]{3,1,2,0:T(8,128)(2,1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  %two = s32[]{:T(128)} constant(2)
  %next = s32[]{:T(128)} add(%i, %two), metadata={op_name="add (odd) name, index=3"}
  %x = bf16[64,2048,64,1]{2,1,0,3:T(8,128)(2,1)S(1)} constant({...})
  %w = bf16[8,128,64,1]{2,1,0,3:T(8,128)(2,1)} constant({...})
  %y = bf16[64,2048,8,128]{3,1,2,0:T(8,128)(2,1)} convolution(%x, %w), window={size=1x8 pad=0_0x7_7 rhs_reversal=0x1}, dim_labels=0bf1_1oi0->0b1f
  ROOT %out = (s32[]{:T(128)}, bf16[64,2048,8,128]{3,1,2,0:T(8,128)(2,1)}) tuple(%next, /*index=1*/%y)
}

%condition (q: (s32[], bf16[64,2048,8,128])) -> pred[] {
  %q = (s32[]{:T(128)}, bf16[64,2048,8,128]{3,1,2,0:T(8,128)(2,1)}) parameter(0)
  %bound = s32[]{:T(128)} constant(36)
  %j = s32[]{:T(128)} get-tuple-element(%q), index=0
  ROOT %more = pred[]{:T(512)} compare(%j, %bound), direction=LT
}

ENTRY %main (a: bf16[64,2048,8,128], q: bf16[32,256,128], k: bf16[8,512,128]) -> bf16[64,2048,8,128] {
  %a = bf16[64,2048,8,128]{3,1,2,0:T(8,128)(2,1)} parameter(0)
  %q.1 = bf16[32,256,128]{2,1,0:T(8,128)(2,1)} parameter(1)
  %k.1 = bf16[8,512,128]{2,1,0:T(8,128)(2,1)} parameter(2)
  %blocks = s8[1,1,1]{2,1,0} constant({...})
  %start = s32[]{:T(128)} constant(4)
  %init = (s32[]{:T(128)}, bf16[64,2048,8,128]{3,1,2,0:T(8,128)(2,1)}) tuple(%start, %a)
  %loop = (s32[]{:T(128)}, bf16[64,2048,8,128]{3,1,2,0:T(8,128)(2,1)}) while(%init), condition=%condition, body=%body
  %splash_mha_dkv_segmented.1 = (f32[512,128]{1,0}, bf16[8,512,128]{2,1,0}) custom-call(%blocks, %q.1, %k.1), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"xprof": "{calls=%nothing}"
}}, backend_config={"custom_call_config":{"body":"abc="}}
  ROOT %result = bf16[64,2048,8,128]{3,1,2,0:T(8,128)(2,1)} get-tuple-element(%loop), index=1
}
"""  # noqa: E501


def test_a_tpu_program_is_read_whole():
    program = parse(TPU)
    main, body = program[program.entry], program["body"]
    assert [x.opcode for x in main][-3:] == ["while", "custom-call", "get-tuple-element"]
    assert main["loop"].called("body", "condition") == ["condition", "body"][::-1]
    assert body["x"].shapes[0].dims == (64, 2048, 64, 1)
    assert body["x"].shapes[0].device_bytes == 0  # it lies in the chip's own memory
    assert body["y"].shapes[0].device_bytes == 2 * 64 * 2048 * 8 * 128
    assert [shape.dims for shape in body["out"].shapes] == [(), (64, 2048, 8, 128)]
    assert body["next"].operands == ("i", "two")


def test_its_loops_convolutions_and_kernels_are_counted():
    program = parse(TPU)
    main = program[program.entry]
    turns = trips(program, main, main["loop"])
    assert turns == 16  # 4, 6, … 34
    product = 2 * (64 * 2048) * 64 * (8 * 128)  # the window meets an input once for each output
    kernel = 4 * 2 * 32 * 256 * 512 * 128
    cost = cost_of(program, MESH)
    assert cost.flops == turns * product + kernel
    assert cost_of(program, MESH, density=0.25).flops == turns * product + kernel / 4
    assert cost.unknown_loops == 0


def scanned(x: jax.Array, kernels: jax.Array) -> jax.Array:
    return jax.lax.scan(lambda x, kernel: (jnp.tanh(x @ kernel), None), x, kernels)[0]


def unrolled(x: jax.Array, kernels: jax.Array) -> jax.Array:
    for i in range(kernels.shape[0]):
        x = jnp.tanh(x @ kernels[i])
    return x


def test_a_scan_counts_as_often_as_it_runs():
    """Forwards and backwards, as XLA's own count of the unrolled program has it."""
    x, kernels = jnp.ones((32, 64)), jnp.ones((7, 64, 64))

    def compiled(layers):
        loss = jax.grad(lambda x, kernels: layers(x, kernels).sum(), argnums=(0, 1))
        return jax.jit(loss).lower(x, kernels).compile()

    loop, flat = compiled(scanned), compiled(unrolled)
    wanted = 7 * 3 * 2 * 32 * 64 * 64
    assert cost_of(parse(loop.as_text()), MESH).flops == wanted
    assert cost_of(parse(flat.as_text()), MESH).flops == wanted
    # XLA adds elementwise work, and counts the loop's body once.
    assert flat.cost_analysis()["flops"] == pytest.approx(wanted, rel=0.05)
    assert loop.cost_analysis()["flops"] < wanted / 3


def test_a_scan_moves_what_its_slices_are():
    """Each layer reads its own kernel, not the stack of all."""
    x, kernels = jnp.ones((8, 256)), jnp.ones((40, 256, 256))
    program = parse(jax.jit(scanned).lower(x, kernels).compile().as_text())
    stack = kernels.size * 4
    assert stack <= cost_of(program, MESH).traffic < 4 * stack


def test_a_loop_that_depends_on_data_is_told():
    def halve(x):
        return jax.lax.while_loop(lambda x: jnp.all(x > 1), lambda x: x @ x / 9, x)

    program = parse(jax.jit(halve).lower(jnp.ones((4, 4))).compile().as_text())
    cost = cost_of(program, MESH, unknown_trips=5)
    assert cost.unknown_loops == 1 and cost.flops == 5 * 2 * 4**3


@pytest.mark.parametrize(
    "groups, axes, size",
    [
        ("{{0,1,2,3},{4,5,6,7}}", ("fsdp",), 4),
        ("{{0,4},{1,5},{2,6},{3,7}}", ("data",), 2),
        ("{{0,1,2,3,4,5,6,7}}", ("data", "fsdp"), 8),
        ("{}", ("data", "fsdp"), 8),
        ("{{0},{1},{2},{3},{4},{5},{6},{7}}", (), 1),
        ("[2,4]<=[8]", ("fsdp",), 4),
        ("[4,2]<=[2,4]T(1,0)", ("data",), 2),
        ("mesh['axis_0'=2,'axis_1'=4] {'axis_1'}", ("fsdp",), 4),
        ("mesh['a'=8,'b'=1] {'a'}", ("data", "fsdp"), 8),
        ("mesh['a'=8] {'a':(1)2}", ("data",), 2),
        ("mesh['a'=8] {'a':(2)4}", ("fsdp",), 4),
        ("mesh['a'=2,'b'=4], device_ids=([8]<=[4,2]T(1,0)) {'b'}", ("data", "fsdp"), 4),
    ],
)
def test_groups_are_told_by_mesh_axes(groups, axes, size):
    text = f", channel_id=1, replica_groups={groups}, use_global_device_ids=true"
    instruction = Instruction("x", (), "all-reduce", (), "", text)
    assert participants(instruction, MESH) == (axes, size, 1.0)


def test_a_permutation_counts_those_who_send():
    text = ", channel_id=1, source_target_pairs={{0,1},{1,2},{2,3},{4,5},{5,6},{6,7}}"
    instruction = Instruction("x", (), "collective-permute", (), "", text)
    axes, _, share = participants(instruction, MESH)
    assert axes == ("fsdp",) and math.isclose(share, 6 / 8)
