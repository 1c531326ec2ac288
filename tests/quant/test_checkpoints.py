"""A checkpoint of each format computes what the numbers that it stands for compute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from octavo import LLM, SamplingParams
from octavo.core.errors import ModelError
from octavo.models.loader import load_model
from tests.builders import edit_config
from tests.quant import layouts
from tests.quant.layouts import make_pair

PROMPT = {"prompt_token_ids": list(range(40, 90))}


def config_group(weights: dict[str, Any], inputs: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"targets": ["Linear"], "weights": weights, "input_activations": inputs}


def compressed(layout: str, weights: dict[str, Any], inputs: dict[str, Any] | None = None) -> dict[str, Any]:
    groups = {"group_0": config_group(weights, inputs)}
    return {"quant_method": "compressed-tensors", "format": layout, "config_groups": groups, "ignore": ["lm_head"]}


def gptq(bits: int, group: int, version: str = "gptq") -> dict[str, Any]:
    return {"quant_method": "gptq", "bits": bits, "group_size": group, "checkpoint_format": version}


DYNAMIC_INT8 = {"num_bits": 8, "type": "int", "dynamic": True, "strategy": "token"}
DYNAMIC_FP8 = {"num_bits": 8, "type": "float", "dynamic": True, "strategy": "token"}
INT8 = {"num_bits": 8, "type": "int", "strategy": "channel"}
FP8 = {"num_bits": 8, "type": "float", "strategy": "channel"}
INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}
NF4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
STATIC = {"quant_method": "fp8", "activation_scheme": "static"}
BLOCKS = {"quant_method": "fp8", "weight_block_size": [64, 64]}
ROUND = {"quant_method": "auto-round", "bits": 4, "group_size": 32}

CASES = {
    "fp8-tensor-static": (layouts.fp8("tensor", "weight_scale", static=0.05), STATIC),
    "fp8-channel": (layouts.fp8("channel", "weight_scale"), {"quant_method": "fbgemm_fp8"}),
    "fp8-blocks": (layouts.fp8("block", "weight_scale_inv"), BLOCKS),
    "ct-w8a8-fp8": (layouts.fp8("channel", "weight_scale"), compressed("float-quantized", FP8, DYNAMIC_FP8)),
    "ct-w4a16": (layouts.pack_quantized(4, 32, True), compressed("pack-quantized", INT4)),
    "ct-w4a16-asym": (layouts.pack_quantized(4, 32, False), compressed("pack-quantized", INT4)),
    "ct-w4a16-order": (layouts.pack_quantized(4, 32, True, act_order=True), compressed("pack-quantized", INT4)),
    "ct-w8a16": (layouts.pack_quantized(8, -1, True), compressed("pack-quantized", INT8)),
    "gptq-2": (layouts.gptq(2, 32, False), gptq(2, 32)),
    "gptq-3": (layouts.gptq(3, 64, False), gptq(3, 64)),
    "gptq-4": (layouts.gptq(4, 32, True), gptq(4, 32)),
    "gptq-4-order": (layouts.gptq(4, 32, False, act_order=True), gptq(4, 32)),
    "gptq-4-whole": (layouts.gptq(4, -1, True), gptq(4, -1)),
    "gptq-8-v2": (layouts.gptq(8, 64, False, version=2), gptq(8, 64, "gptq_v2")),
    "awq": (layouts.awq(32), {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"}),
    "auto-round-gptq": (layouts.gptq(4, 32, True), {**ROUND, "packing_format": "auto_round:auto_gptq"}),
    "auto-round-awq": (layouts.awq(32), {**ROUND, "packing_format": "auto_round:auto_awq"}),
    "auto-round": (layouts.gptq(4, 32, False, version=2), {**ROUND, "packing_format": "auto_round"}),
    "nf4": (layouts.bits_and_bytes(), NF4),
    "nf4-nested": (layouts.bits_and_bytes(nested=True), NF4),
    "bnb-int8": (layouts.int8_rows("SCB", 127.0), {"quant_method": "bitsandbytes", "load_in_8bit": True}),
}  # fmt: skip


def logprobs(folder: Path, **config: Any) -> tuple[list[int], torch.Tensor]:
    """A greedy answer, and the log probabilities of the prompt's tokens."""
    llm = LLM(str(folder), dtype="float32", num_kv_blocks=64, **config)
    params = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True, prompt_logprobs=1)
    (output,) = llm.generate([PROMPT], params)
    told = output.prompt_logprobs
    ids = PROMPT["prompt_token_ids"]
    values = [float(getattr(told[i][ids[i]], "logprob", told[i][ids[i]])) for i in range(1, len(ids))]
    return list(output.outputs[0].token_ids), torch.tensor(values)


@pytest.mark.parametrize("case", CASES)
def test_formats(tmp_path: Path, case: str) -> None:
    layout, config = CASES[case]
    packed, plain = make_pair(tmp_path, layout, config)
    (answer, found), (expected_answer, expected) = logprobs(packed), logprobs(plain)
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=2e-4)
    assert answer == expected_answer


def test_rounded_activations(tmp_path: Path) -> None:
    """Rows of x are rounded to 8 bits: within what that costs."""
    packed, plain = make_pair(tmp_path, layouts.int8_rows(), compressed("int-quantized", INT8, DYNAMIC_INT8))
    (_, found), (_, expected) = logprobs(packed), logprobs(plain)
    assert not torch.equal(found, expected)
    assert (found - expected).abs().mean() < 0.06


@pytest.mark.parametrize("family", ["qwen2", "phi3", "deepseek_v3", "qwen3_moe"])
def test_families(tmp_path: Path, family: str) -> None:
    """Biases, fused tensors, latents and experts."""
    shape = {"num_key_value_heads": 4} if family == "deepseek_v3" else {}
    packed, plain = make_pair(
        tmp_path, layouts.fp8("channel", "weight_scale"), {"quant_method": "fp8"}, family, **shape
    )
    torch.testing.assert_close(logprobs(packed)[1], logprobs(plain)[1], atol=1e-3, rtol=1e-3)


def test_modules_that_a_format_left_alone(tmp_path: Path) -> None:
    """One of three parts of a fused layer is plain."""
    packed, plain = make_pair(tmp_path, *CASES["gptq-4"])
    name = "model.layers.0.self_attn.k_proj."
    stored, exact = load_file(packed / "model.safetensors"), load_file(plain / "model.safetensors")
    kept = {key: tensor for key, tensor in stored.items() if not key.startswith(name)}
    save_file({**kept, f"{name}weight": exact[f"{name}weight"]}, packed / "model.safetensors")
    assert len(load_model(packed).layers[0].attention.qkv.methods) in (0, 3)
    torch.testing.assert_close(logprobs(packed)[1], logprobs(plain)[1], atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("case", ["gptq-4", "fp8-channel", "nf4"])
def test_missing_and_left_over(tmp_path: Path, case: str) -> None:
    packed, _ = make_pair(tmp_path, *CASES[case])
    stored = load_file(packed / "model.safetensors")
    name = "model.layers.1.mlp.up_proj."
    first = next(key for key in stored if key.startswith(name) and "scale" in key or key.endswith("absmax"))
    save_file({key: tensor for key, tensor in stored.items() if key != first}, packed / "model.safetensors")
    with pytest.raises(ModelError, match=r"up_proj|proj"):
        load_model(packed)
    save_file({**stored, f"{name}strange": torch.zeros(1)}, packed / "model.safetensors")
    with pytest.raises(ModelError, match="strange has no place"):
        load_model(packed)


def test_zero_biases_that_gptq_adds(tmp_path: Path) -> None:
    packed, _ = make_pair(tmp_path, *CASES["gptq-4"])
    stored = load_file(packed / "model.safetensors")
    bias = "model.layers.0.mlp.up_proj.bias"
    save_file({**stored, bias: torch.zeros(256)}, packed / "model.safetensors")
    load_model(packed)
    save_file({**stored, bias: torch.ones(256)}, packed / "model.safetensors")
    with pytest.raises(ModelError, match="has no place"):
        load_model(packed)


@pytest.mark.parametrize(
    ("case", "change", "problem"),
    [
        ("gptq-4", {"bits": 5}, "bits must be one of"),
        ("gptq-4", {"group_size": 48}, "do not divide"),
        ("gptq-4", {"checkpoint_format": "marlin"}, "checkpoint_format must be"),
        ("awq", {"version": "gemv"}, "version must be gemm"),
        ("fp8-blocks", {"weight_block_size": [0, 64]}, "two positive integers"),
        ("auto-round", {"packing_format": "itrex"}, "packing_format"),
        ("ct-w4a16", {"format": "marlin-24"}, "format must be one of"),
        ("ct-w4a16", {"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparse"),
        ("ct-w4a16", {"config_groups": None}, "config_groups is missing"),
        ("nf4", {"load_in_4bit": False}, "must be true"),
        ("nf4", {"quant_method": "quark"}, "quantised"),
    ],
)
def test_refused(tmp_path: Path, case: str, change: dict[str, Any], problem: str) -> None:
    layout, config = CASES[case]
    packed, _ = make_pair(tmp_path, layout, config)
    edit_config(packed, quantization_config={**config, **change})
    with pytest.raises(ModelError, match=problem):
        load_model(packed)


@pytest.mark.parametrize(("method", "near"), [("fp8", 0.15), ("int8", 0.08), ("int4", 0.5)])
def test_online(tmp_path: Path, method: str, near: float) -> None:
    _, plain = make_pair(tmp_path, *CASES["gptq-8-v2"])
    (_, found), (_, expected) = logprobs(plain, quantization=method), logprobs(plain)
    assert not torch.equal(found, expected)
    assert (found - expected).abs().mean() < near


def test_online_of_a_quantised_checkpoint_is_refused(tmp_path: Path) -> None:
    packed, plain = make_pair(tmp_path, *CASES["gptq-4"])
    with pytest.raises(ModelError, match="quantised already"):
        load_model(packed, quantization="int8")
    for name in ("gptq", "gptq_marlin"):
        assert load_model(packed, quantization=name).layers[0].mlp.down.methods
    with pytest.raises(ModelError, match="must be one of fp8, int8, int4, got 'gptq'.* is plain"):
        load_model(plain, quantization="gptq")


def test_dummy_weights_are_quantised_too(tmp_path: Path) -> None:
    _, plain = make_pair(tmp_path, *CASES["gptq-4"])
    model = load_model(plain, load_format="dummy", quantization="int8")
    assert [method.name for method in model.layers[0].mlp.down.methods] == ["int8 x int8"]
    assert model.num_bytes < load_model(plain, load_format="dummy").num_bytes


def test_modules_with_bits_of_their_own(tmp_path: Path) -> None:
    """GPTQModel's `dynamic` and AutoRound's `extra_config`."""
    names = [f"model.layers.{layer}.{part}_proj" for layer in (0, 1) for part in ("mlp.gate", "mlp.up", "mlp.down")]
    four = layouts.gptq(4, 32, True)
    eight = layouts.gptq(8, 64, True)
    packed, plain = make_pair(tmp_path, four, gptq(4, 32))
    wide, wide_plain = make_pair(tmp_path, eight, gptq(8, 64))
    for folder, other in ((packed, wide), (plain, wide_plain)):
        stored, given = load_file(folder / "model.safetensors"), load_file(other / "model.safetensors")
        stored |= {key: tensor for key, tensor in given.items() if key.startswith(tuple(names))}
        save_file(stored, folder / "model.safetensors")
    expected = logprobs(plain)[1]
    own = {"bits": 8, "group_size": 64}
    configs = (
        {**gptq(4, 32), "dynamic": {"-:nothing": {}, r"+:.*\.mlp\..*": own}},
        {**ROUND, "packing_format": "auto_round:auto_gptq", "extra_config": dict.fromkeys(names, own)},
    )
    for config in configs:
        edit_config(packed, quantization_config=config)
        torch.testing.assert_close(logprobs(packed)[1], expected, atol=2e-4, rtol=2e-4)
    edit_config(packed, quantization_config=gptq(4, 32))
    with pytest.raises(ModelError, match=r"mlp\.\w+_proj"):
        load_model(packed)
