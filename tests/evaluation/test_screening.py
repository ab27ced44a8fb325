"""Which prediction answers which query, and how the others are reported."""

import numpy as np
import pytest

from tests.evaluation.small import moments
from unloc.annotations.reading import Problems
from unloc.annotations.schema import QueryRow, VideoRow, build_manifest
from unloc.evaluation.retrieval import align
from unloc.evaluation.screening import screen_moments

ROWS = [VideoRow("v", "test", 20.0), VideoRow("w", "test", 20.0)]
ROWS += [QueryRow("v", "test", "1", "a cat", [[0, 5]]), QueryRow("v", "test", "2", "a cat", [[5, 10]])]
ROWS += [QueryRow("w", "test", "3", "a dog", [[0, 5]])]
MANIFEST = build_manifest(name="m", tasks=("mr",), rows=ROWS)


def answer(start, **names):
    return moments([[start, start + 5, 1.0]], **{"qid": "", "video_id": "v", "query": "a cat"} | names)


def starts(predictions):
    """Start of the window that answers each query, None where none does."""
    return [None if item is None else item.windows[0, 0] for item in align(predictions, MANIFEST)]


def kinds(predictions):
    problems = Problems()
    kept = screen_moments(predictions, MANIFEST, problems)
    return len(kept), [kind.split(":")[0] for kind in problems.counts]


def test_the_official_qid_decides_and_the_sentence_may_differ():
    found = [answer(1, qid="2", query="A CAT!"), answer(2, qid="1"), answer(3, qid="3", video_id="w", query="")]
    assert starts(found) == [2.0, 1.0, 3.0]
    assert kinds(found) == (3, ["query in other words than annotated"])


def test_without_a_qid_repeats_of_a_sentence_are_answered_in_the_files_order():
    found = [answer(1), answer(2, query=" a  cat\n"), answer(3, video_id="w", query="a dog", qid="77")]
    assert starts(found) == [1.0, 2.0, 3.0] and kinds(found) == (3, [])
    assert starts([answer(0), *found]) == [1.0, 2.0, 3.0]  # of too many the last ones
    assert kinds([answer(0), *found])[1] == ["duplicate id"]


def test_the_answer_to_one_qid_never_answers_another_with_the_same_words():
    found = [answer(1, qid="1"), answer(2, qid="1")]
    assert starts(found) == [2.0, None, None]
    assert kinds(found) == (2, ["duplicate id", "missing query"])


def test_a_known_qid_with_another_video_is_matched_by_qid_and_reported():
    found = [answer(1, qid="3")]  # video v and its sentence, but the qid of video w
    assert starts(found) == [None, None, 1.0]
    assert "qid with another video" in kinds(found)[1][0]
    assert kinds([answer(1, qid="9", query="a dog")]) == (0, ["unknown video or query", "missing query"])


def test_a_qid_that_the_annotations_use_twice_needs_its_video():
    rows = [VideoRow(name, "test", 20.0) for name in "vw"]
    rows += [QueryRow(name, "test", "1", f"in {name}", [[0, 5]]) for name in "vw"]
    manifest = build_manifest(name="m", tasks=("mr",), rows=rows)
    found = [moments([[start, 9, 1.0]], video_id=name) for name, start in (("w", 2), ("v", 1))]
    assert [item.windows[0, 0] for item in align(found, manifest)] == [1.0, 2.0]


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        ([1.0] * 10, None),
        ([1.0] * 5, "not one score per"),
        ([1.0] * 20, "not one score per"),
        ([1.0] * 14, "not one score per"),
        (None, "no pred_saliency_scores"),
    ],
)
def test_missing_saliency_or_another_rate_is_reported_if_it_is_scored(scores, said):
    item = moments([[0, 5, 1.0]], query="a cat", saliency=None if scores is None else np.array(scores))
    for rated in (True, False):
        problems = Problems()
        screen_moments([item], MANIFEST, problems, rated=rated)
        found = [kind for kind in problems.counts if "saliency" in kind]
        assert len(found) == bool(said and rated) and all(said in kind for kind in found)


def test_lists_not_by_falling_score_are_counted():
    rising, falling = [[0, 5, 0.1], [5, 9, 0.9]], [[0, 5, 0.9], [5, 9, 0.9], [1, 2, 0.1]]
    problems = Problems()
    screen_moments([moments(rising), moments(falling, qid="2"), moments(rising, qid="3")], MANIFEST, problems)
    assert {kind.split(":")[0]: number for kind, number in problems.counts.items()}["windows not by falling score"] == 2


def test_windows_that_are_not_finite_are_left_out_one_by_one():
    item = moments([[0, 5, np.nan], [0, 5, 0.5], [np.inf, 5, 0.5], [9, 5, 0.1]], qid="1", query="a cat")
    problems = Problems()
    (kept,) = screen_moments([item], MANIFEST, problems)
    assert kept.windows.tolist() == [[0, 5, 0.5], [9, 5, 0.1]]
    assert list(problems.counts.values())[:2] == [2, 1]
