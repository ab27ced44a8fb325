"""What is built of a name and a tag, a file or nothing: the settings its weights were trained with, or a refusal."""

import open_clip
import pytest
import torch
from open_clip.pretrained import get_pretrained_cfg
from safetensors.torch import load_file, save_file
from torch import nn

from tests.small_clip import small_clip
from unloc.errors import TowerError
from unloc.inference.encode import EncodeConfig, Encoder
from unloc.model import towers
from unloc.model.clip import activation_of, clip_model, image_config, tag_settings
from unloc.model.towers import ImageTower, TextTower, TowerChoice

UNSUPPORTED = (
    "coca_ViT-B-32",
    "ViT-B-16-SigLIP",
    "roberta-ViT-B-32",
    "ViT-L-14-CLIPA",
    "ViT-H-14-worldwide",
    "ViTamin-S",
)


def load_tower(name, pretrained=None, **choice):
    return towers.load_tower(TowerChoice(tower=name, pretrained=pretrained, **choice))


def stated_by_open_clip(name, tag):
    entry = get_pretrained_cfg(name, tag)
    activation = "quick_gelu" if entry.get("quick_gelu") else "gelu"
    return activation, tuple(entry["mean"]), tuple(entry["std"]), entry["interpolation"], entry["resize_mode"]


def built(name, tag):
    with torch.device("meta"):
        model = clip_model(name, tag_settings(name, tag))
    config = image_config(model)
    return activation_of(model), *(config[key] for key in ("mean", "std", "interpolation", "resize_mode"))


def shallow_config(name, stated_by=open_clip.get_model_config):
    """A model's config with one layer in each transformer: settings do not depend on the depth, the time does."""
    config = stated_by(name)
    for part in (config["vision_cfg"], config["text_cfg"]):
        part["layers"] = 1 if isinstance(part.get("layers"), int) else part.get("layers", 1)
    return config


def test_every_tag_that_open_clip_lists_is_built_as_its_own_entry_states(monkeypatch):
    monkeypatch.setattr(open_clip, "get_model_config", shallow_config)
    kinds = {(name, stated_by_open_clip(name, tag)): tag for name, tag in open_clip.list_pretrained()}
    refused = set()
    for (name, stated), tag in kinds.items():
        try:
            assert built(name, tag) == stated, (name, tag)
        except TowerError:
            refused.add(name)
    assert refused >= set(UNSUPPORTED) and {name for name, _ in kinds} - refused >= {"ViT-B-16", "ViT-L-14", "RN50"}
    assert {stated for name, stated in kinds if name == "ViT-B-16"} == {
        ("quick_gelu", *stated_by_open_clip("ViT-B-16", "openai")[1:]),
        ("gelu", *stated_by_open_clip("ViT-B-16", "openai")[1:]),
    }


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_a_model_whose_texts_are_not_clips_is_refused_before_anything_is_downloaded(name, monkeypatch):
    monkeypatch.setattr(open_clip.factory, "download_pretrained", lambda config: pytest.fail("downloaded"))
    tag = open_clip.list_pretrained_tags_by_model(name)[0]
    for pretrained in (tag, "none", None):
        with pytest.raises(TowerError, match=f"tower '{name}': .*only") as raised:
            load_tower(name, pretrained)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("tag", "quick"), [("openai", True), ("ours", False)])
def test_tokens_are_those_of_the_activation_of_the_tag_frozen_and_live(tiny, tag, quick):
    expected, tower = small_clip(quick_gelu=quick), load_tower(tiny, tag)
    images = torch.randn(3, 3, 32, 32)
    frames, ids = expected.encode_image(images), open_clip.tokenize(["a cat jumps"], 24)
    torch.testing.assert_close(tower.encode_images(images), frames, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(tower.encode_texts(["a cat jumps"])[0][-1:], expected.encode_text(ids))
    clip = small_clip(quick_gelu=quick)
    live = ImageTower(clip.visual, TowerChoice(), 3)
    torch.testing.assert_close(live(images[None])[0], frames, atol=1e-5, rtol=1e-4)
    texts = TextTower(clip, 24, projected=True)
    ids, mask = texts.tokenize(["a cat jumps"])
    torch.testing.assert_close(texts(ids, mask)[:, -1], expected.encode_text(open_clip.tokenize("a cat jumps", 24)))
    other = small_clip(quick_gelu=not quick).encode_image(images)
    assert (frames - other).abs().max() > 1e-3, "the two activations are one"
    assert Encoder(EncodeConfig(tower=tiny, pretrained=tag, fps=2.0)).fingerprint["tower.activation"] == (
        "quick_gelu" if quick else "gelu"
    )


def test_a_tag_brings_its_own_preprocessing(tiny):
    fingerprint = Encoder(EncodeConfig(tower=tiny, pretrained="grey", fps=2.0)).fingerprint
    stated = {key.removeprefix("preprocess."): fingerprint[key] for key in fingerprint if key.startswith("preprocess.")}
    expected = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear", "resize_mode": "squash"}
    assert stated == expected | {"image_size": 32}


def test_an_override_that_contradicts_the_tag_is_refused_and_one_that_agrees_changes_nothing(tiny):
    with pytest.raises(TowerError, match=r"--like ours.*openai.*activation"):
        load_tower(tiny, "openai", like="ours")
    assert load_tower(tiny, "openai", like="finetuned").fingerprint == load_tower(tiny, "openai").fingerprint
    with pytest.raises(TowerError, match=r"--like.*'nobody'.*openai, ours"):
        load_tower(tiny, "openai", like="nobody")


def test_a_file_for_a_name_whose_tags_disagree_needs_the_users_word(tiny, weights_file):
    with pytest.raises(TowerError, match=r"quick_gelu.*ours.*--like") as raised:
        load_tower(tiny, str(weights_file))
    assert "\n" not in str(raised.value)
    specs = {
        like: load_tower(tiny, str(weights_file), like=like).fingerprint for like in ("openai", "finetuned", "ours")
    }
    assert specs["openai"] == specs["finetuned"] != specs["ours"]
    assert (specs["openai"]["activation"], specs["ours"]["activation"]) == ("quick_gelu", "gelu")
    made = Encoder(EncodeConfig(tower=tiny, pretrained=str(weights_file), like="grey", fps=2.0))
    again = EncodeConfig.from_fingerprint(made.fingerprint, pretrained=str(weights_file))
    assert Encoder(again).fingerprint == made.fingerprint


@pytest.mark.parametrize(
    ("tags", "activation"), [(("openai", "finetuned"), "quick_gelu"), (("ours",), "gelu"), ((), "gelu")]
)
def test_a_file_for_a_name_whose_tags_agree_has_their_settings(tiny, weights_file, monkeypatch, tags, activation):
    stated = {tag: get_pretrained_cfg(tiny, tag) for tag in tags}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, tiny, stated)
    found = load_tower(tiny, str(weights_file)).fingerprint
    assert (found["activation"], found["like"], found["pretrained"]) == (activation, None, weights_file.name)


class Archive(nn.Module):
    """What OpenAI ships: a scripted model whose state dict states three sizes beside the weights."""

    def __init__(self, weights):
        super().__init__()
        for name, value in weights.items():
            part, path = self, name.split(".")
            for step in path[:-1]:
                part = part._modules.setdefault(step, nn.Module())
            part.register_buffer(path[-1], value)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def openai_archive(path, weights_file, *, scripted=True):
    sizes = {key: torch.tensor(value) for key, value in (("input_resolution", 32), ("context_length", 24))}
    weights = load_file(weights_file) | sizes | {"vocab_size": torch.tensor(49408)}
    torch.jit.script(Archive(weights)).save(path) if scripted else torch.save(weights, path)
    return str(path)


@pytest.mark.parametrize("scripted", [True, False])
def test_openais_own_archive_needs_no_word_and_refuses_a_wrong_one(tiny, weights_file, tmp_path, scripted):
    archive = openai_archive(tmp_path / "ViT.pt", weights_file, scripted=scripted)
    tower = load_tower(tiny, archive)
    assert (tower.fingerprint["activation"], tower.fingerprint["like"]) == ("quick_gelu", "openai")
    assert tower.fingerprint["weights_sha256"] == load_tower(tiny, "openai").fingerprint["weights_sha256"]
    with pytest.raises(TowerError, match=r"--like ours.*OpenAI"):
        load_tower(tiny, archive, like="ours")


def test_a_file_that_is_no_weights_or_is_called_as_a_tag_is_one_line(tiny, tmp_path, weights_file):
    (tmp_path / "text.pt").write_text("not weights")
    torch.save(torch.zeros(3), tmp_path / "tensor.pt")
    torch.save({}, tmp_path / "empty.pt")
    save_file({"visual.proj": torch.zeros(3, 3)}, tmp_path / "other.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(weights_file.read_bytes()[:1000])
    for name in ("text.pt", "tensor.pt", "empty.pt", "other.safetensors", "cut.safetensors"):
        with pytest.raises(TowerError, match=f"{name}: not weights") as raised:
            load_tower(tiny, str(tmp_path / name), like="ours")
        assert "\n" not in str(raised.value)
    for name in ("openai", "none"):
        (tmp_path / name).write_bytes(weights_file.read_bytes())
        with pytest.raises(TowerError, match="rename"):
            load_tower(tiny, str(tmp_path / name), like="ours")


def test_no_weights_at_hand_is_one_line_with_every_way_out(tiny, monkeypatch):
    def fail(config):
        raise FileNotFoundError("cannot reach\nthe hub")

    monkeypatch.setattr(open_clip.factory, "download_pretrained", fail)
    with pytest.raises(TowerError, match=r"--pretrained FILE.*--pretrained none") as raised:
        load_tower(tiny, "openai")
    assert "\n" not in str(raised.value)
    with pytest.raises(TowerError, match="give --pretrained"):
        load_tower(tiny)


def test_random_weights_are_the_same_every_time_and_say_so(tiny):
    torch.manual_seed(5)
    one, state = load_tower(tiny, "none"), torch.get_rng_state()
    two = load_tower(tiny, "none")
    assert (
        one.fingerprint == two.fingerprint
        and one.fingerprint["pretrained"] == "none"
        and torch.equal(state, torch.get_rng_state())
    )
    assert one.fingerprint["weights_sha256"] != load_tower(tiny, "ours").fingerprint["weights_sha256"]
    assert load_tower(tiny, "none", like="openai").fingerprint["activation"] == "quick_gelu"
    fingerprint = Encoder(EncodeConfig(tower=tiny, pretrained="none", fps=2.0)).fingerprint
    assert Encoder(EncodeConfig.from_fingerprint(fingerprint)).fingerprint == fingerprint
