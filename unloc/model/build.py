"""Build the model of a recipe: the core over given tokens, or the core behind live towers (UnLoc Figure 2)."""

from collections.abc import Collection, Mapping

import torch
from jaxtyping import Bool, Shaped
from open_clip.model import CLIP
from torch import Tensor, nn

from unloc.config import Recipe
from unloc.errors import ConfigError, one_line
from unloc.model.clip import WeightSettings, clip_model
from unloc.model.towers import ImageTower, T5TextTower, TextTower, TowerChoice, clip_projections, t5_text_tower
from unloc.model.unloc import Outputs, UnLoc, parameter_counts
from unloc.recipes import task_recipes
from unloc.tasks import task_named


class EndToEnd(nn.Module):
    """Towers before an UnLoc; where one is None its tokens are given. Frozen ones (Table 4) never train."""

    def __init__(
        self, core: UnLoc, image_tower: ImageTower | None = None, text_tower: TextTower | T5TextTower | None = None
    ) -> None:
        super().__init__()
        self.image_tower, self.text_tower, self.core = image_tower, text_tower, core

    def forward(
        self,
        frames: Shaped[Tensor, "batch time ..."],
        frame_mask: Bool[Tensor, "batch time"] | None,
        texts: Shaped[Tensor, "texts tokens ..."],
        text_mask: Bool[Tensor, "texts tokens"] | None,
        *,
        pairing: str = "all",
    ) -> Outputs:
        """`UnLoc.forward` of images (B, T, 3, S, S) or their tokens, and of ids (C, K) or tokens of texts."""
        if frames.ndim == 5:
            frames = self.image_tower(frames)
        if not texts.is_floating_point():
            texts = self.text_tower(texts, text_mask)
        return self.core(frames, frame_mask, texts, text_mask, pairing=pairing)

    @torch.no_grad()
    def encode_in_chunks(self, frames: Shaped[Tensor, "batch time 3 height width"], chunk: int) -> Tensor:
        """Tokens (B, T, D) of frames, `chunk` of them at a time, without gradient."""
        starts = range(0, frames.shape[1], chunk)
        videos = [[self.image_tower(video[None, start : start + chunk], start) for start in starts] for video in frames]
        return torch.cat([torch.cat(tokens, dim=1) for tokens in videos])

    def tower_parameters(self) -> list[nn.Parameter]:
        """What trains at the towers' rate: the towers, and the projections that replace theirs."""
        return [*nn.ModuleList(self._towers()).parameters(), *self.core.tower_parameters()]

    def train(self, mode: bool = True) -> "EndToEnd":
        """Frozen towers stay in evaluation mode, and batch norms: a frame's token never depends on other frames."""
        super().train(mode)
        for tower in self._towers():
            tower.train(mode and any(parameter.requires_grad for parameter in tower.parameters()))
        for part in self.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.eval()
        return self

    def _towers(self) -> list[nn.Module]:
        return [tower for tower in (self.image_tower, self.text_tower) if tower is not None]


HEADS = ("relevance_head.", "displacement_head.", "saliency_head.", "logit_")


def weight_name(task: str, name: str) -> str:
    """The name that a weight of a task's model has among those of several: a head's is the task's own."""
    return f"heads.{task}.{name}" if name.removeprefix("core.").startswith(HEADS) else name


class SeveralTasks(nn.Module):
    """The models of several tasks on the same towers, projections, fusion and pyramid: only the heads are their own.

    Each is a model as `build_model` makes it; those that need fewer pyramid levels have the lower ones. Raises
    ConfigError where what should be shared has different sizes.
    """

    def __init__(self, models: Mapping[str, UnLoc | EndToEnd]) -> None:
        super().__init__()
        self.tasks, shared = nn.ModuleDict(models), {}
        for task, model in models.items():
            for name, parameter in list(model.named_parameters()):
                first, owner = shared.setdefault(weight_name(task, name), (parameter, task))
                if first.shape != parameter.shape:
                    sizes = f"{tuple(first.shape)} for {owner}, {tuple(parameter.shape)} for {task}"
                    advice = "give these tasks the same data.num_steps and data.max_text_tokens"
                    raise ConfigError(f"tasks: they share {name}, which is {sizes}; {advice}")
                module, _, key = name.rpartition(".")
                setattr(model.get_submodule(module), key, first)

    def tower_parameters(self) -> list[nn.Parameter]:
        """What trains at the towers' rate, of any task."""
        return [parameter for model in self.tasks.values() for parameter in model.tower_parameters()]

    def state_dict(self) -> dict[str, Tensor]:
        """Each weight once, by its `weight_name`."""
        states = {task: model.state_dict() for task, model in self.tasks.items()}
        return {weight_name(task, name): value for task, state in states.items() for name, value in state.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take the weights of a `state_dict`."""
        for task, model in self.tasks.items():
            model.load_state_dict({name: state[weight_name(task, name)] for name in model.state_dict()})


def models_by_task(model: nn.Module, recipe: Recipe) -> Mapping[str, nn.Module]:
    """The model of each task of a recipe; of one task the model itself."""
    return dict(model.tasks.items()) if recipe.tasks else {recipe.task: model}


def build_model(
    recipe: Recipe,
    *,
    num_classes: int,
    frame_dim: int | None = None,
    text_dim: int | None = None,
    clip: CLIP | None = None,
    live: Collection[str] = (),
) -> UnLoc | EndToEnd:
    """The model of a recipe with a fresh core, alone or behind the `live` ones ("image", "text") of its towers.

    `frame_dim` and `text_dim` are the channels of given tokens; `num_classes` counts for fusion `none`, whose outputs
    are the classes. Live towers are those of `clip`, which they take over (or T5); without trained projections they
    apply CLIP's, and trained ones start as these.
    """
    towers, config, data = recipe.towers, recipe.model, recipe.data
    image = text = None
    if clip is not None:
        choice = tower_choice(recipe)
        projections = clip_projections(clip, choice)
        if towers.text_name != "clip":
            projections.pop("texts", None)
        if "text" in live and config.fusion != "none":
            if towers.text_name == "clip":
                text = TextTower(clip, data.max_text_tokens, projected=choice.texts_projected)
            else:
                text = t5_text_tower(towers.text_name, data.max_text_tokens)
            text.requires_grad_(towers.text == "finetune")
        if "image" in live:
            image = ImageTower(clip.visual, choice, data.num_steps if towers.frame_embeddings else None)
            image.requires_grad_(towers.image == "finetune")
            if towers.image == "finetune" and towers.train_last_blocks:
                image.freeze_below(towers.train_last_blocks)
            if towers.image == "finetune" and towers.checkpoint_blocks:
                clip.visual.set_grad_checkpointing()
    core = UnLoc(
        config,
        frame_dim if image is None else image.dim,
        text_dim if text is None else text.dim,
        data.num_steps,
        num_classes=num_classes if config.fusion == "none" else None,
        localizes=task_named(recipe.task).localizes,
    )
    if clip is None:
        return core
    core.start_projections(projections)
    return EndToEnd(core, image, text)


def tower_choice(recipe: Recipe) -> TowerChoice:
    """The tower that a recipe names, and the tokens that the core takes from it."""
    projected = {"projected": not recipe.model.project_frames, "texts_projected": not recipe.model.project_texts}
    return TowerChoice(tower=recipe.towers.name, frame_token=recipe.towers.frame_token, **projected)


def compile_core(model: UnLoc | EndToEnd) -> None:
    """Let fusion, pyramid and heads run through torch.compile, in place: weights keep their names.

    Texts of any number of tokens are one graph. The first step raises ConfigError where nothing can be compiled.
    """
    core = model.core if isinstance(model, EndToEnd) else model
    compiled = torch.compile(core.forward)

    def forward(*tokens_and_masks: Tensor | None, pairing: str = "all") -> Outputs:
        """`UnLoc.forward`, compiled."""
        for texts in tokens_and_masks[2:]:
            if texts is not None:
                torch._dynamo.maybe_mark_dynamic(texts, 1)
        try:
            return compiled(*tokens_and_masks, pairing=pairing)
        except torch._dynamo.exc.TorchDynamoException as error:
            raise ConfigError(f"train.compile: failed here ({one_line(error)}); set train.compile=off") from error

    core.forward = forward


def counted_parameters(recipe: Recipe) -> dict[str, int]:
    """Parameters of every part and their `total`, of the model with its towers where they are named and not cached.

    Built on torch's meta device: without memory. With fusion `none`, heads for one class. Raises TowerError where
    open_clip has no plain CLIP of that name.
    """
    if recipe.tasks:  # the largest of what they share
        counts: dict[str, int] = {}
        for task, one in task_recipes(recipe).items():
            for part, count in counted_parameters(one).items():
                name = part if f"{part}." not in HEADS and part != "own" else f"{task}.{part}"
                counts[name] = max(count, counts.get(name, 0))
        del counts["total"]
        return counts | {"total": sum(counts.values())}
    with torch.device("meta"):
        if not recipe.towers.name:  # tokens of an unknown cache: assumed as wide as the fusion
            width = recipe.model.width
            return parameter_counts(build_model(recipe, num_classes=1, frame_dim=width, text_dim=width))
        clip = clip_model(recipe.towers.name, WeightSettings())
        text_dim = clip.text_projection.shape[0 if recipe.model.project_texts else 1]
        live = [tower for tower in ("image", "text") if getattr(recipe.towers, tower) != "cached"]
        model = build_model(recipe, num_classes=1, text_dim=text_dim, clip=clip, live={"image", *live})
    model.image_tower = model.image_tower if "image" in live else None
    return parameter_counts(model)
