"""The Llama of the training script: the mathematics alone, with the tensor names of a Hugging Face checkpoint.

`Llama(shape)` maps token ids to logits; `save` and `load` speak the checkpoint format. The engine does not use this
file: it runs the saved checkpoint like any other, and a test compares the two.

Shapes: B rows, T tokens, H query heads, K kv heads, D head dim, E hidden, V vocab.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


@dataclass(frozen=True)
class Shape:
    vocab: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    context: int = 2048
    theta: float = 10_000.0
    eps: float = 1e-6


VOCAB = 2048
MODEL = Shape(VOCAB, hidden=256, layers=5, heads=4, kv_heads=2, head_dim=64, ffn=640)  # 3.97 M parameters
DRAFT = Shape(VOCAB, hidden=128, layers=2, heads=2, kv_heads=2, head_dim=64, ffn=384)  # 0.69 M parameters


class Norm(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(shape.hidden))
        self.eps = shape.eps

    def forward(self, x: Tensor) -> Tensor:
        x32 = x.float()
        return self.weight * (x32 * torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + self.eps)).to(x.dtype)


def angles(length: int, shape: Shape, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos and sin of the rotary embedding, [T, D], in the half-rotation order of the checkpoint format."""
    inverse = shape.theta ** (-torch.arange(0, shape.head_dim, 2, device=device).float() / shape.head_dim)
    half = torch.outer(torch.arange(length, device=device).float(), inverse)
    full = torch.cat((half, half), dim=-1)
    return full.cos(), full.sin()


def rotate(x_BHTD: Tensor, cos_TD: Tensor, sin_TD: Tensor) -> Tensor:
    first, second = x_BHTD.chunk(2, dim=-1)
    return x_BHTD * cos_TD.to(x_BHTD.dtype) + torch.cat((-second, first), dim=-1) * sin_TD.to(x_BHTD.dtype)


class Attention(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        width, kv_width = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        self.q_proj = nn.Linear(shape.hidden, width, bias=False)
        self.k_proj = nn.Linear(shape.hidden, kv_width, bias=False)
        self.v_proj = nn.Linear(shape.hidden, kv_width, bias=False)
        self.o_proj = nn.Linear(width, shape.hidden, bias=False)

    def forward(self, x_BTE: Tensor, cos_TD: Tensor, sin_TD: Tensor) -> Tensor:
        B, T, _ = x_BTE.shape
        s = self.shape
        q_BHTD = self.q_proj(x_BTE).view(B, T, s.heads, s.head_dim).transpose(1, 2)
        k_BKTD = self.k_proj(x_BTE).view(B, T, s.kv_heads, s.head_dim).transpose(1, 2)
        v_BKTD = self.v_proj(x_BTE).view(B, T, s.kv_heads, s.head_dim).transpose(1, 2)
        q_BHTD, k_BKTD = rotate(q_BHTD, cos_TD, sin_TD), rotate(k_BKTD, cos_TD, sin_TD)
        k_BHTD = k_BKTD.repeat_interleave(s.heads // s.kv_heads, dim=1)
        v_BHTD = v_BKTD.repeat_interleave(s.heads // s.kv_heads, dim=1)
        mixed_BHTD = F.scaled_dot_product_attention(q_BHTD, k_BHTD, v_BHTD, is_causal=True)
        out_BTE: Tensor = self.o_proj(mixed_BHTD.transpose(1, 2).reshape(B, T, -1))
        return out_BTE


class Mlp(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden, shape.ffn, bias=False)
        self.up_proj = nn.Linear(shape.hidden, shape.ffn, bias=False)
        self.down_proj = nn.Linear(shape.ffn, shape.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Layer(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.input_layernorm = Norm(shape)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = Norm(shape)
        self.mlp = Mlp(shape)

    def forward(self, x: Tensor, cos_TD: Tensor, sin_TD: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos_TD, sin_TD)
        x = x + self.mlp(self.post_attention_layernorm(x))
        return x


class Body(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocab, shape.hidden)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = Norm(shape)


class Llama(nn.Module):
    """Logits of every position. The output matrix is the embedding."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.model = Body(shape)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                into_residual = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(weight, std=0.02 / (2 * shape.layers) ** 0.5 if into_residual else 0.02)

    def forward(self, ids_BT: Tensor) -> Tensor:
        cos_TD, sin_TD = angles(ids_BT.shape[1], self.shape, ids_BT.device)
        x_BTE = self.model.embed_tokens(ids_BT)
        for layer in self.model.layers:
            x_BTE = layer(x_BTE, cos_TD, sin_TD)
        return F.linear(self.model.norm(x_BTE), self.model.embed_tokens.weight)


def config(shape: Shape, stop: int, end: int) -> dict[str, object]:
    """The `config.json` of a Llama checkpoint. `stop` ends a chat turn, `end` ends a text."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "vocab_size": shape.vocab,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.ffn,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": shape.context,
        "rms_norm_eps": shape.eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": shape.theta},
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "initializer_range": 0.02,
        "bos_token_id": None,
        "eos_token_id": [stop, end],
        "pad_token_id": end,
        "use_cache": True,
    }


def save(net: Llama, folder: Path, settings: dict[str, object]) -> None:
    """Write `config.json` and the bf16 weights."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(settings, indent=2) + "\n")
    weights = {
        name: weight.detach().to("cpu", torch.bfloat16).contiguous() for name, weight in net.state_dict().items()
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def load(folder: Path) -> Llama:
    """The network of a folder that `save` wrote, in float32."""
    settings = json.loads((folder / "config.json").read_text())
    shape = Shape(
        vocab=settings["vocab_size"],
        hidden=settings["hidden_size"],
        layers=settings["num_hidden_layers"],
        heads=settings["num_attention_heads"],
        kv_heads=settings["num_key_value_heads"],
        head_dim=settings["head_dim"],
        ffn=settings["intermediate_size"],
        context=settings["max_position_embeddings"],
        theta=settings["rope_parameters"]["rope_theta"],
        eps=settings["rms_norm_eps"],
    )
    net = Llama(shape)
    net.load_state_dict({name: weight.float() for name, weight in load_file(folder / "model.safetensors").items()})
    return net
