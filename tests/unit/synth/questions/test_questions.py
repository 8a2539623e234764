"""Questions of every type, with answers that are checked against scenes made for them."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from fourdthinker.synth.options import add_options
from fourdthinker.synth.questions import Facts, ObjectFacts, Question, ask, measure
from fourdthinker.synth.questions.metric import on_grid, turn
from fourdthinker.synth.questions.objects import object_questions
from fourdthinker.synth.questions.views import camera_viewer, direction_word, object_viewer, seen_from
from fourdthinker.synth.tracks import CameraTrack, Move, ObjectTrack
from tests.unit.synth.scenes import scene

DSR = {
    f"{fixed}_{kind}"
    for fixed in ("abs", "rel")
    for kind in ("dis", "dir", "ori", "spd", "spd_comp", "dir_pred")
}
FOURD = {"camera", "object_direction", "object_direction_by_box", "object_distance", "object_speed"}
METRIC = {
    "camera_absolute_distance", "object_absolute_distance", "relative_distance", "camera_displacement",
    "object_displacement", "camera_rotation", "object_bearing", "camera_object_change",
}  # fmt: skip
TIMES = np.linspace(0, 4, 41)


def camera(position: np.ndarray | None = None, yaw_degrees: float = 0.0, metric: bool = True) -> CameraTrack:
    """A camera that goes to `position` and turns right by `yaw_degrees` over 4 seconds."""
    share = TIMES / TIMES[-1]
    yaw = np.radians(yaw_degrees) * share
    poses = np.tile(np.eye(4), (len(TIMES), 1, 1))
    poses[:, 0, 0] = poses[:, 2, 2] = np.cos(yaw)
    poses[:, 0, 2], poses[:, 2, 0] = np.sin(yaw), -np.sin(yaw)
    poses[:, :3, 3] = np.outer(share, np.zeros(3) if position is None else position)
    return CameraTrack(TIMES, poses, metric=metric)


def track(name: str, start: list[float], end: list[float], heading: list[float] | None = None) -> ObjectFacts:
    share = (TIMES / TIMES[-1])[:, None]
    a, b = np.array(start, dtype=float), np.array(end, dtype=float)
    faces = None if heading is None else np.tile(np.array(heading, dtype=float), (len(TIMES), 1))
    boxes = np.tile([0.1, 0.2, 0.3, 0.4], (len(TIMES), 1))
    return ObjectFacts(ObjectTrack(name, TIMES, a + share * (b - a), metric=True, heading=faces, boxes=boxes))


def facts(view: CameraTrack, *objects: ObjectFacts, moves: tuple[Move, ...] = ()) -> Facts:
    return Facts("clip", "video.mp4", 4.0, view, moves, objects)


def answers(found: Facts, kind: str, about: str = "") -> list[str]:
    return [
        q.answer for q in ask(found, 0) if q.type == kind and about in q.id and not q.id.endswith(".number")
    ]


def test_every_type_is_asked_with_many_wordings() -> None:
    asked = [q for index in range(150) for q in ask(scene(index), 0)]
    kinds = Counter(q.type for q in asked)
    assert set(kinds) == DSR | FOURD | METRIC
    for kind in kinds:
        texts = {re.sub(r"[\d.,\[\] ]+|the [a-z]+( [a-z]+)?", " ", q.text) for q in asked if q.type == kind}
        assert len(texts) >= 6, (kind, texts)
    assert len({q.id for q in asked}) == len(asked)


def test_questions_hold_no_answer_and_no_open_field() -> None:
    for q in (q for index in range(50) for q in ask(scene(index), 0)):
        assert not re.search(r"[{}]", q.text)
        assert q.text[0].isupper()
        assert not re.search(r"[.?] [a-z]", q.text), q.text
        assert 0 <= q.start < q.end <= 6.0
        assert all(0 <= t <= 6.0 for t in q.support.instants)
        assert list(q.support.instants) == sorted(set(q.support.instants))
        assert all(float(t) <= 6.0 for t in re.findall(r"(\d+\.\d) s\b", q.text))
        if q.bbox is not None:
            assert f"[{q.bbox[0]:.2f}, " in q.text


def test_where_the_box_is_does_not_tell_where_its_object_goes() -> None:
    """Who answers "left" for what is seen right, and "toward" for what is small, is at chance."""
    rng = np.random.default_rng(0)
    asked = [q for n in range(300) for q in object_questions(scene(n, seed=2), rng)]
    found = add_options([q for q in asked if q.type == "object_direction_by_box"], 0).questions
    hits, chances = [], []
    for q in found:
        assert q.bbox is not None
        left, top, right, bottom = q.bbox
        x, y, side = left + right - 1, top + bottom - 1, np.sqrt((right - left) * (bottom - top))
        said = {"left": x, "right": -x, "up": y, "down": -y, "left-up": (x + y) / 1.4}
        said |= {"right-down": -(x + y) / 1.4, "toward the camera": 4 * (0.1 - side)}
        said |= {"away from the camera": 4 * (side - 0.1), "stationary": -0.2}
        hits.append(max(q.options, key=lambda letter: said[q.options[letter]]) == q.letter)
        chances.append(1 / len(q.options))
    chance = float(np.mean(chances))
    assert len(found) > 100
    assert np.mean(hits) < chance + 1.96 * np.sqrt(chance * (1 - chance) / len(found))


def test_the_same_clip_gets_the_same_questions() -> None:
    assert ask(scene(3), 5) == ask(scene(3), 5)
    assert ask(scene(3), 5) != ask(scene(3), 6)


# --- camera -----------------------------------------------------------------------------------------------


def test_moves_together_are_a_set_and_in_a_row_a_sequence() -> None:
    moves = (Move("camera", "pan left", 0.0, 2.0), Move("camera", "dolly in", 0.0, 4.0))
    found = [q for q in ask(facts(camera(), moves=moves), 0) if q.type == "camera"]
    assert sorted((q.pool, q.answer, q.start, q.end) for q in found) == [
        ("camera 1", "dolly in", 2.0, 4.0),
        ("camera 1", "dolly in and pan left", 0.0, 2.0),
        ("camera 2", "dolly in and pan left, then dolly in", 0.0, 4.0),
    ]


def test_a_camera_at_rest_is_static_and_an_unclear_one_is_not_asked_about() -> None:
    rests = measure("clip", "video.mp4", 4.0, camera())
    assert answers(rests, "camera") == ["static"]
    assert answers(replace(rests, moves=()), "camera") == []


def test_a_slow_pan_is_not_hidden_by_a_dolly() -> None:
    """3.5 degrees a second: too much for none, too little for a pan."""
    ahead = np.array([0.0, 0, 3])
    assert answers(measure("clip", "video.mp4", 4.0, camera(ahead)), "camera") == ["dolly in"]
    slow = measure("clip", "video.mp4", 4.0, camera(ahead, yaw_degrees=14))
    assert [move.name for move in slow.moves] == ["dolly in"]
    assert answers(slow, "camera") == []
    moves = (Move("camera", "pan left", 0.0, 2.0), Move("camera", "dolly in", 2.0, 4.0))
    part = replace(facts(camera(), moves=moves), unclear=((2.5, 2.9), (1.5, 1.7)))
    assert answers(part, "camera") == ["pan left"]


def test_facts_are_measured() -> None:
    ball = track("ball", [-2, 0, 10], [2, 0, 10]).track
    found = measure("clip", "video.mp4", 4.0, camera(np.array([0, 0, 3.0])), [ball])
    assert [move.name for move in found.moves] == ["dolly in"]
    assert (found.objects[0].direction, found.objects[0].distance) == ("right", "closer")
    assert found.objects[0].speed == "constant speed"
    assert answers(found, "object_direction") == ["right"]


def test_nothing_is_asked_about_times_in_which_it_is_not_seen() -> None:
    """Hidden for the first half, when its track holds where it was seen first."""
    ball = track("ball", [-2, 0, 8], [2, 0, 12]).track
    hidden = ball.times < 2
    positions = np.where(hidden[:, None], ball.positions[20], ball.positions)
    held = replace(ball, positions=positions, confidence=(~hidden).astype(float))
    found = measure("clip", "video.mp4", 4.0, camera(np.array([0, 0, 2.0])), [held])
    asked = [q for q in ask(found, 0) if "ball" in q.id or q.bbox is not None]
    assert len({q.type for q in asked}) > 8
    assert min(t for q in asked for t in q.support.instants) >= 2
    lost = replace(camera(np.array([0, 0, 2.0])), confidence=(TIMES < 2).astype(float))
    found = measure("clip", "video.mp4", 4.0, lost, [ball])
    assert max(t for q in ask(found, 0) for t in q.support.instants) < 2


# --- viewpoints -------------------------------------------------------------------------------------------


def test_distance_from_where_the_camera_was_and_from_where_it_goes() -> None:
    """The ball stays; the camera goes from 10 m to 4 m."""
    found = facts(camera(np.array([0, 0, 6.0])), track("ball", [0, 0, 10], [0, 0, 10]))
    assert answers(found, "abs_dis") == ["it stays nearly the same"]
    assert answers(found, "rel_dis") == ["it shrinks"]


def test_a_distance_of_which_two_measures_disagree_is_not_asked_about() -> None:
    """The ball goes from 10 to 4 m by one measure; by the other one it goes as far, or stays."""
    ball = track("ball", [0, 0, 10], [0, 0, 4]).track
    kinds = {}
    for name, last in (("agree", 4.1), ("disagree", 9.9)):
        other = track("ball", [0, 0, 10], [0, 0, last]).track.positions
        found = measure("clip", "video.mp4", 4.0, camera(), [replace(ball, otherwise=other)])
        kinds[name] = {q.type for q in ask(found, 0)}
    assert kinds["agree"] - kinds["disagree"] == {"object_distance", "abs_dis", "rel_dis"}
    assert {"object_direction", "object_speed"} < kinds["disagree"]


def test_direction_is_that_of_the_viewer() -> None:
    """The ball is ahead; the camera turns right by 90 degrees, so that it is left in the end."""
    found = facts(camera(yaw_degrees=90.0), track("ball", [0.0, 0, 10], [0.0, 0, 10]))
    assert answers(found, "abs_dir") == ["front"]
    assert answers(found, "rel_dir") == ["front, then front-left, then left"]


def test_an_agent_sees_from_where_it_faces() -> None:
    """The dog is ahead and faces left, so the camera's ahead is at its right; the ball is beyond the dog."""
    dog = track("dog", [0, 0, 5], [0, 0, 5], [-1.0, 0.0, 0.0])
    found = facts(camera(), dog, track("ball", [0, 0, 10], [0, 0, 10]))
    assert answers(found, "abs_dir", "dog.ball") == ["right"]
    assert answers(found, "abs_ori", "camera.dog") == ["left"]
    viewer = object_viewer(dog.track, found.camera)
    assert viewer is not None
    np.testing.assert_allclose(viewer.axes[0], [[0, 0, 1], [0, 1, 0], [-1, 0, 0]], atol=1e-12)


def test_a_turn_of_everything_changes_no_answer() -> None:
    """The world turned by any rotation: the same answers."""
    rng = np.random.default_rng(0)
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    rotation *= np.sign(np.linalg.det(rotation))
    for index in range(20):
        one = scene(index)
        poses = one.camera.poses.copy()
        poses[:, :3, :3] = rotation @ poses[:, :3, :3]
        poses[:, :3, 3] = poses[:, :3, 3] @ rotation.T + 5
        objects = tuple(
            replace(
                o,
                track=replace(
                    o.track,
                    positions=o.track.positions @ rotation.T + 5,
                    heading=None if o.track.heading is None else o.track.heading @ rotation.T,
                ),
            )
            for o in one.objects
        )
        turned = replace(one, camera=replace(one.camera, poses=poses), objects=objects)
        assert [(q.id, q.answer) for q in ask(turned, 0)] == [(q.id, q.answer) for q in ask(one, 0)]


def test_speeds_are_compared() -> None:
    found = facts(camera(), track("ball", [0, 0, 10], [4, 0, 10]), track("box", [0, 1, 10], [1, 1, 10]))
    assert answers(found, "abs_spd_comp", "camera.ball") == ["the former is faster"]
    assert answers(found, "abs_spd_comp", "camera.box") == ["the latter is faster"]
    assert answers(found, "abs_spd", "camera.ball") == ["it keeps its speed"]


def test_a_prediction_shows_nothing_of_what_it_asks() -> None:
    found = facts(camera(), track("ball", [-2, 0, 10], [2, 0, 10]))
    (q,) = [q for q in ask(found, 0) if q.type == "abs_dir_pred"]
    assert q.answer == "right"
    assert q.end == pytest.approx(3.0)
    assert max(q.support.instants) <= q.end


def test_what_is_unclear_is_not_asked() -> None:
    edge = np.array([0.3, 0.0, np.sqrt(1 - 0.09)])
    assert direction_word(edge, (("b", "f"), ("l", "r"), ("u", "d"))) is None
    between = facts(camera(), track("ball", [0, 0, 10], [0, 0, 14]))  # a step from 10 to 11.3: neither
    assert answers(between, "abs_dis") == []


def test_two_objects_of_one_name_are_not_named() -> None:
    twins = facts(camera(), track("ball", [0, 0, 10], [4, 0, 10]), track("ball", [0, 1, 10], [1, 1, 10]))
    twins = replace(twins, objects=tuple(replace(o, direction="right") for o in twins.objects))
    assert {q.type for q in ask(twins, 0)} <= {"camera", "object_direction_by_box", "camera_displacement"}


@pytest.mark.parametrize(
    "names", [("red ball", "red-ball"), ("ball", "the ball"), ("Dog", "dog"), ("a", "camera")]
)
def test_names_that_read_alike_are_not_asked_about(names: tuple[str, str]) -> None:
    one = track(names[0], [0, 0, 10], [4, 0, 10], [1.0, 0, 0])
    two = track(names[1], [0, 1, 10], [-4, 1, 10], [-1.0, 0, 0])
    words = {"direction": "right", "distance": "same", "speed": "constant speed"}
    other = track("red box", [3, 1, 10], [3, 1, 8], [0, 0, 1.0])
    found = facts(camera(), *(replace(o, **words) for o in (one, two, other)))
    asked = ask(found, 0)
    assert len({q.id for q in asked}) == len(asked)
    about = {q.support.object for q in asked if q.bbox is None} - {None}
    assert about == ({"red box", "a"} if names[0] == "a" else {"red box"})


# --- metres -----------------------------------------------------------------------------------------------


def test_metric_answers() -> None:
    found = facts(
        camera(np.array([0, 0, 3.0])),
        track("ball", [0, 0, 9], [0, 0, 9]),
        track("box", [4.0, 0, 9], [4.0, 0, 9]),
    )
    asked = {q.type: q for q in ask(found, 0) if q.value is not None or q.type == "relative_distance"}
    for q in ask(found, 0):
        if q.type == "camera_absolute_distance" and "ball" in q.id:
            assert q.value == pytest.approx(9 - 3 * q.support.instants[0] / 4, abs=1e-6)
        if q.type == "object_absolute_distance":
            assert q.value == pytest.approx(4.0)
    assert asked["object_absolute_distance"].unit == "m"
    assert answers(found, "relative_distance") in (["both are nearly as far"], ["the former is nearer"], [])
    assert all(a.endswith("closer") for a in answers(found, "camera_object_change", "ball"))


@pytest.mark.parametrize(
    ("turns", "asked"), [((120.0,), 120), ((238.0,), None), ((60.0, -60.0), None), ((80.0, -30.0), None)]
)
def test_a_turn_is_asked_for_where_its_ends_tell_it(turns: tuple[float, ...], asked: int | None) -> None:
    """Of a pan by 238 degrees the ends are 122 apart; one there and back ends where it began."""
    at = np.linspace(0, 4, len(turns) + 1)
    yaw = np.radians(np.interp(TIMES, at, np.cumsum([0.0, *turns])))
    poses = np.tile(np.eye(4), (len(TIMES), 1, 1))
    poses[:, 0, 0] = poses[:, 2, 2] = np.cos(yaw)
    poses[:, 0, 2], poses[:, 2, 0] = np.sin(yaw), -np.sin(yaw)
    track = CameraTrack(TIMES, poses, metric=True)
    found = turn(track, 0.0, 4.0)
    assert found is None if asked is None else found == pytest.approx(asked, abs=1e-6)
    for q in (q for seed in range(4) for q in ask(facts(track), seed) if q.type == "camera_rotation"):
        assert q.value is not None
        start, end = q.support.instants
        way = np.interp(np.linspace(start, end, 200), TIMES, np.degrees(yaw))
        assert np.abs(np.diff(way)).sum() < 1.11 * q.value
        assert "rotate" not in q.text


def test_centres_are_those_of_the_first_camera() -> None:
    turned = camera(np.array([2.0, 0, 0]))
    found = facts(turned, track("ball", [0, 0, 9], [0, 0, 9]))
    q = next(q for q in ask(found, 0) if q.type == "camera_absolute_distance")
    assert q.centres is not None
    t = q.support.instants[0]
    assert q.centres["camera_center"][0] == pytest.approx([2.0 * t / 4, 0, 0], abs=0.01)
    assert q.centres["object_center"][0] == pytest.approx([0, 0, 9])


def test_without_a_scale_no_metres() -> None:
    found = facts(camera(np.array([0, 0, 3.0]), metric=False), track("ball", [0, 0, 9], [0, 0, 9]))
    assert not METRIC & {q.type for q in ask(found, 0)}


def test_choices_are_apart_by_a_quarter() -> None:
    texts = {on_grid(v, "m") for v in np.geomspace(0.3, 40, 5000)} - {None}
    values = sorted(float(str(text).split()[0]) for text in texts)
    assert min(b / a for a, b in pairwise(values)) > 1.15
    assert on_grid(2.0, "m") == "2 m"
    assert on_grid(0.0, "m") is None
    assert on_grid(108.0, "m") == "110 m"
    assert on_grid(0.108, "m") == "0.11 m"
    assert on_grid(44.0, "degrees") == "45 degrees"
    assert on_grid(52.0, "degrees") is None


def test_a_viewer_moves_between_its_samples() -> None:
    viewer = camera_viewer(camera(np.array([4.0, 0, 0])))
    ball = track("ball", [0, 0, 10], [0, 0, 10]).track
    np.testing.assert_allclose(
        seen_from(viewer, ball, [0.05, 2.0], fixed=False), [[-0.05, 0, 10], [-2, 0, 10]]
    )
    np.testing.assert_allclose(seen_from(viewer, ball, [1.0, 2.0], fixed=True), [[-1, 0, 10], [-1, 0, 10]])


def test_a_question_says_its_type() -> None:
    q: Question = ask(scene(0), 0)[0]
    assert q.extra()["type"] == q.type
