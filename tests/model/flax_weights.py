"""Weights of the official flax modules in our names."""

import numpy as np
import torch


def tensor(array):
    return torch.from_numpy(np.array(array))


def linear(params, prefix):
    return {"weight": tensor(params[f"{prefix}/kernel"]).T, "bias": tensor(params[f"{prefix}/bias"])}


def conv(params, prefix):
    return {"weight": tensor(params[f"{prefix}/kernel"]).permute(2, 1, 0), "bias": tensor(params[f"{prefix}/bias"])}


def norm(params, prefix):
    return {"weight": tensor(params[f"{prefix}/scale"]), "bias": tensor(params[f"{prefix}/bias"])}


def attention(params, prefix):
    width = params[f"{prefix}/query/kernel"].shape[0]
    kernels = [tensor(params[f"{prefix}/{name}/kernel"]).reshape(width, width).T for name in ("query", "key", "value")]
    biases = [tensor(params[f"{prefix}/{name}/bias"]).flatten() for name in ("query", "key", "value")]
    out = tensor(params[f"{prefix}/out/kernel"]).reshape(width, width).T
    return {
        "qkv": {"weight": torch.cat(kernels), "bias": torch.cat(biases)},
        "out": {"weight": out, "bias": tensor(params[f"{prefix}/out/bias"])},
    }


def named(name, values):
    return {f"{name}.{key}": value.contiguous() for key, value in values.items()}


def layer(params, prefix):
    attended = attention(params, f"{prefix}/MultiHeadAttention_0")
    return {
        **named("attention_norm", norm(params, f"{prefix}/LayerNorm_0")),
        **named("qkv", attended["qkv"]),
        **named("out", attended["out"]),
        **named("mlp_norm", norm(params, f"{prefix}/LayerNorm_1")),
        **named("mlp_in", linear(params, f"{prefix}/MlpBlock_0/Dense_0")),
        **named("mlp_out", linear(params, f"{prefix}/MlpBlock_0/Dense_1")),
    }


def encoder(params, root):
    """State of a plain, simple-pyramid or FPN encoder."""
    state = {}
    count = len({key.split("/")[1] for key in params if key.startswith(f"{root}/encoderblock_")})
    for number in range(count):
        state |= named(f"layers.{number}", layer(params, f"{root}/encoderblock_{number}"))
    if f"{root}/encoder_norm/scale" in params:
        return state | named("norm", norm(params, f"{root}/encoder_norm"))
    level = 0
    while f"{root}/output_conv_{level}/kernel" in params:
        state |= named(f"levels.{level}.conv", conv(params, f"{root}/output_conv_{level}"))
        state |= named(f"levels.{level}.norm", norm(params, f"{root}/output_ln_{level}"))
        level += 1
    return state


def conv_blocks(params, prefix):
    state, number = {}, 0
    while f"{prefix}/conv{number}/kernel" in params:
        state |= named(f"convs.{number}", conv(params, f"{prefix}/conv{number}"))
        state |= named(f"norms.{number}", norm(params, f"{prefix}/ln{number}"))
        number += 1
    return state | named("linear", linear(params, f"{prefix}/output_projection"))


def head(params, name, *, shared, num_levels):
    """State of a relevance or displacement head; name is ClassificationHead or RegressionHead."""
    if not shared:
        blocks = [conv_blocks(params, f"{name}_{level}") for level in range(num_levels)]
        return {key: value for n, block in enumerate(blocks) for key, value in named(f"blocks.{n}", block).items()}
    state = named("blocks.0", conv_blocks(params, name))
    if name == "RegressionHead":
        for kind in ("scale", "shift"):
            state[f"{kind}s"] = torch.cat([tensor(params[f"{kind}_{level}"]) for level in range(num_levels)])
    return state


def clip_block(params, prefix):
    """One of CLIP's own transformer blocks, in open_clip's names."""
    attended = attention(params, f"{prefix}/attn")
    state = {"attn.in_proj_weight": attended["qkv"]["weight"], "attn.in_proj_bias": attended["qkv"]["bias"]}
    for name in ("ln_1", "ln_2"):
        state |= named(name, norm(params, f"{prefix}/{name}"))
    for name in ("c_fc", "c_proj"):
        state |= named(f"mlp.{name}", linear(params, f"{prefix}/mlp/{name}"))
    return state | named("attn.out_proj", attended["out"])


def clip_transformer(params, prefix):
    count = len({key.split("resblocks.")[1].split("/")[0] for key in params if "resblocks." in key})
    blocks = [clip_block(params, f"{prefix}/resblocks.{n}") for n in range(count)]
    return {f"transformer.resblocks.{n}.{key}": value for n, block in enumerate(blocks) for key, value in block.items()}


def image_tower(params, patch):
    """CLIP's image tower without its projection and class embedding, in open_clip's names."""
    root = "VisionTransformer"
    kernel = tensor(params["conv1/kernel"])
    state = {"conv1.weight": kernel.reshape(patch, patch, 3, -1).permute(3, 2, 0, 1)}
    state["positional_embedding"] = tensor(params[f"{root}/positional_embedding"])
    for name in ("ln_pre", "ln_post"):
        state |= named(name, norm(params, f"{root}/{name}"))
    return named("visual", state | clip_transformer(params, f"{root}/transformer"))


def text_tower(params):
    """CLIP's text tower without its projection, in open_clip's names."""
    state = {"positional_embedding": tensor(params["positional_embedding"])}
    state["token_embedding.weight"] = tensor(params["token_embedding/embedding"])
    return state | named("ln_final", norm(params, "ln_final")) | clip_transformer(params, "transformer")
