"""Makes model.npz: made-up parameters and inputs, and what plain numpy says comes out of them.

The arrays have the names and shapes of the official implementation (../shared/golden/scenic), so that one set of tests
reads both files; another test holds `plain_model.py` against the official tensors, where those are at hand. Values are
multiples of 1/16, exact in float32 and small when packed.

    python tests/golden/make_model.py
"""

from pathlib import Path

import numpy as np
from plain_model import expected

WIDTH, HEADS, MLP, FRAMES = 16, 2, 32, 1179
rng = np.random.default_rng(2023)


def values(*shape, scale=0.3, mean=0.0):
    return np.round(rng.normal(mean, scale, shape) * 16).astype(np.float32) / 16


def norm(name, width=WIDTH):
    return {f"{name}/scale": values(width, mean=1.0, scale=0.1), f"{name}/bias": values(width)}


def linear(name, wide, out):
    return {f"{name}/kernel": values(wide, out), f"{name}/bias": values(out)}


def attention(name):
    size = WIDTH // HEADS
    shapes = {f"{part}/kernel": (WIDTH, HEADS, size) for part in ("query", "key", "value")}
    shapes |= {f"{part}/bias": (HEADS, size) for part in ("query", "key", "value")}
    shapes |= {"out/kernel": (HEADS, size, WIDTH), "out/bias": (WIDTH,)}
    return {f"{name}/{key}": values(*shape) for key, shape in shapes.items()}


def fusion_params(*, pyramid):
    root, p = "video_text_encoder", {}
    for layer in range(3):
        block = f"{root}/encoderblock_{layer}"
        p |= norm(f"{block}/LayerNorm_0") | norm(f"{block}/LayerNorm_1") | attention(f"{block}/MultiHeadAttention_0")
        p |= linear(f"{block}/MlpBlock_0/Dense_0", WIDTH, MLP) | linear(f"{block}/MlpBlock_0/Dense_1", MLP, WIDTH)
    if not pyramid:
        return p | norm(f"{root}/encoder_norm")
    for level in range(3):
        conv = f"{root}/output_conv_{level}"
        p |= {f"{conv}/kernel": values(3, 1, WIDTH), f"{conv}/bias": values(WIDTH)} | norm(f"{root}/output_ln_{level}")
    return p


def head_params(*, shared):
    p = {}
    for name, outputs in (("ClassificationHead", 1), ("RegressionHead", 2)):
        for block in [name] if shared else [f"{name}_{level}" for level in range(3)]:
            for conv in range(2):
                p |= {f"{block}/conv{conv}/kernel": values(3, WIDTH, WIDTH), f"{block}/conv{conv}/bias": values(WIDTH)}
                p |= norm(f"{block}/ln{conv}")
            p |= linear(f"{block}/output_projection", WIDTH, outputs)
    scales = {f"scale_{level}": values(1, mean=1.0) for level in range(3)}
    return p | scales | {f"shift_{level}": values(1) for level in range(3)} if shared else p


def tower_params(root):
    p = {}
    for layer in range(2):
        block = f"{root}/resblocks.{layer}"
        p |= norm(f"{block}/ln_1") | norm(f"{block}/ln_2") | attention(f"{block}/attn")
        p |= linear(f"{block}/mlp/c_fc", WIDTH, 4 * WIDTH) | linear(f"{block}/mlp/c_proj", 4 * WIDTH, WIDTH)
    return p


def video_tower_params(*, has_class):
    root = "VisionTransformer"
    p = norm(f"{root}/ln_pre") | norm(f"{root}/ln_post") | tower_params(f"{root}/transformer")
    p |= {f"{root}/positional_embedding": values(4 + has_class, WIDTH), "conv1/kernel": values(48, WIDTH)}
    return p | {"class_embedding": values(3, WIDTH)} if has_class else p


def text_tower_params():
    p = norm("ln_final") | tower_params("transformer") | {"positional_embedding": values(5, WIDTH)}
    return p | {"token_embedding/embedding": values(100, WIDTH)}


def token_cases():
    ids = np.array([[97, 5, 41, 99, 0], [97, 7, 99, 0, 0], [97, 8, 3, 62, 99]], np.int32)
    texts = {"text": values(3, 5, WIDTH), "ids": ids, "text_mask": (ids > 0).astype(np.int32)}
    for pyramid in ("simple_pyramid", "fpn"):
        given, params = {"video": values(2, 16, WIDTH, scale=0.6)} | texts, fusion_params(pyramid=True)
        yield from ((f"fusion_{pyramid}_{tokens}", params, given) for tokens in ("eos", "all"))
    mask = (np.arange(16) < np.array([[16], [9]])).astype(np.int32)
    given = {"video": values(2, 16, WIDTH, scale=0.6), "text_emb": values(3, WIDTH), "frame_mask": mask}
    yield "fusion_transformer_as", fusion_params(pyramid=False), given
    for shared in (True, False):
        given, params = {"x": values(2, 3, 28, WIDTH, scale=0.6)}, head_params(shared=shared)
        for task in ("temporal_localization", "moment_retrieval"):
            yield f"head_{'shared' if shared else 'separate'}_{task}", params, given
    yield "head_linear", linear("output_projection", WIDTH, 1), {"x": values(2, 16, 3, WIDTH, scale=0.6)}
    for name, has_class in (("token", True), ("gap", False)):
        yield f"clip_video_{name}", video_tower_params(has_class=has_class), {"rgb": values(2, 3, 8, 8, 3, scale=0.6)}
    yield "clip_text", text_tower_params(), {"ids": ids}


def loss_cases():
    mask = (np.arange(28) < np.array([[28], [22]])).astype(np.int32)
    label = (rng.random((2, 28, 3)) < 0.2).astype(np.int32)
    wanted, boxes = values(2, 28, 3, 2, mean=1.2), values(2, 28, 3, 2, mean=1.2)
    logits = np.concatenate([values(2, 28, 3, 1, scale=0.9), np.abs(boxes)], axis=-1).reshape(2, 28, 9)
    yield "loss_tal", {}, {"logits": logits, "label": label, "displacements": np.abs(wanted), "frame_mask": mask}
    logits = np.concatenate([values(2, 4, 28, 1, scale=0.9), np.abs(values(2, 4, 28, 2, mean=1.2))], axis=-1)
    given = {"label": (rng.random((2, 2, 28, 1)) < 0.3).astype(np.int32), "frame_mask": np.ones_like(mask)}
    given |= {
        "displacements": np.abs(values(2, 2, 28, 2, mean=1.2)),
        "caption_mask": np.array([[1, 1], [1, 0]], np.int32),
    }
    yield "loss_mr", {}, {"logits": logits} | given
    label = (rng.integers(0, 5, (2, 16, 1)) == np.arange(3)).astype(np.int32)
    yield "loss_as", {}, {"logits": values(2, 16, 3, scale=0.9), "label": label, "frame_mask": mask[:, 7:23] * 1}


def point_cases():
    start, end = np.array([40, 300, 700, 350, -1000]), np.array([90, 520, 1178, 420, -1000])
    labels = np.array([2, 0, 1, 0, -1])
    yield "target_tal", {}, {"start": start, "end": end, "seg_label": labels, "total_frames": np.array(FRAMES)}
    start, end = np.array([10, 200, 660, 0, 500]), np.array([60, 450, 1170, 1178, 530])
    yield "target_mr", {}, {"start": start, "end": end, "total_frames": np.array(FRAMES)}
    probs = np.round(rng.beta(0.3, 2.0, (240, 3)) * 2**20).astype(np.float32) / 2**20
    boxes = np.abs(values(240, 3, 2, mean=1.0, scale=0.5))
    yield "decode_tal", {}, {"probs": probs, "displacements": boxes, "total_frames": np.array(FRAMES)}
    probs = np.round(rng.beta(0.3, 2.0, (2, 240)) * 2**20).astype(np.float32) / 2**20
    boxes = np.abs(values(2, 240, 2, mean=1.0, scale=0.5))
    yield "decode_mr", {}, {"probs": probs, "displacements": boxes, "total_frames": np.array(FRAMES)}


def wide(arrays):
    """Everything that is not a count or a mask in float64: the plain loops round nothing."""
    return {key: value.astype(float) if value.dtype == np.float32 else value for key, value in arrays.items()}


def narrow(arrays):
    return {
        key: np.float32(value) if np.asarray(value).dtype == float else np.asarray(value)
        for key, value in arrays.items()
    }


def main():
    found = {}
    for name, params, given in [*token_cases(), *loss_cases(), *point_cases()]:
        found[name] = given | narrow(expected(name, wide(params), wide(given)))
        found[name] |= {f"params/{key}": value for key, value in params.items()}
    tal, mr = found["decode_tal"], found["decode_mr"]
    for name in ("nms_agnostic", "nms_multiclass"):
        found[name] = expected(name, {}, {key: tal[key] for key in ("segments", "scores", "class_idx")})
    for row in range(2):
        found[f"nms_mr_{row}"] = expected(f"nms_mr_{row}", {}, {key: mr[key][row] for key in ("segments", "scores")})
    flat = {f"{name}/{key}": value for name, arrays in found.items() for key, value in arrays.items()}
    np.savez_compressed(Path(__file__).with_name("model.npz"), **flat)


if __name__ == "__main__":
    main()
