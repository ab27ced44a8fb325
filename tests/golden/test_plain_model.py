"""The numpy loops behind model.npz give the official tensors, and model.npz is what they give."""

from pathlib import Path

import numpy as np
import pytest

from tests.golden import plain_model

CASES = [f"fusion_{pyramid}_{tokens}" for pyramid in ("simple_pyramid", "fpn") for tokens in ("eos", "all")]
CASES += [
    f"head_{kind}_{task}" for kind in ("shared", "separate") for task in ("temporal_localization", "moment_retrieval")
]
CASES += ["fusion_transformer_as", "head_linear", "clip_video_token", "clip_video_gap", "clip_text"]
CASES += ["loss_tal", "loss_mr", "loss_as", "target_tal", "target_mr", "decode_tal", "decode_mr"]
CASES += ["nms_agnostic", "nms_multiclass", "nms_mr_0", "nms_mr_1"]


def inputs_of(scenic, name):
    if name.startswith("nms_mr"):
        return {key: scenic[f"decode_mr/{key}"][int(name[-1])] for key in ("segments", "scores")}
    if name.startswith("nms"):
        return {key: scenic[f"decode_tal/{key}"] for key in ("segments", "scores", "class_idx")}
    arrays = {key.removeprefix(f"{name}/"): value for key, value in scenic.items() if key.startswith(f"{name}/")}
    return {key: value.astype(float) if value.dtype == np.float32 else value for key, value in arrays.items()}


@pytest.mark.parametrize("name", CASES)
def test_plain_loops_give_every_array_of_a_case(scenic, name):
    given = inputs_of(scenic, name)
    params = {key.removeprefix("params/"): value for key, value in given.items() if key.startswith("params/")}
    for key, value in plain_model.expected(name, params, given).items():
        stored = scenic[f"{name}/{key}"]
        if name == "clip_text":  # padded rows are never read
            stored = stored * (given["ids"] > 0)[..., None]
        np.testing.assert_allclose(np.asarray(value, float), stored, atol=2e-5, rtol=1e-6, err_msg=key)


def test_both_files_hold_the_same_cases(shared):
    official = np.load(shared / "golden" / "scenic" / "unloc_golden.npz")
    own = np.load(Path(__file__).with_name("model.npz"))
    assert {key.split("/")[0] for key in own} == {key.split("/")[0] for key in official} == set(CASES)
    assert set(own) == set(official)
