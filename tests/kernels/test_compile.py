"""The kernels compile for real GPUs, which takes no GPU: in shared memory that each has, on its tensor cores."""

import json
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="the kernels need Triton")

SHARED_BYTES = {
    80: 166_912,
    89: 101_376,
    90: 232_448,
}  # of one block: CUDA C++ Programming Guide, table of capabilities

# In a process of its own, since here the kernels are defined for the interpreter.
PROGRAM = """
import json, sys
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from gistnet.kernels import branch_attention as attention, head_losses
from gistnet.kernels.branch_attention import blocks_for

capability, head_dim = int(sys.argv[1]), int(sys.argv[2])
blocks = blocks_for(head_dim, 2)
cut = {"ROWS": 96, "LENGTH": 32, "HEAD_DIM": head_dim, "BLOCK_D": head_dim, "BLOCK_M": blocks.rows,
       "BLOCK_N": blocks.keys, "PRECISION": "ieee", "GOES_ON": True}
half = {"query", "key", "value", "out", "d_out", "d_key", "d_value", "gradient",
        "original", "replaced", "d_kl", "d_nll"}
single = {"out_before", "log_before", "log_denominator", "before", "kl", "nll_original", "nll_replaced"}
whole = {"tiles", "order", "low", "high"}

def compiled(kernel, constants, **options):
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    def kind(name):
        if name in constants: return "constexpr"
        if name in half: return "*bf16"
        if name in single: return "*fp32"
        if name in whole: return "*i32"
        return "*i64" if name == "targets" else "fp32" if name in ("scale", "softcap") else "i32"
    signature = {name: kind(name) for name in kernel.arg_names}
    constexprs = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(kernel.arg_names) if signature[name][0] == "*"}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constexprs, attrs=aligned)
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    ptx = made.asm["ptx"]
    return {"shared": made.metadata.shared, "tensor cores": "wgmma" in ptx or "mma.sync" in ptx}

options = {"num_warps": blocks.warps, "num_stages": blocks.stages}
kernels = (attention.forward_kernel, attention.query_gradient_kernel, attention.key_gradient_kernel)
made = {kernel.__name__: compiled(kernel, cut, **options) for kernel in kernels}
wanted = {"KL_WANTED": True, "NLL_WANTED": True, "CAPPED": True, "BLOCK": 4096}
made["losses_kernel"] = compiled(head_losses.losses_kernel, wanted, num_warps=8)
print(json.dumps(made))
"""


@pytest.mark.parametrize(("capability", "head_dim"), [(90, 64), (90, 128), (89, 64), (80, 128)])
def test_kernels_compile_for_gpus(capability, head_dim, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    command = [sys.executable, "-c", PROGRAM, str(capability), str(head_dim)]
    made = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert len(made) == 4
    for name, facts in made.items():
        assert facts["shared"] <= SHARED_BYTES[capability], name
        assert facts["tensor cores"] == (name != "losses_kernel"), name
