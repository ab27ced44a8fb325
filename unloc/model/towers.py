"""Image and text towers, frozen or trainable: open_clip's encoders, and T5's.

The plain frame token is CLIP's image embedding, projected and not normalised, as in the official code; `TowerChoice`
names the others. Text tokens are all tokens after the final norm. A frozen tower in the model gives the tokens of a
cache (UnLoc §3.1, Tables 2 and 4).
"""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import open_clip
import torch
from jaxtyping import Bool, Float, Int, Shaped
from open_clip.model import CLIP
from open_clip.modified_resnet import ModifiedResNet
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from unloc.errors import InputError, TowerError, one_line
from unloc.model.clip import SHIPPED, activation_of, image_config, pretrained_clip
from unloc.plugins import added

if TYPE_CHECKING:
    from transformers import T5EncoderModel

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
FAST_BFLOAT16 = ("amx_bf16", "avx512_bf16")  # instructions that multiply bfloat16 faster than float32
CPU_BATCH, GPU_BATCH = 16, 256
TEXT_BATCH = 256  # texts of one forward pass on a GPU
T5_BASE = {"d_model": 768, "d_ff": 3072, "num_layers": 12, "num_heads": 12}  # transformers' defaults are t5-small


@dataclass(frozen=True, kw_only=True)
class TowerChoice:
    """Which tower and which of its tokens."""

    tower: str = "toy"  # `toy` or open_clip's name, such as ViT-B-16
    pretrained: str | None = None  # a tag of open_clip, a weights file, or `none`: random weights
    like: str | None = None  # the tag whose activation and preprocessing a weights file has
    frame_token: str = "cls"  # cls: the class token; gap: the mean of the patch tokens, without a class token
    projected: bool = True  # frame tokens behind CLIP's own projection
    num_layers: int = 1  # the last so many layers, each after the last norm, concatenated, the last layer last
    texts_projected: bool = True  # text tokens behind CLIP's own projection
    tower_dtype: str = "float32"  # of the image tower: float32, bfloat16, or auto (`resolved`); texts are float32
    batch: int | None = None  # frames of each forward pass, the last one padded; None: as many as suit the device

    def __post_init__(self) -> None:
        if self.frame_token not in ("cls", "gap"):
            raise InputError(f"--frame-token: got {self.frame_token!r}, expected cls or gap")
        if self.num_layers < 1:
            raise InputError(f"--last-k: got {self.num_layers}, expected at least 1 layer")
        if self.tower_dtype not in ("auto", *DTYPES):
            raise InputError(f"--dtype: got {self.tower_dtype!r}, expected auto, {' or '.join(DTYPES)}")

    @property
    def is_embedding(self) -> bool:
        """True where the token is CLIP's image embedding."""
        return self.frame_token == "cls" and self.projected and self.num_layers == 1

    def resolved(self) -> "TowerChoice":
        """With the dtype and batch that it has on this machine: `auto` is bfloat16 where its multiplication is fast.

        With a GPU the GPU counts. Decided by the hardware, not by a trial: the dtype is part of the fingerprint and
        must not change from run to run.
        """
        dtype = self.tower_dtype
        if dtype == "auto" and torch.cuda.is_available():
            dtype = "bfloat16" if torch.cuda.get_device_capability() >= (8, 0) else "float32"
        elif dtype == "auto":
            capabilities = torch.cpu.get_capabilities()
            dtype = "bfloat16" if any(capabilities.get(key) for key in FAST_BFLOAT16) else "float32"
        return replace(self, tower_dtype=dtype, batch=self.batch or CPU_BATCH)


class ImageTower(nn.Module):
    """One token per image.

    The tower owns `visual` and removes from it what its token does not need: CLIP's projection, and the class
    embedding of `gap` tokens. With `num_frames` each frame index has its own class embedding, all initialised as
    CLIP's, as in the official code. Raises TowerError where the visual has no such tokens.
    """

    def __init__(self, visual: nn.Module, choice: TowerChoice, num_frames: int | None = None) -> None:
        super().__init__()
        self.visual, self.choice, self.class_embeddings, name = visual, choice, None, choice.tower
        is_mean = choice.frame_token == "gap" and not choice.projected
        if isinstance(visual, VisionTransformer) and visual.attn_pool is None and not visual.final_ln_after_pool:
            layers = len(visual.transformer.resblocks)
            if choice.num_layers > layers:
                raise TowerError(f"--last-k: got {choice.num_layers}, {name} has {layers} layers")
            width = visual.positional_embedding.shape[1]
            self.dim = (visual.output_dim if choice.projected else width) * choice.num_layers
            if not choice.projected:
                visual.proj = None
            if choice.frame_token == "gap":
                visual.class_embedding = None
                visual.positional_embedding = nn.Parameter(visual.positional_embedding.detach()[1:].clone())
            elif num_frames and visual.pool_type == "tok":
                self.class_embeddings = nn.Parameter(visual.class_embedding.detach().repeat(num_frames, 1))
                visual.class_embedding = None
        elif choice.is_embedding:
            self.dim = int(visual.output_dim)
        elif isinstance(visual, ModifiedResNet) and is_mean and choice.num_layers <= 5:
            stages = [visual.layer1, visual.layer2, visual.layer3, visual.layer4]
            channels = [visual.conv3.out_channels, *(stage[-1].conv3.out_channels for stage in stages)]
            self.dim = sum(channels[-choice.num_layers :])
        else:
            allowed = "a residual network has its embedding, or --frame-token gap --no-projection of its last 1 to 5 "
            allowed += "stages; one that pools in its own way only its embedding; a plain ViT has all kinds"
            raise TowerError(f"--tower {name}: {allowed}")
        stated = image_config(visual)
        for key in ("mean", "std"):  # of pixels from 0 to 255
            self.register_buffer(key, 255.0 * torch.tensor(stated[key]).view(3, 1, 1), persistent=False)

    def freeze_below(self, num_blocks: int) -> None:
        """Freeze all but the last blocks and what follows them. Raises TowerError where there are not so many."""
        visual, blocks, after = self.visual, [], []
        if isinstance(visual, VisionTransformer):
            blocks, after = [*visual.transformer.resblocks], [visual.ln_post, visual.proj]
        elif isinstance(visual, ModifiedResNet):
            blocks, after = [visual.layer1, visual.layer2, visual.layer3, visual.layer4], [visual.attnpool]
        if num_blocks > len(blocks):
            name = self.choice.tower
            raise TowerError(f"towers.train_last_blocks: got {num_blocks}, {name} has {len(blocks)} blocks")
        self.requires_grad_(False)
        for part in [*blocks[-num_blocks:], *after]:
            if part is not None:
                part.requires_grad_(True)

    def forward(
        self, images: Shaped[Tensor, "*batch 3 height width"], first_frame: int = 0
    ) -> Float[Tensor, "*batch dim"]:
        """Tokens, not normalised themselves, of normalised images or of uint8 pixels.

        With a class embedding per frame index the last axis of the batch counts frames, from `first_frame`.
        """
        leading, visual, choice = images.shape[:-3], self.visual, self.choice
        images = images.flatten(0, -4)
        if images.dtype == torch.uint8:
            images = (images.float() - self.mean) / self.std
        if choice.is_embedding and self.class_embeddings is None:
            return visual(images).unflatten(0, leading)
        if isinstance(visual, ModifiedResNet):
            found = visual.forward_intermediates(images, indices=choice.num_layers, intermediates_only=True)
            stages = [stage.mean(dim=(2, 3)) for stage in found["image_intermediates"]]
            return torch.cat(stages, dim=-1).unflatten(0, leading)
        tokens = visual.conv1(images).flatten(2).transpose(1, 2)
        own = visual.class_embedding
        if self.class_embeddings is not None:
            own = self.class_embeddings[first_frame : first_frame + leading[-1]]
        if own is not None:
            own = own.view(-1, tokens.shape[-1])
            tokens = torch.cat([own.repeat(len(tokens) // len(own), 1)[:, None], tokens], dim=1)
        tokens = visual.ln_pre(tokens + visual.positional_embedding)
        _, layers = visual.transformer.forward_intermediates(tokens, indices=choice.num_layers)
        normed = [visual.ln_post(layer) for layer in layers]
        chosen = [layer[:, 0] if choice.frame_token == "cls" else layer.mean(dim=1) for layer in normed]
        chosen = [token if visual.proj is None else token @ visual.proj for token in chosen]
        return torch.cat(chosen, dim=-1).unflatten(0, leading)


def clip_ids(texts: list[str], max_tokens: int) -> tuple[Int[Tensor, "texts tokens"], Bool[Tensor, "texts tokens"]]:
    """CLIP's ids of texts, and mask. A text over the limit keeps EOS as its last token (the official code loses it)."""
    ids = open_clip.tokenize(texts, max_tokens)
    mask = torch.arange(ids.shape[1]) <= ids.argmax(dim=1, keepdim=True)  # EOS has the highest id
    longest = int(mask.sum(dim=1).max())
    return ids[:, :longest], mask[:, :longest]


class TextTower(nn.Module):
    """CLIP's text transformer: all tokens after the last norm, BOS to EOS."""

    def __init__(self, clip: CLIP, max_tokens: int, *, projected: bool) -> None:
        super().__init__()
        self.max_tokens = min(max_tokens, clip.context_length)
        self.token_embedding, self.transformer, self.ln_final = clip.token_embedding, clip.transformer, clip.ln_final
        self.positions = nn.Parameter(clip.positional_embedding.detach()[: self.max_tokens].clone())
        self.register_buffer("attention", clip.attn_mask[: self.max_tokens, : self.max_tokens], persistent=False)
        self.projection = nn.Parameter(clip.text_projection.detach().clone()) if projected else None
        self.dim = int(clip.text_projection.shape[1 if projected else 0])

    def tokenize(self, texts: list[str]) -> tuple[Int[Tensor, "texts tokens"], Bool[Tensor, "texts tokens"]]:
        """`clip_ids` of texts, cut at the tower's limit."""
        return clip_ids(texts, self.max_tokens)

    def forward(
        self, ids: Int[Tensor, "texts tokens"], mask: Bool[Tensor, "texts tokens"] | None = None
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
        self, ids: Int[Tensor, "texts tokens"], mask: Bool[Tensor, "texts tokens"] | None = None
    ) -> Float[Tensor, "texts tokens dim"]:
        """Tokens after the encoder's last norm."""
        return self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state


def t5_text_tower(name: str, max_tokens: int) -> T5TextTower:
    """`t5-small` or `t5-base` with its weights; on the meta device, for counting, without weights and tokenizer.

    Raises TowerError without transformers (extra `t5`), or where the weights are neither on disk nor to be downloaded.
    """
    try:
        import transformers
    except ImportError:
        raise TowerError(f"towers.text_name {name}: needs transformers: pip install 'unloc[t5]'") from None
    if torch.empty(0).is_meta:
        config = transformers.T5Config(**(T5_BASE if name == "t5-base" else {}))
        return T5TextTower(transformers.T5EncoderModel(config), None, max_tokens)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(f"google-t5/{name}")
        encoder = transformers.T5EncoderModel.from_pretrained(f"google-t5/{name}")
    except (OSError, ValueError) as error:
        problem = f"weights not on disk and not to be downloaded ({one_line(error)})"
        advice = "connect to the internet once, or copy the Hugging Face cache from another machine"
        raise TowerError(f"towers.text_name {name}: {problem}; {advice}") from None
    return T5TextTower(encoder, tokenizer, max_tokens)


def clip_projections(clip: CLIP, choice: TowerChoice) -> dict[str, Tensor]:
    """CLIP's own projections (D, width) of `frames` and `texts` from before them; a residual network has no first."""
    found = {}
    if not choice.projected and isinstance(clip.visual, VisionTransformer):
        found["frames"] = clip.visual.proj.detach()
    if not choice.texts_projected:
        found["texts"] = clip.text_projection.detach()
    return found


def weights_sha256(model: nn.Module) -> str:
    """Checksum of all weights with their names."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class Tower(nn.Module):
    """A frozen image and text tower with preprocessing constants: what makes a cache."""

    def __init__(self, clip: CLIP, choice: TowerChoice, *, pretrained: str = "none", like: str | None = None) -> None:
        """`pretrained` and `like` name the weights in the fingerprint. Raises TowerError as `ImageTower`."""
        super().__init__()
        choice = choice.resolved()
        self.dtype, self.batch, self.image_config = DTYPES[choice.tower_dtype], choice.batch, image_config(clip)
        activation, digest = activation_of(clip), weights_sha256(clip)
        own = clip_projections(clip, choice)
        self.projections: dict[str, np.ndarray] = {kind: one.float().cpu().numpy() for kind, one in own.items()}
        self.image = ImageTower(clip.visual, choice).to(self.dtype)
        self.text = TextTower(clip, clip.context_length, projected=choice.texts_projected)
        self.eval().requires_grad_(False)
        self.fingerprint = {  # what identifies the tower; another batch may change the last bit of a token on a GPU
            "name": choice.tower,
            "pretrained": pretrained,
            "weights_sha256": digest,
            "frame_dim": self.image.dim,
            "text_dim": self.text.dim,
            "context_length": int(clip.context_length),
            "frame_token": choice.frame_token,
            "projected": choice.projected,
            "num_layers": choice.num_layers,
            "dtype": choice.tower_dtype,
            "activation": activation,
            "like": like,
            "texts_projected": choice.texts_projected,
            "batch": choice.batch,
        }

    @torch.inference_mode()
    def encode_images(self, images: Tensor) -> Tensor:
        """(N, 3, S, S) normalised float32 images to (N, D) float32 tokens."""
        tokens = []  # of batches of a fixed size, the last padded, so that equal images give equal bits
        for start in range(0, len(images), self.batch):
            part = images[start : start + self.batch].to(self.dtype)
            padded = torch.cat([part, part.new_zeros(self.batch - len(part), *part.shape[1:])])
            tokens.append(self.image(padded)[: len(part)])
        return torch.cat(tokens).float()

    @torch.inference_mode()
    def encode_texts(self, texts: list[str]) -> list[Tensor]:
        """All valid tokens (K, D) of each text, from BOS to EOS, float32. Too long texts keep their EOS.

        Attention is causal, so what follows EOS changes nothing: a CPU encodes each text alone at its own length, a GPU
        full batches of the context length, the last one padded.
        """
        if not texts:
            return []
        ids = open_clip.tokenize(texts, self.text.max_tokens)
        lengths = (ids.argmax(dim=-1) + 1).tolist()  # EOS has the highest id
        device = self.text.positions.device
        if device.type == "cpu":
            return [self.text(row[None, :length])[0].float() for row, length in zip(ids, lengths, strict=True)]
        padded = torch.cat([ids, ids[:1].expand(-len(ids) % TEXT_BATCH, -1)]).to(device)
        tokens = torch.cat([self.text(part).float().cpu() for part in padded.split(TEXT_BATCH)])
        return [row[:length] for row, length in zip(tokens, lengths, strict=False)]


class AddedTower(Tower):
    """A frozen tower of another package: a module with `image_config`, `encode_images` and `encode_texts`."""

    def __init__(self, module: nn.Module, choice: TowerChoice) -> None:
        """Raises TowerError where the choice asks for other tokens than the module has."""
        nn.Module.__init__(self)
        choice = replace(choice, tower_dtype=choice.tower_dtype.replace("auto", "float32")).resolved()
        kinds = ("frame_token", "projected", "num_layers", "texts_projected", "like")
        if any(getattr(choice, key) != getattr(TowerChoice, key) for key in (*kinds, "tower_dtype")):
            options = "--frame-token, --no-projection, --no-text-projection, --last-k, --dtype and --like"
            raise TowerError(f"--tower {choice.tower}: of another package, and has its own tokens; leave {options} out")
        self.module, self.image = module.eval().requires_grad_(False), module.encode_images
        self.dtype, self.batch, self.projections = torch.float32, choice.batch, {}
        self.image_config = dict(module.image_config)
        size = self.image_config["image_size"]
        self.fingerprint = {key: getattr(choice, key) for key in kinds} | {
            "name": choice.tower,
            "pretrained": Path(choice.pretrained).name if choice.pretrained else SHIPPED,
            "weights_sha256": weights_sha256(module),
            "frame_dim": self.encode_images(torch.zeros(1, 3, size, size)).shape[1],
            "text_dim": self.encode_texts(["a"])[0].shape[1],
            "context_length": None,
            "dtype": "float32",
            "activation": None,
            "batch": choice.batch,
            "aligned": bool(getattr(module, "aligned", False)),  # a frame and the last token of its text are near
        }

    @torch.inference_mode()
    def encode_texts(self, texts: list[str]) -> list[Tensor]:
        """All tokens (K, D) of each text, float32; the last one stands for the text."""
        return [tokens.float().cpu() for tokens in self.module.encode_texts(texts)]


def load_tower(choice: TowerChoice) -> Tower:
    """The tower with its weights (`pretrained_clip`). Raises TowerError as `pretrained_clip` and `ImageTower`."""
    load = None if choice.tower in ("toy", *open_clip.list_models()) else added("towers", choice.tower)
    if load is not None:
        return AddedTower(load(None if choice.pretrained == SHIPPED else choice.pretrained), choice)
    clip, pretrained, like = pretrained_clip(choice.tower, choice.pretrained, choice.like)
    return Tower(clip, choice, pretrained=pretrained, like=like)
