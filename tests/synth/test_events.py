import itertools

import numpy as np

from unloc.synth.events import covered_share, plan_video
from unloc.synth.vocabulary import CLASS_ACTIONS, MOTIONS, STEP_ACTIONS, TASKS


def test_a_plan_depends_on_seed_and_index_alone(plans):
    later = [plan_video(31, index) for index in (5, 2)]
    assert later == [plans[5], plans[2]]
    assert plan_video(32, 5).events != plans[5].events


def test_videos_last_20_to_90_seconds_in_several_rates_sizes_and_gops(plans):
    assert all(plan.duration_seconds + 1 / plan.fps >= 20 and plan.duration_seconds <= 90 for plan in plans)
    for name in ("fps", "width", "gop", "num_b_frames", "task"):
        assert len({getattr(plan, name) for plan in plans}) >= 4, name


def test_events_lie_inside_the_video_and_take_2_to_60_percent_of_it(plans):
    shares = [event.length_seconds / plan.duration_seconds for plan in plans for event in plan.events]
    assert all(
        0 <= event.start_seconds < event.end_seconds <= plan.duration_seconds for plan in plans for event in plan.events
    )
    assert min(shares) >= 0.02 and max(shares) <= 0.6
    assert max(shares) > 0.35, "no long event in 120 videos"


def test_background_is_40_to_60_percent(plans):
    shares = [1 - covered_share(plan.events, plan.duration_seconds) for plan in plans]
    assert min(shares) >= 0.4 and max(shares) <= 0.6


def test_steps_come_in_task_order_with_gaps_and_never_overlap(plans):
    for plan in plans:
        steps = [event for event in plan.events if event.is_step]
        order = [TASKS[plan.task].index(event.action) for event in steps]
        assert order == sorted(order)
        assert all(a.end_seconds < b.start_seconds for a, b in itertools.pairwise(steps))


def test_events_overlap_and_repeat_in_many_videos(plans):
    overlapping = [
        any(
            a.overlap_seconds(b.start_seconds, b.end_seconds) > 0
            for a in plan.events
            for b in plan.events
            if a is not b
        )
        for plan in plans
    ]
    repeated = [len({event.action for event in plan.events}) < len(plan.events) for plan in plans]
    assert np.mean(overlapping) > 0.3
    assert np.mean(repeated) > 0.25


def test_two_events_of_one_look_never_happen_at_once(plans):
    for plan in plans:
        for event in plan.events:
            for other in plan.events:
                if other is not event and other.action.look == event.action.look:
                    assert event.overlap_seconds(other.start_seconds, other.end_seconds) == 0


def test_every_class_shares_its_look_with_the_class_of_another_motion():
    for action in CLASS_ACTIONS:
        assert {other.look for other in CLASS_ACTIONS if other.motion != action.motion} >= {action.look}
    assert len(set(STEP_ACTIONS)) == len(STEP_ACTIONS)


def test_objects_stay_inside_the_centre_crop(plans):
    for plan in plans[:40]:
        for event in plan.events:
            for seconds in np.linspace(event.start_seconds, event.end_seconds, 20, endpoint=False):
                sprite = event.sprite_at(seconds)
                assert max(abs(sprite.x), abs(sprite.y)) < 0.5


def test_motions_do_what_they_are_called(plans):
    rate = {motion: [] for motion in MOTIONS}
    for event in (event for plan in plans for event in plan.events):
        first = event.start_seconds + 0.3
        early, late = event.sprite_at(first), event.sprite_at(first + 0.3)
        rate[event.action.motion].append([late.x - early.x, late.y - early.y, late.radius - early.radius])
    means = {motion: np.mean(values, axis=0) for motion, values in rate.items()}
    assert means["rising"][1] < -0.02 < 0.02 < means["falling"][1]
    assert means["moving left"][0] < -0.02 < 0.02 < means["moving right"][0]
    assert means["growing"][2] > 0.003 > -0.003 > means["shrinking"][2]
    assert abs(means["rising"][0]) < 0.01


def test_the_pose_of_one_moment_does_not_tell_rising_from_falling(plans):
    heights = {"rising": [], "falling": []}
    for event in (event for plan in plans for event in plan.events if event.action.motion in heights):
        for share in (np.arange(10) + 0.5) / 10:
            sprite = event.sprite_at(event.start_seconds + share * event.length_seconds)
            heights[event.action.motion].append(sprite.y)
    rising, falling = (np.quantile(heights[motion], [0.1, 0.3, 0.5, 0.7, 0.9]) for motion in ("rising", "falling"))
    assert np.abs(rising - falling).max() < 0.06
