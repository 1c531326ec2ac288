from __future__ import annotations

from importlib import import_module

import pytest
import torch
from transformers.activations import ACT2FN

from octavo.layers.embedding import Embedding, LMHead
from octavo.layers.linear import Linear, MergedLinear, QKVLinear
from octavo.layers.mlp import ACTIVATIONS, MLP, GatedMLP
from octavo.layers.norm import LayerNorm, RMSNorm
from octavo.layers.qk_norm import FullQKNorm, HeadLayerNorm, QKNorm
from octavo.layers.rope import Rope

ON = (torch.float32, torch.device("cpu"))
HALVES = [torch.bfloat16, torch.float16]


def randomize(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.normal_() for name, tensor in tensors.items()}


@pytest.mark.parametrize("bias", [True, False])
def test_a_merged_linear_is_its_parts_side_by_side(bias: bool) -> None:
    layer = MergedLinear(8, (3, 5), bias, *ON)
    names = randomize(layer.names("a", "b"))
    assert set(names) == {"a.weight", "b.weight"} | ({"a.bias", "b.bias"} if bias else set())
    x = torch.randn(4, 8)
    parts = [torch.nn.functional.linear(x, names[f"{p}.weight"], names.get(f"{p}.bias")) for p in "ab"]
    torch.testing.assert_close(layer(x), torch.cat(parts, -1))


def test_a_name_for_every_part() -> None:
    with pytest.raises(ValueError, match="zip"):
        MergedLinear(8, (3, 5), False, *ON).names("a")


def test_qkv_shapes() -> None:
    names = QKVLinear(16, 6, 2, 4, True, *ON).names("q", "k", "v")
    assert {name: tuple(tensor.shape) for name, tensor in names.items()} == {
        "q.weight": (24, 16),
        "k.weight": (8, 16),
        "v.weight": (8, 16),
        "q.bias": (24,),
        "k.bias": (8,),
        "v.bias": (8,),
    }


@pytest.mark.parametrize("tokens", [1, 5, 5000])  # one, some, many: a CPU has its way for each
def test_the_norm_step_adds_then_normalizes(tokens: int) -> None:
    norm = RMSNorm(32, 1e-5, *ON)
    norm.weight_E.normal_()
    norm.finish()
    x, residual = (torch.randn(2, tokens, 32) * 1e-2).unbind()
    stream = x + residual
    expected = stream * torch.rsqrt(stream.pow(2).mean(-1, keepdim=True) + 1e-5) * norm.weight_E
    normed, new_stream = norm(x.clone(), residual)
    torch.testing.assert_close(normed, expected)
    torch.testing.assert_close(new_stream, stream)
    first, begun = norm(stream)
    torch.testing.assert_close(first, expected)
    assert begun is stream


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("tokens", [1, 3, 40])
def test_norms_do_their_sums_in_float32(dtype: torch.dtype, tokens: int) -> None:
    """Values whose squares overflow float16 and whose sum of squares loses digits in bfloat16."""
    norm = RMSNorm(4096, 1e-6, dtype, torch.device("cpu"))
    norm.finish()
    x = (torch.randn(tokens, 4096) * 1000).to(dtype)
    wide = x.double()
    expected = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
    torch.testing.assert_close(norm(x)[0], expected.to(dtype), rtol=2 * torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize("tokens", [1, 5, 5000])
def test_norms_that_round_once(dtype: torch.dtype, tokens: int) -> None:
    """Gemma's, whose weights are stored less one, and OLMo's: in transformers' very bits, or one rounding beside."""
    from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
    from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm

    x = torch.randn(tokens, 64).to(dtype)
    for reference, offset in ((Gemma2RMSNorm(64, 1e-6), 1.0), (Olmo2RMSNorm(64, 1e-6), 0.0)):
        norm = RMSNorm(64, 1e-6, dtype, torch.device("cpu"), wide=True, offset=offset)
        reference.weight.data = norm.weight_E.normal_().clone()
        norm.finish()
        expected = reference(x).detach()
        got = norm(x)[0]
        assert got.dtype == dtype
        torch.testing.assert_close(got, expected, rtol=torch.finfo(dtype).eps * 4, atol=1e-6)
        assert dtype == torch.float32 or (got == expected).float().mean() > 0.999


@pytest.mark.parametrize("tokens", [1, 5])
def test_a_scaled_residual_and_the_norm_after(tokens: int) -> None:
    norm = RMSNorm(32, 1e-5, *ON, scale=0.5)
    norm.weight_E.normal_()
    norm.finish()
    x, residual = torch.randn(2, tokens, 32).unbind()
    normed, stream = norm(x, residual.clone())
    torch.testing.assert_close(stream, residual + 0.5 * x)
    torch.testing.assert_close(normed, norm.norm(stream))
    torch.testing.assert_close(norm.add(x, residual.clone()), residual + 0.5 * norm.norm(x))


@pytest.mark.parametrize("bias", [True, False])
def test_the_layer_norm_step(bias: bool) -> None:
    norm = LayerNorm(32, 1e-5, bias, *ON, scale=0.5)
    names = randomize(norm.names("n"))
    assert set(names) == ({"n.weight", "n.bias"} if bias else {"n.weight"})
    x, residual = torch.randn(2, 3, 32).unbind()
    stream = residual + 0.5 * x
    expected = (stream - stream.mean(-1, keepdim=True)) / (stream.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    expected = expected * names["n.weight"] + names.get("n.bias", torch.zeros(32))
    normed, new_stream = norm(x, residual)
    torch.testing.assert_close(normed, expected)
    torch.testing.assert_close(new_stream, stream)
    assert norm(x)[1] is x


def test_qk_norm_over_all_heads_is_olmos() -> None:
    from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm

    norm = FullQKNorm((4, 2), 8, 1e-6, torch.bfloat16, torch.device("cpu"))
    names = randomize(norm.names("q", "k"))
    qkv = torch.randn(5, (4 + 2 + 2) * 8).bfloat16()
    expected = qkv.clone()
    for name, part in (("q.weight", slice(0, 32)), ("k.weight", slice(32, 48))):
        reference = Olmo2RMSNorm(part.stop - part.start, 1e-6)
        reference.weight.data = names[name].clone()
        expected[:, part] = reference(qkv[:, part])
    norm.finish()
    norm(qkv)
    torch.testing.assert_close(qkv, expected)


def test_qk_layer_norm_is_coheres() -> None:
    from transformers.models.cohere.modeling_cohere import CohereLayerNorm

    norm = HeadLayerNorm((4, 2), 8, 1e-5, torch.bfloat16, torch.device("cpu"))
    names = randomize(norm.names("q", "k"))
    qkv = torch.randn(5, (4 + 2 + 2) * 8).bfloat16()
    expected = qkv.clone().view(5, 8, 8)
    for name, part in (("q.weight", slice(0, 4)), ("k.weight", slice(4, 6))):
        reference = CohereLayerNorm((part.stop - part.start, 8), 1e-5)
        reference.weight.data = names[name].clone()
        expected[:, part] = reference(expected[:, part])
    norm.finish()
    norm(qkv)
    torch.testing.assert_close(qkv.view(5, 8, 8), expected)


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_qk_norm_is_a_norm_of_each_head(dtype: torch.dtype) -> None:
    from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

    norm = QKNorm((4, 2), 16, 1e-6, dtype, torch.device("cpu"))
    names = randomize(norm.names("q", "k"))
    norm.finish()
    qk = torch.randn(5, 6, 16).to(dtype)
    expected = []
    for heads, name in ((qk[:, :4], "q.weight"), (qk[:, 4:], "k.weight")):
        reference = Qwen3RMSNorm(16, 1e-6)
        reference.weight.data = names[name]
        expected.append(reference(heads))
    torch.testing.assert_close(norm(qk), torch.cat(expected, 1).detach())


@pytest.mark.parametrize("rotary_dim", [16, 8, 4])
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize("family", ["phi3", "glm4"])
def test_rotation_of_a_part_of_the_head(rotary_dim: int, dtype: torch.dtype, family: str) -> None:
    """Phi-3 and GLM-4 in transformers are the references: they rotate a part of the head, GLM-4 neighbours."""
    apply_rotary_pos_emb = import_module(f"transformers.models.{family}.modeling_{family}").apply_rotary_pos_emb
    frequencies = 1.0 / 10000 ** (torch.arange(0, rotary_dim, 2) / rotary_dim)
    rope = Rope(frequencies, 1.25, 16, 64, dtype, torch.device("cpu"), interleaved=family == "glm4")
    positions = torch.tensor([0, 63, 5, 5])
    angles = positions.float()[:, None] * torch.cat((frequencies, frequencies))
    cos, sin = (angles.cos() * 1.25).to(dtype), (angles.sin() * 1.25).to(dtype)
    qk = torch.randn(4, 5, 16).to(dtype)
    expected = torch.cat(apply_rotary_pos_emb(qk[:, :3], qk[:, 3:], cos, sin), 1)
    # Ours rounds once fewer: three roundings of values up to 1.25 * (|a| + |b|) bound the difference.
    tolerance = 3 * torch.finfo(dtype).eps * 2.5 * float(qk.abs().max())
    torch.testing.assert_close(rope(qk, rope.rows(positions)), expected, rtol=0, atol=tolerance)
    assert rotary_dim == 16 or torch.equal(expected[..., rotary_dim:], qk[..., rotary_dim:])


def test_rotation_keeps_lengths_and_depends_on_distance_only() -> None:
    frequencies = 1.0 / 10000 ** (torch.arange(0, 32, 2) / 32)
    rope = Rope(frequencies, 1.0, 32, 1000, torch.float64, torch.device("cpu"))
    q, k = torch.randn(2, 1, 1, 32, dtype=torch.float64).unbind()

    def score(i: int, j: int) -> torch.Tensor:
        a, b = rope(q, rope.rows(torch.tensor([i]))), rope(k, rope.rows(torch.tensor([j])))
        torch.testing.assert_close(a.norm(), q.norm(), rtol=1e-6, atol=0)
        return (a * b).sum()

    torch.testing.assert_close(score(7, 3), score(904, 900), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_mlps(activation: str) -> None:
    act = ACT2FN[{"gelu_tanh": "gelu_new", "relu_squared": "relu2"}.get(activation, activation)]
    at = {part: part for part in ("gate", "up", "down")}
    x = torch.randn(3, 8)
    for mlp in (GatedMLP(8, 12, activation, True, *ON), MLP(8, 12, activation, True, *ON)):
        names = randomize(mlp.names(at))
        up = x @ names["up.weight"].T + names["up.bias"]
        gated = isinstance(mlp, GatedMLP)
        inner = act(x @ names["gate.weight"].T + names["gate.bias"]) * up if gated else act(up)
        torch.testing.assert_close(mlp(x), inner @ names["down.weight"].T + names["down.bias"])


def test_a_checkpoint_may_hold_gate_and_up_as_one() -> None:
    names = GatedMLP(8, 12, "silu", True, *ON).names({"gate_up": "both", "down": "down"})
    shapes = {name: tuple(tensor.shape) for name, tensor in names.items()}
    assert shapes == {"both.weight": (24, 8), "both.bias": (24,), "down.weight": (8, 12), "down.bias": (8,)}


def test_an_embeddings_scale_is_rounded_first() -> None:
    embed = Embedding(4, 8, torch.bfloat16, torch.device("cpu"), 3072**0.5)
    embed.weight_VE.normal_()
    assert torch.equal(embed(torch.tensor([2])), embed.weight_VE[[2]] * 55.5)


def test_a_tied_head_is_the_embedding() -> None:
    embed = Embedding(50, 8, torch.bfloat16, torch.device("cpu"))
    embed.weight_VE.normal_()
    head = LMHead(50, 8, torch.bfloat16, torch.device("cpu"), embed)
    hidden = embed(torch.tensor([3, 49]))
    assert torch.equal(hidden, embed.weight_VE[[3, 49]])
    torch.testing.assert_close(head(hidden), hidden @ embed.weight_VE.T)
    head.finish()
    torch.testing.assert_close(head(hidden), hidden @ embed.weight_VE.T)
    assert embed.weight_VE.shape == (50, 8), "the embedding needs its matrix"
    own = LMHead(50, 8, torch.bfloat16, torch.device("cpu"), None)
    assert own.weight.data_ptr() != embed.weight_VE.data_ptr()


def test_linear_without_bias_names_none() -> None:
    assert set(Linear(2, 2, False, *ON).names("x")) == {"x.weight"}
