import numpy as np
import pytest

from unloc.synth.events import video_generator
from unloc.synth.formats import RELATIONS, class_query, event_query, leaves_view


@pytest.fixture(scope="module")
def sentences(plans):
    return [
        (plan, event, event_query(event, plan, video_generator(31, plan.index, 2)))
        for plan in plans
        for event in plan.events
    ]


def test_sentences_have_5_to_20_words(sentences):
    lengths = [len(sentence.split()) for _, _, sentence in sentences]
    assert min(lengths) >= 5 and max(lengths) <= 20


def test_sentences_name_colour_and_paraphrase_motion(sentences):
    assert all(event.action.colour in sentence for _, event, sentence in sentences)
    rising = {sentence for _, event, sentence in sentences if event.action.motion == "rising"}
    assert sum("rises" in sentence or "rising" in sentence for sentence in rising) < 0.8 * len(rising)


def test_a_repeated_action_is_told_apart_by_number_or_by_another_event(sentences):
    words = (" time", "after", "before", "while")
    for plan, event, sentence in sentences:
        if sum(other.action == event.action for other in plan.events) > 1:
            assert any(word in sentence.lower() for word in words), sentence


def test_some_sentences_name_another_event(sentences):
    share = np.mean([any(word in sentence.lower() for word in RELATIONS) for _, _, sentence in sentences])
    assert 0.1 < share < 0.5


def test_leaves_is_said_only_of_objects_that_are_gone(sentences):
    for plan, _, sentence in sentences:
        if "leaves" in sentence:
            assert any(leaves_view(event, plan) for event in plan.events)


def test_a_class_query_names_no_other_event(plans):
    rng = np.random.default_rng(0)
    queries = [class_query(plan.events[0], rng) for plan in plans]
    assert not any("after" in query or "before" in query or "time" in query for query in queries)
