"""Any value anywhere in a file of predictions gives metrics from 0 to 100 or one clear error, never a crash."""

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.mutations import GONE, changed, places
from unloc.annotations.reading import Problems
from unloc.annotations.schema import InstanceRow, QueryRow, VideoRow, build_manifest
from unloc.errors import UnlocError
from unloc.evaluation.analysis import analyse
from unloc.evaluation.evaluator import evaluate
from unloc.evaluation.screening import SCREENS
from unloc.predictions.reading import read_predictions

ROWS = [VideoRow("v", "test", 10.0), VideoRow("w", "test", 6.0), InstanceRow("v", "test", "Run", [1, 4])]
ROWS += [
    InstanceRow("w", "test", "Jump", [0, 6]),
    QueryRow("v", "test", "1", "a cat", [[0, 4]], [0, 1], [[4, 3, 2]] * 2),
]
ROWS += [QueryRow("w", "test", "2", "a dog", [[2, 6]], [2], [[4, 4, 4]])]
MANIFEST = build_manifest(name="m", tasks=("tal", "mr", "hd", "as"), rows=ROWS, classes=("Run", "Jump"))
DETECTION = {"label": "Run", "score": 0.5, "segment": [1, 4]}
TAL = [{"version": "1", "results": {"v": [DETECTION, DETECTION], "w": []}, "external_data": {"used": False}}]
ANSWER = {
    "qid": 1,
    "query": "a cat",
    "vid": "v",
    "pred_relevant_windows": [[0, 4, 0.9]],
    "pred_saliency_scores": [1, 0],
}
MR = [ANSWER, ANSWER | {"qid": 2, "query": "a dog", "vid": "w"}]
NULL = [item | {"pred_exist_score": 0.5} for item in MR]
AS = [{"video_id": "v", "fps": 2, "labels": ["Run", None, "Jump"]}]
AS += [{"video_id": "w", "times_seconds": [0, 0.5, 4], "labels": [None, "Run", None]}]
ODD = [None, True, 0, -1, 1e308, -1e308, 10**30, float("nan"), float("inf"), "", "Run", "v", [], {}, [[]], [1, 2, 3]]
ODD += ["1", [None], {"a": 1}, ["Run"], 0.5, "\ud800", "a\nb"]


@pytest.mark.parametrize(("task", "content"), [("tal", TAL), ("mr", MR), ("hd", MR), ("as", AS), ("rejection", NULL)])
@given(data=st.data())
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_value_anywhere_scores_or_is_one_clear_error(task, content, data, tmp_path_factory):
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from([path for path in places(content) if path]))
        value = GONE if data.draw(st.booleans()) and len(path) > 1 else data.draw(st.sampled_from(ODD))
        content = changed(content, path, value)
    file = tmp_path_factory.getbasetemp() / f"{task}.json"
    file.write_text("\n".join(map(json.dumps, content)))
    problems = Problems()
    try:
        held = read_predictions(file, task, problems=problems)
        screened = SCREENS[task](held.predictions, MANIFEST, problems)
        report = evaluate(task, screened, MANIFEST, "test")
        if task != "rejection":
            analyse(task, screened, MANIFEST)
    except UnlocError as error:
        assert "\n" not in str(error)
    else:
        values = np.array(list(report["metrics"].values()))
        assert ((values >= 0) & (values <= 100) | np.isnan(values)).all()
        assert all("\n" not in line for line in problems.lines())
