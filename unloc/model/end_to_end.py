"""UnLoc with its towers: pixels and token ids in (UnLoc Figure 2). What is frozen may as well come from a cache."""

import open_clip
import torch
from jaxtyping import Bool, Float, Shaped
from open_clip.model import CLIP
from torch import Tensor, nn

from unloc.config import ModelConfig, TowerConfig
from unloc.errors import TowerError
from unloc.model.clip_models import WeightSettings, clip_model
from unloc.model.live_towers import ClipTextTower, T5TextTower, VideoTower, t5_text_tower, untrained_t5
from unloc.model.unloc import Outputs, UnLoc, parameter_counts

TextTower = ClipTextTower | T5TextTower


class EndToEnd(nn.Module):
    """Towers before an UnLoc. A tower that is None gets its tokens given, as from a cache.

    Freezing (Table 4) stops the gradient behind the tower: projections, fusion and heads always train.
    """

    def __init__(
        self,
        core: UnLoc,
        video_tower: VideoTower | None,
        text_tower: TextTower | None,
        *,
        train_image: bool,
        train_text: bool,
    ) -> None:
        super().__init__()
        self.video_tower, self.text_tower, self.core = video_tower, text_tower, core
        if video_tower is not None:
            video_tower.requires_grad_(train_image)
        if text_tower is not None:
            text_tower.requires_grad_(train_text)

    def forward(
        self,
        frames: Float[Tensor, "batch time ..."],
        frame_mask: Bool[Tensor, "batch time"],
        texts: Shaped[Tensor, "texts tokens ..."],
        text_mask: Bool[Tensor, "texts tokens"],
        *,
        pairing: str = "all",
    ) -> Outputs:
        """`UnLoc.forward` of images (B, T, 3, S, S) and ids (C, K), or of tokens where there is no tower."""
        if self.video_tower is not None:
            frames = self.video_tower(frames)
        if self.text_tower is not None:
            texts = self.text_tower(texts, text_mask)
        return self.core(frames, frame_mask, texts, text_mask, pairing=pairing)

    def tower_parameters(self) -> list[nn.Parameter]:
        """What trains at the towers' rate: the towers, and what stands for their projections."""
        towers = [tower for tower in (self.video_tower, self.text_tower) if tower is not None]
        return [*(p for tower in towers for p in tower.parameters()), *self.core.tower_parameters()]

    def train(self, mode: bool = True) -> "EndToEnd":
        """Frozen towers stay in evaluation mode."""
        super().train(mode)
        for tower in (self.video_tower, self.text_tower):
            if tower is not None and not next(tower.parameters()).requires_grad:
                tower.eval()
        return self


def build_end_to_end(
    config: ModelConfig,
    towers: TowerConfig,
    clip: CLIP,
    text_tower: TextTower | None,
    *,
    num_steps: int,
    num_classes: int | None = None,
    localizes: bool = True,
) -> EndToEnd:
    """UnLoc over CLIP's image transformer and a text tower (`text_tower_of`), which fusion `none` does without.

    Trained projections start as CLIP's own, as officially; without them the towers apply CLIP's.
    """
    text_tower = None if config.fusion == "none" else text_tower
    video_tower = VideoTower(clip.visual, towers.frame_token, num_steps, projected=not config.project_frames)
    text_dim = clip.text_projection.shape[0 if config.project_texts else 1] if text_tower is None else text_tower.dim
    core = UnLoc(config, video_tower.dim, text_dim, num_steps, num_classes=num_classes, localizes=localizes)
    starts = {"frames": clip.visual.proj} if config.project_frames else {}
    if config.project_texts and towers.text_name == "clip":
        starts["texts"] = clip.text_projection
    core.start_projections(starts)
    live = None if towers.image == "cached" else video_tower
    trained = {"train_image": towers.image == "finetune", "train_text": towers.text == "finetune"}
    return EndToEnd(core, live, text_tower, **trained)


def text_tower_of(
    towers: TowerConfig, clip: CLIP, tokenizer: open_clip.SimpleTokenizer | None, max_tokens: int, *, projected: bool
) -> TextTower | None:
    """The text tower that the config names; None where its tokens are given."""
    if towers.text == "cached":
        return None
    if towers.text_name == "clip":
        return ClipTextTower(clip, tokenizer, max_tokens, projected=projected)
    return t5_text_tower(towers.text_name, max_tokens)


def clip_architecture(name: str) -> CLIP:
    """The CLIP of that name with fresh weights, to be counted. Raises TowerError where open_clip has no plain one."""
    try:
        return clip_model(name, WeightSettings())
    except TowerError as error:
        raise TowerError(
            f"towers.name: got {name!r}, expected toy or a plain CLIP of open_clip, such as ViT-B-16 ({error})"
        ) from None


def counted_parameters(
    config: ModelConfig,
    towers: TowerConfig,
    *,
    num_steps: int,
    max_text_tokens: int,
    num_classes: int | None = None,
    localizes: bool = True,
) -> dict[str, int]:
    """Parameters of every part and their `total`, of the model with its towers where they are named and not cached.

    Built on torch's meta device: at once and without memory.
    """
    with torch.device("meta"):
        if not towers.name:  # tokens of an unknown cache: taken to be as wide as the fusion
            core = UnLoc(config, config.width, config.width, num_steps, num_classes=num_classes, localizes=localizes)
            return parameter_counts(core)
        clip = clip_architecture(towers.name)
        if towers.text != "cached" and towers.text_name != "clip":
            text_tower = untrained_t5(towers.text_name, max_text_tokens)
        else:
            text_tower = text_tower_of(towers, clip, None, max_text_tokens, projected=not config.project_texts)
        sizes = {"num_steps": num_steps, "num_classes": num_classes, "localizes": localizes}
        model = build_end_to_end(config, towers, clip, text_tower, **sizes)
    parts = {"video_tower": model.video_tower, "text_tower": model.text_tower}
    counts = {key: sum(p.numel() for p in part.parameters()) for key, part in parts.items() if part is not None}
    own = parameter_counts(model.core)
    return counts | own | {"total": sum(counts.values()) + own["total"]}
