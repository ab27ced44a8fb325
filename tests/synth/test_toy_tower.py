import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from open_clip.model import CLIP
from safetensors.torch import load_file

from benchmarks.toy_tower.captions import (
    ANY,
    FACTS,
    SCENE_LENGTH_SECONDS,
    captioned_frames,
    captions_true,
    random_sprites,
    render_chunk,
    sprite_facts,
)
from benchmarks.toy_tower.train_tower import (
    TowerTraining,
    build_model,
    contrastive_loss,
    encode_captions,
    train,
)
from unloc.synth import TOWER_FOLDER
from unloc.synth.scenes import Scene, Sprite
from unloc.synth.vocabulary import COLOURS, SHAPES


@pytest.fixture(scope="module")
def frames():
    rng = np.random.default_rng(5)
    scene = Scene(rng, 112, 112, SCENE_LENGTH_SECONDS)
    return [frame for _ in range(30) for frame in captioned_frames(rng, scene)]


def stated(**facts):
    row = np.full(len(FACTS), ANY)
    for name, value in facts.items():
        row[FACTS.index(name)] = value
    return row


def test_a_caption_is_true_where_one_object_has_all_its_facts():
    red_circle = sprite_facts(Sprite("red", "circle", -0.3, 0.0, 0.1))
    blue_star = sprite_facts(Sprite("blue", "star", 0.3, 0.3, 0.1))
    facts = np.stack([[red_circle, blue_star], [blue_star, np.full(len(FACTS), ANY)]])
    red, blue = (list(COLOURS).index(colour) for colour in ("red", "blue"))
    captions = [
        stated(colour=red),
        stated(colour=blue),
        stated(colour=red, shape=SHAPES.index("star")),
        stated(shape=SHAPES.index("star"), column=4),
    ]
    truth = captions_true(facts, np.stack(captions))
    assert truth.tolist() == [[True, True, False, True], [False, True, False, True]]


def test_every_frame_has_a_true_caption_and_near_misses_are_mostly_untrue(frames):
    own = np.concatenate([captions_true(frame.facts[None], frame.stated) for frame in frames])
    assert own[:, :-1].all()
    assert own[:, -1].mean() < 0.2


def test_the_mirror_image_has_mirrored_facts(frames):
    for frame, mirror in zip(frames[::2], frames[1::2], strict=True):
        np.testing.assert_array_equal(frame.image, mirror.image[:, ::-1])
        np.testing.assert_allclose(frame.places[:, 0], -mirror.places[:, 0])
        np.testing.assert_array_equal(frame.facts[:, :2], mirror.facts[:, :2])


def test_frames_do_not_depend_on_who_renders_them():
    first, second = render_chunk((1, 2, 3)), render_chunk((1, 2, 3))
    assert all(a.captions == b.captions and (a.image == b.image).all() for a, b in zip(first, second, strict=True))


def test_objects_are_those_of_the_world():
    sprites = [sprite for seed in range(50) for sprite in random_sprites(np.random.default_rng(seed))]
    assert {(sprite.colour, sprite.shape) for sprite in sprites} >= {("red", "circle"), ("black", "star")}
    assert all(0.05 < sprite.radius < 0.24 and max(abs(sprite.x), abs(sprite.y)) <= 0.45 for sprite in sprites)


def test_the_contrastive_loss_with_one_positive_each_is_clips():
    torch.manual_seed(0)
    images, texts = (F.normalize(torch.randn(6, 8), dim=-1) for _ in range(2))
    logits = 10.0 * images @ texts.T
    labels = torch.arange(6)
    expected = 0.5 * (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels))
    loss = contrastive_loss(images, texts, torch.eye(6, dtype=torch.bool), torch.tensor(10.0))
    torch.testing.assert_close(loss, expected)


def test_two_true_captions_do_not_compete():
    images, texts = torch.eye(2), torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    truth = torch.tensor([[True, True, False], [False, False, True]])
    assert contrastive_loss(images, texts, truth, torch.tensor(50.0)) < 1e-6


def test_captions_without_their_padding_encode_as_open_clip_does():
    model, preprocess = build_model(TOWER_FOLDER / "config.json")
    tokens = torch.zeros(2, preprocess["context_length"], dtype=torch.long)
    tokens[0, :4] = torch.tensor([49406, 7, 9, 49407])
    tokens[1, :3] = torch.tensor([49406, 7, 49407])
    with torch.no_grad():
        torch.testing.assert_close(encode_captions(model, tokens), model.encode_text(tokens), atol=1e-5, rtol=1e-4)


def test_the_shipped_weights_fit_the_shipped_config_and_stay_below_10_megabytes():
    weights = TOWER_FOLDER / "weights.safetensors"
    config = json.loads((TOWER_FOLDER / "config.json").read_text())
    assert weights.stat().st_size <= 10_000_000
    model = CLIP(config["embed_dim"], config["vision_cfg"], config["text_cfg"])
    tensors = load_file(weights)
    assert all(value.isfinite().all() for value in tensors.values())
    assert {value.dtype for value in tensors.values()} <= {torch.float16, torch.int64}  # int64: batch norm's counters
    model.load_state_dict(tensors)
    assert {"mean", "std"} <= set(config["preprocess_cfg"])


def test_the_record_says_how_the_shipped_weights_were_made():
    record = json.loads((TOWER_FOLDER / "record.json").read_text())
    assert record["training"]["steps"] > 0 and record["versions"]["torch"]
    assert record["loss_curve"][-1]["contrastive"] < record["loss_curve"][0]["contrastive"]
    held_out = record["held_out"]
    assert held_out["image_to_text_top1"] > 5 * held_out["chance"]
    assert held_out["shape_top1"] > 80.0 and held_out["x_rmse"] < 0.15


def test_training_lowers_the_loss_and_repeats_itself(tmp_path):
    config = json.loads((TOWER_FOLDER / "config.json").read_text())
    config["vision_cfg"] |= {"width": 8, "image_size": 32, "head_width": 32}
    config["text_cfg"] |= {"layers": 1, "width": 16, "heads": 2}
    (tmp_path / "config.json").write_text(json.dumps(config))
    training = TowerTraining(steps=16, batch_size=32, chunks=1, warmup_steps=2, workers=0)
    first, record = train(training, tmp_path / "config.json")
    second, _ = train(training, tmp_path / "config.json")
    curve = record["loss_curve"]
    assert curve[-1]["place"] < curve[0]["place"]
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert math.isfinite(record["held_out"]["text_to_image_top1"])
