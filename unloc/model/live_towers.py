"""Towers as modules that can train beside the fusion (UnLoc §3.1, Tables 2 and 4; spec §1.2-1.3).

They hold CLIP's own layers (open_clip) and give tokens before CLIP's projections, or behind them with `projected`.
"""

from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from open_clip.model import CLIP
from open_clip.tokenizer import SimpleTokenizer
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from unloc.errors import TowerError

if TYPE_CHECKING:
    from transformers import T5EncoderModel

T5_SIZES = {
    "t5-small": {"d_model": 512, "d_ff": 2048, "num_layers": 6, "num_heads": 8},
    "t5-base": {"d_model": 768, "d_ff": 3072, "num_layers": 12, "num_heads": 12},
}


class VideoTower(nn.Module):
    """CLIP's image transformer over every frame by itself: one token per frame.

    `cls`: the class token after the last norm. Each frame index has a class embedding of its own, all starting as
    CLIP's: as long as the tower is frozen this is CLIP's image embedding. `gap`: the mean of the patch tokens after the
    last norm, of a transformer without class token.
    """

    def __init__(self, visual: nn.Module, frame_token: str, num_frames: int, *, projected: bool) -> None:
        super().__init__()
        if not isinstance(visual, VisionTransformer) or visual.attn_pool is not None or visual.final_ln_after_pool:
            raise TowerError(
                f"towers.name: got a {type(visual).__name__} that pools in its own way, expected a plain vision "
                "transformer, such as ViT-B-16 or ViT-L-14"
            )
        self.conv1, self.ln_pre = visual.conv1, visual.ln_pre
        self.transformer, self.ln_post = visual.transformer, visual.ln_post
        positions, self.class_embeddings = visual.positional_embedding.detach(), None
        if frame_token == "cls":
            self.class_embeddings = nn.Parameter(visual.class_embedding.detach().repeat(num_frames, 1))
        self.positions = nn.Parameter((positions if frame_token == "cls" else positions[1:]).clone())
        self.projection = nn.Parameter(visual.proj.detach().clone()) if projected else None
        self.dim = visual.output_dim if projected else self.positions.shape[1]

    def forward(self, images: Float[Tensor, "batch time 3 height width"]) -> Float[Tensor, "batch time dim"]:
        """Tokens of normalised frames."""
        batch, time = images.shape[:2]
        tokens = self.conv1(images.flatten(0, 1)).flatten(2).transpose(1, 2)
        if self.class_embeddings is not None:
            own = self.class_embeddings[:time].repeat(batch, 1)
            tokens = torch.cat([own[:, None], tokens], dim=1)
        tokens = self.ln_post(self.transformer(self.ln_pre(tokens + self.positions)))
        frames = tokens.mean(dim=1) if self.class_embeddings is None else tokens[:, 0]
        if self.projection is not None:
            frames = frames @ self.projection
        return frames.unflatten(0, (batch, time))


class ClipTextTower(nn.Module):
    """CLIP's text transformer: all tokens after the last norm, BOS to EOS."""

    def __init__(self, clip: CLIP, tokenizer: SimpleTokenizer | None, max_tokens: int, *, projected: bool) -> None:
        super().__init__()
        self.tokenizer, self.max_tokens = tokenizer, min(max_tokens, clip.context_length)
        self.token_embedding, self.transformer, self.ln_final = clip.token_embedding, clip.transformer, clip.ln_final
        self.positions = nn.Parameter(clip.positional_embedding.detach()[: self.max_tokens].clone())
        self.register_buffer("attention", clip.attn_mask[: self.max_tokens, : self.max_tokens], persistent=False)
        self.projection = nn.Parameter(clip.text_projection.detach().clone()) if projected else None
        self.dim = clip.text_projection.shape[1] if projected else self.positions.shape[1]

    def tokenize(self, texts: list[str]) -> tuple[Int[Tensor, "texts tokens"], Bool[Tensor, "texts tokens"]]:
        """Ids and mask. A text over the limit keeps EOS as its last token (the official code loses it, spec §1.3)."""
        ids = self.tokenizer(texts, context_length=self.max_tokens)
        mask = torch.arange(ids.shape[1]) <= ids.argmax(dim=1, keepdim=True)  # EOS has the highest id
        return ids[:, mask.any(dim=0)], mask[:, mask.any(dim=0)]

    def forward(
        self, ids: Int[Tensor, "texts tokens"], mask: Bool[Tensor, "texts tokens"]
    ) -> Float[Tensor, "texts tokens dim"]:
        """Tokens; attention is causal, so that padding after EOS changes no valid token and needs no mask."""
        length = ids.shape[1]
        tokens = self.token_embedding(ids) + self.positions[:length]
        tokens = self.ln_final(self.transformer(tokens, attn_mask=self.attention[:length, :length]))
        return tokens if self.projection is None else tokens @ self.projection


class T5TextTower(nn.Module):
    """T5's encoder, unpaired with the images (Table 2): all tokens, EOS (`</s>`) last."""

    def __init__(self, encoder: "T5EncoderModel", tokenizer: object, max_tokens: int) -> None:
        super().__init__()
        self.encoder, self.tokenizer, self.max_tokens = encoder, tokenizer, max_tokens
        self.dim = encoder.config.d_model

    def tokenize(self, texts: list[str]) -> tuple[Int[Tensor, "texts tokens"], Bool[Tensor, "texts tokens"]]:
        """Ids and mask; a text over the limit keeps EOS."""
        encoded = self.tokenizer(texts, padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt")
        return encoded["input_ids"], encoded["attention_mask"].bool()

    def forward(
        self, ids: Int[Tensor, "texts tokens"], mask: Bool[Tensor, "texts tokens"]
    ) -> Float[Tensor, "texts tokens dim"]:
        """Tokens after the encoder's last norm."""
        return self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state


def t5_text_tower(name: str, max_tokens: int) -> T5TextTower:
    """`t5-small` or `t5-base` with its weights, from disk or the Hugging Face hub.

    Raises TowerError without transformers (extra `t5`), or where the weights cannot be had.
    """
    transformers = _transformers(name)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(f"google-t5/{name}")
        encoder = transformers.T5EncoderModel.from_pretrained(f"google-t5/{name}")
    except (OSError, ValueError) as error:
        words = " ".join(str(error).split())[:160]
        raise TowerError(
            f"towers.text_name {name}: weights not on disk and not to be downloaded ({words}); connect to the internet "
            "once, or copy the Hugging Face cache from another machine"
        ) from None
    return T5TextTower(encoder, tokenizer, max_tokens)


def untrained_t5(name: str, max_tokens: int) -> T5TextTower:
    """The architecture with fresh weights and no tokenizer: for counting parameters and for tests."""
    transformers = _transformers(name)
    config = transformers.T5Config(vocab_size=32128, d_kv=64, **T5_SIZES[name])
    return T5TextTower(transformers.T5EncoderModel(config), None, max_tokens)


def _transformers(name: str) -> object:
    try:
        import transformers
    except ImportError:
        raise TowerError(
            f"towers.text_name {name}: needs transformers, which is not installed: pip install 'unloc[t5]'"
        ) from None
    return transformers
