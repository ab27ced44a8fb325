"""Which prediction answers which query, and what is told of those that answer none."""

import numpy as np

from tests.evaluation.small import moments
from unloc.data.predictions import Problems
from unloc.data.schema import build_manifest, query_row, video_row
from unloc.evaluation.retrieval import align
from unloc.evaluation.screening import screen_moments

ROWS = [video_row("v", "test", 20.0), video_row("w", "test", 20.0)]
ROWS += [query_row("v", "test", "1", "a cat", [[0, 5]]), query_row("v", "test", "2", "a cat", [[5, 10]])]
ROWS += [query_row("w", "test", "3", "a dog", [[0, 5]])]
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


def test_the_official_qid_decides_whatever_the_sentence():
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


def test_a_qid_of_another_video_does_not_count():
    assert starts([answer(1, qid="3")]) == [1.0, None, None]  # by its words
    assert kinds([answer(1, qid="3", query="a dog")]) == (0, ["unknown video or query", "missing query"])


def test_windows_that_are_no_numbers_are_left_out_one_by_one():
    item = moments([[0, 5, np.nan], [0, 5, 0.5], [np.inf, 5, 0.5], [9, 5, 0.1]], qid="1", query="a cat")
    problems = Problems()
    (kept,) = screen_moments([item], MANIFEST, problems)
    assert kept.windows.tolist() == [[0, 5, 0.5], [9, 5, 0.1]]
    assert list(problems.counts.values())[:2] == [2, 1]
