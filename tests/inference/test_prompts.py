import numpy as np
import pytest
import torch

from unloc.config import DataConfig, Recipe
from unloc.examples.batches import Example
from unloc.examples.sources import ClassTexts, prompted
from unloc.examples.steps import TimeGrid
from unloc.inference.predict import class_outputs
from unloc.model.unloc import Outputs

CLASSES = ("long jump", "high_jump")


class TextsOfOneToken:
    """A source: every text is one token that holds the text's own number."""

    def texts(self, texts):
        numbers = {text: number for number, text in enumerate(sorted(set(texts)))}
        return [np.full((1, 4), numbers[text], dtype=np.float32) for text in texts]


class RepeatsTexts(torch.nn.Module):
    """A model: the logit of every class is its text token."""

    def __init__(self):
        super().__init__()
        self.parameter = torch.nn.Parameter(torch.zeros(()))

    def forward(self, frames, frame_mask, texts, text_mask, *, pairing):
        relevance = texts[:, 0, 0].expand(len(frames), -1)[..., None].repeat(1, 1, frames.shape[1])
        return Outputs(relevance, None, None)


@pytest.mark.parametrize("ensembling", [True, False])
def test_prompt_ensembling_averages_outputs_and_its_absence_takes_the_first_prompt(ensembling):
    data = DataConfig(prompts=True, prompt_ensembling=ensembling)
    texts = ClassTexts(CLASSES, TextsOfOneToken(), data)
    frames, mask = np.zeros((4, 4), dtype=np.float32), np.ones(4, dtype=bool)
    example = Example(
        video_id="v", frames=frames, frame_mask=mask, grid=TimeGrid(0.0, 1.0), duration_seconds=4.0,
        segments_steps=np.zeros((0, 2)), segment_classes=np.zeros(0, dtype=np.int64),
    )  # fmt: skip
    outputs = class_outputs(RepeatsTexts(), [example], texts, Recipe(data=data))
    phrasings = [prompted(name) for name in CLASSES]
    flat = sorted({text for row in phrasings for text in row})
    numbers = np.array([[flat.index(text) for text in row] for row in phrasings], dtype=np.float64)
    expected = numbers.mean(axis=1) if ensembling else numbers[:, 0]
    np.testing.assert_allclose(outputs.relevance[0, :, 0].detach().numpy(), expected, rtol=1e-6)
