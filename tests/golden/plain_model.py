"""UnLoc in numpy, one sequence, one point, one candidate at a time: written from the description of the official code
(spec §1-§5), slow, easy to check by eye, and without a line of unloc or torch.

Parameters have the official (flax) names. `expected(case, params, given)` is what a case of the golden files holds.
"""

import numpy as np

EDGES, RADIUS, LEVELS, STEPS = (0.0, 4.0, 8.0, 16.0, np.inf), 3.0, 4, 128
SIZES = (16, 8, 4)  # of the cases that have tokens


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def linear(x, p, name):
    return x @ p[f"{name}/kernel"] + p[f"{name}/bias"]


def norm(x, p, name, epsilon=1e-6):
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + epsilon) * p[f"{name}/scale"] + p[f"{name}/bias"]


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def quick_gelu(x):
    return x * sigmoid(1.702 * x)


def attend(x, p, name, allowed):
    """`allowed` (L, L): which key a query may see."""
    heads = []
    for head in range(p[f"{name}/query/kernel"].shape[1]):
        parts = [x @ p[f"{name}/{k}/kernel"][:, head] + p[f"{name}/{k}/bias"][head] for k in ("query", "key", "value")]
        query, key, value = parts
        logits = np.where(allowed, query @ key.T / np.sqrt(query.shape[1]), -1e30)
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        heads.append(weights / weights.sum(-1, keepdims=True) @ value)
    return sum(h @ p[f"{name}/out/kernel"][n] for n, h in enumerate(heads)) + p[f"{name}/out/bias"]


# -- fusion and pyramids ----------------------------------------------------------------------------------------------


def fusion_block(x, p, name, valid):
    allowed = np.broadcast_to(valid, (len(x), len(x)))
    x = x + attend(norm(x, p, f"{name}/LayerNorm_0"), p, f"{name}/MultiHeadAttention_0", allowed)
    hidden = gelu(linear(norm(x, p, f"{name}/LayerNorm_1"), p, f"{name}/MlpBlock_0/Dense_0"))
    return x + linear(hidden, p, f"{name}/MlpBlock_0/Dense_1")


def positions(length, width):
    angle = np.arange(length)[:, None] * 10000.0 ** (-2 * (np.arange(width) // 2) / width)
    return np.where(np.arange(width) % 2 == 0, np.sin(angle), np.cos(angle))


def depthwise(x, kernel, bias, stride):
    """Width 3; (1, 1) of padding, or (0, 1) where every second step of an even length is taken."""
    x = np.pad(x, ((1 if stride == 1 or len(x) % 2 else 0, 1), (0, 0)))
    return np.stack([(x[i : i + 3] * kernel[:, 0]).sum(0) for i in range(0, len(x) - 2, stride)]) + bias


def fused(frames, frames_valid, text, text_valid, p, pyramid):
    """(P, C) points and (K, C) text tokens of one video with one text."""
    root, steps = "video_text_encoder", len(frames)
    x = np.concatenate([frames, text])
    x, valid = x + positions(*x.shape), np.concatenate([frames_valid, text_valid]).astype(bool)
    stages, num_layers = [], 3
    for layer in range(num_layers):
        x = fusion_block(x, p, f"{root}/encoderblock_{layer}", valid)
        stages.append(x[:steps])
        if pyramid == "fpn" and layer < num_layers - 1:
            x = np.concatenate([x[:steps].reshape(-1, 2, x.shape[1]).max(1), x[steps:]])
            valid, steps = np.delete(valid, np.s_[1:steps:2]), steps // 2
    if pyramid == "transformer":
        x = norm(x, p, f"{root}/encoder_norm")
        return x[:steps], x[steps:]
    points, above = [], x[:steps]
    for level in range(num_layers - 2, -1, -1):  # top-down sum, used by fpn alone
        stages[level] = stages[level] + stages[level + 1].repeat(2, axis=0)[: len(stages[level])]
    for level in range(len(SIZES)):
        source, stride = (stages[level], 1) if pyramid == "fpn" else (above, 1 if level == 0 else 2)
        weights = p[f"{root}/output_conv_{level}/kernel"], p[f"{root}/output_conv_{level}/bias"]
        above = norm(depthwise(source, *weights, stride), p, f"{root}/output_ln_{level}")
        points.append(above)
    return np.concatenate(points), x[steps:]


def fusion(name, p, given):
    pyramid = "fpn" if "fpn" in name else "simple" if "simple" in name else "transformer"
    out_video, out_text = [], []
    for number, frames in enumerate(given["video"]):
        rows = []
        for text in range(3):
            frames_valid = given["frame_mask"][number] if "frame_mask" in given else np.ones(len(frames))
            if "text_emb" in given:
                tokens, text_valid, eos = given["text_emb"][text][None], [1], 0
            else:
                tokens, text_valid, eos = given["text"][text], given["text_mask"][text], given["ids"][text].argmax()
                if name.endswith("eos"):
                    tokens, text_valid, eos = tokens[eos][None], [1], 0
            points, texts = fused(frames, frames_valid, tokens, text_valid, p, pyramid)
            rows.append((points, texts[eos]))
        out_video.append(np.stack([points for points, _ in rows], axis=1 if pyramid == "transformer" else 0))
        out_text.append(np.stack([text for _, text in rows]))
    return {"out_video": np.stack(out_video), "out_text": np.stack(out_text)}


# -- heads ------------------------------------------------------------------------------------------------------------


def conv_blocks(x, p, name):
    for number in range(2):
        padded = np.pad(norm(x, p, f"{name}/ln{number}"), ((1, 1), (0, 0)))
        kernel = p[f"{name}/conv{number}/kernel"]
        taps = [sum(padded[i + k] @ kernel[k] for k in range(3)) for i in range(len(x))]
        x = np.maximum(np.stack(taps) + p[f"{name}/conv{number}/bias"], 0)
    return linear(x, p, f"{name}/output_projection")


def head(name, p, given):
    if name == "head_linear":
        return {"out": linear(given["x"], p, "output_projection")[..., 0]}
    shared, out = "shared" in name, []
    for points in given["x"].reshape(-1, sum(SIZES), given["x"].shape[-1]):
        levels = []
        for level, x in enumerate(np.split(points, np.cumsum(SIZES)[:-1])):
            suffix = "" if shared else f"_{level}"
            scale, shift = (p[f"scale_{level}"], p[f"shift_{level}"]) if shared else (1.0, 0.0)
            boxes = np.maximum(conv_blocks(x, p, f"RegressionHead{suffix}") * scale + shift, 0)
            levels.append(np.hstack([conv_blocks(x, p, f"ClassificationHead{suffix}"), boxes]))
        out.append(np.concatenate(levels))
    out = np.stack(out).reshape(*given["x"].shape[:2], sum(SIZES), 3)
    if name.endswith("temporal_localization"):  # (B, P, 3K): logit, start, end of each class
        out = out.transpose(0, 2, 1, 3).reshape(out.shape[0], sum(SIZES), -1)
    return {"out": out}


# -- towers -----------------------------------------------------------------------------------------------------------


def tower_block(x, p, name, allowed):
    x = x + attend(norm(x, p, f"{name}/ln_1", 1e-5), p, f"{name}/attn", allowed)
    hidden = quick_gelu(linear(norm(x, p, f"{name}/ln_2", 1e-5), p, f"{name}/mlp/c_fc"))
    return x + linear(hidden, p, f"{name}/mlp/c_proj")


def clip_video(name, p, given):
    root, videos = "VisionTransformer", []
    for video in given["rgb"]:
        frames = []
        for number, image in enumerate(video):
            patches = image.reshape(2, 4, 2, 4, 3).transpose(0, 2, 1, 3, 4).reshape(4, -1) @ p["conv1/kernel"]
            own = [p["class_embedding"][number]] if "class_embedding" in p else []
            x = np.stack([*own, *patches]) + p[f"{root}/positional_embedding"]
            x = norm(x, p, f"{root}/ln_pre", 1e-5)
            for layer in range(2):
                x = tower_block(x, p, f"{root}/transformer/resblocks.{layer}", np.ones((len(x), len(x)), bool))
            x = norm(x, p, f"{root}/ln_post", 1e-5)
            frames.append(x[0] if own else x.mean(0))
        videos.append(np.stack(frames))
    return {"out": np.stack(videos)}


def clip_text(name, p, given):
    out = []
    for ids in given["ids"]:
        x = p["token_embedding/embedding"][ids] + p["positional_embedding"]
        valid = ids > 0
        allowed = np.tril(np.ones((len(ids), len(ids)), bool)) & valid[:, None] & valid
        for layer in range(2):
            x = tower_block(x, p, f"transformer/resblocks.{layer}", allowed)
        out.append(norm(x, p, "ln_final", 1e-5) * valid[:, None])
    return {"out": np.stack(out)}


# -- losses -----------------------------------------------------------------------------------------------------------


def cross_entropy(logit, label):
    return np.logaddexp(0, logit) - label * logit


def focal(logit, label):
    entropy = cross_entropy(logit, label)
    return (0.25 * label + 0.75 * (1 - label)) * (1 - np.exp(-entropy)) ** 2 * entropy


def box(found, wanted, expression):
    overlap, union = np.minimum(found, wanted).sum(-1), np.maximum(found, wanted).sum(-1) + 1e-6
    shift = (found[..., 1] - found[..., 0]) - (wanted[..., 1] - wanted[..., 0])
    kinds = {"iou": 1 - overlap / union, "l1": np.abs(found - wanted).sum(-1) / union}
    kinds["center_offset_squared"] = (0.5 * shift / union) ** 2
    weighted = [term.split("*") if "*" in term else ("1", term) for term in expression.split("+")]
    return sum(float(weight) * kinds[kind] for weight, kind in weighted)


def loss_tal(name, p, given):
    out = given["logits"].reshape(*given["label"].shape, 3)
    mask, found = given["frame_mask"][..., None], {}
    positive = given["label"] * mask
    for kind, relevance in (("focal", focal), ("sigmoid", cross_entropy)):
        first = (relevance(out[..., 0], given["label"]) * mask).sum() / mask.sum()
        for boxes in ("iou", "l1", "l1+iou", "iou+center_offset_squared", "0.5*l1+1.0*iou"):
            second = (box(out[..., 1:], given["displacements"], boxes) * positive).sum() / positive.sum()
            found[f"{kind}|{boxes}"] = 10 * first + second
    return found


def loss_mr(name, p, given):
    found, (videos, captions) = {}, given["caption_mask"].shape
    for gathered in (True, False):
        sums = np.zeros(4)  # relevance and its count, boxes and their count
        for video in range(videos):
            for owner in range(videos):
                for caption in range(captions):
                    own = video == owner
                    weight = given["frame_mask"][owner] * given["caption_mask"][owner, caption]
                    out = given["logits"][video, owner * captions + caption]
                    label = given["label"][owner, caption, :, 0] * own
                    if own or gathered:
                        sums[:2] += (focal(out[:, 0], label) * weight).sum(), weight.sum()
                    boxes = box(out[:, 1:], given["displacements"][owner, caption], "iou")
                    sums[2:] += (boxes * label * weight).sum(), (label * weight).sum()
        found[f"focal|iou|all_gather={gathered}"] = 10 * sums[0] / sums[1] + sums[2] / sums[3]
    return found


def loss_as(name, p, given):
    losses = cross_entropy(given["logits"], given["label"]) * given["frame_mask"][..., None]
    return {"sigmoid": losses.sum() / given["frame_mask"].sum()}


# -- targets, decoding, Soft-NMS --------------------------------------------------------------------------------------


def points():
    return [(step, level) for level in range(LEVELS) for step in range(0, STEPS, 2**level)]


def is_positive(step, level, start, end):
    reach, centre = RADIUS * 2**level, (start + end) / 2
    inside = max(start, centre - reach) <= step <= min(end, centre + reach)
    return inside and EDGES[level] <= max(step - start, end - step) < EDGES[level + 1]


def targets(name, p, given):
    scale = (STEPS - 1) / (given["total_frames"] - 1)
    segments = [(start * scale, end * scale) for start, end in zip(given["start"], given["end"], strict=True)]
    if name == "target_mr":
        label = [[[is_positive(*point, *segment)] for point in points()] for segment in segments]
        boxes = [[((t - s) / 2**level, (e - t) / 2**level) for t, level in points()] for s, e in segments]
        return {"label": np.array(label, np.int32), "displacements": np.array(boxes)}
    label = np.zeros((len(points()), 3), np.int32)
    boxes = np.full((len(points()), 3, 2), given["total_frames"] + 1.0)
    for row, (t, level) in enumerate(points()):
        for number, (s, e) in zip(given["seg_label"], segments, strict=True):
            if number < 0:  # padding
                continue
            label[row, number] |= is_positive(t, level, s, e)
            for side, distance in enumerate((t - s, e - t)):
                if distance >= 0:
                    boxes[row, number, side] = min(boxes[row, number, side], distance)
        boxes[row] /= 2**level
    return {"label": label, "displacements": boxes}


def decoded(displacements, total_frames):
    """Seconds of (P, 2) displacements, frames 0.1 s apart."""
    scale = (total_frames - 1) / (STEPS - 1)
    pairs = zip(points(), displacements, strict=True)
    rows = [(step - before * 2**level, step + after * 2**level) for (step, level), (before, after) in pairs]
    return np.clip(np.array(rows) * scale, 0, total_frames) * 0.1


def decode(name, p, given):
    if name == "decode_mr":
        segments = [decoded(boxes, given["total_frames"]) for boxes in given["displacements"]]
        return {"segments": np.stack(segments), "scores": given["probs"]}
    segments = [decoded(given["displacements"][:, label], given["total_frames"]) for label in range(3)]
    kept = [(row, label) for row in range(len(points())) for label in range(3) if given["probs"][row, label] >= 0.001]
    found = {"class_idx": np.array([label for _, label in kept]), "scores": np.array([given["probs"][k] for k in kept])}
    return found | {"segments": np.array([segments[label][row] for row, label in kept])}


def soft_nms(segments, scores):
    """Indices and decayed scores, in float32 as officially: ties and order turn on it."""
    segments, scores, index, kept = np.float32(segments), np.float32(scores), [], []
    while len(index) < 100 and scores.max() > 0.001:
        best = int(scores.argmax())
        index.append(best)
        kept.append(scores[best])
        overlap = np.minimum(segments[:, 1], segments[best, 1]) - np.maximum(segments[:, 0], segments[best, 0])
        overlap, length = np.maximum(overlap, 0), segments[:, 1] - segments[:, 0]
        iou = overlap / np.maximum(length + length[best] - overlap, np.float32(1e-12))
        scores = scores * np.exp(-(iou**2) / np.float32(0.6))
        scores[best] = -1
    return index, kept


def nms(name, p, given):
    """Of the decoded TAL case over all classes or within each, or of one caption."""
    if name.startswith("nms_mr"):
        groups = [np.arange(len(given["scores"]))]
    else:
        labels = given["class_idx"]
        groups = (
            [np.flatnonzero(labels == n) for n in range(3)] if name == "nms_multiclass" else [np.arange(len(labels))]
        )
    index, scores = [], []
    for group in groups:
        chosen, kept = soft_nms(given["segments"][group], given["scores"][group])
        index += group[chosen].tolist()
        scores += kept
    found = {"segments": given["segments"][index], "scores": np.array(scores)}
    return found if "class_idx" not in given else found | {"class_idx": given["class_idx"][index]}


KINDS = {"fusion": fusion, "head": head, "clip_video": clip_video, "clip_text": clip_text, "loss_tal": loss_tal}
KINDS |= {"loss_mr": loss_mr, "loss_as": loss_as, "target": targets, "decode": decode, "nms": nms}


def expected(name, params, given):
    """What the case of that name holds beside parameters and inputs."""
    kind = next(kind for prefix, kind in KINDS.items() if name.startswith(prefix))
    return kind(name, params, given)
