"""Separability: rows that follow from the seed, a split by scene, and a page that says what came out."""

import numpy as np
import pytest

from calibration.degradations import TRAINING
from runtime.errors import InputError
from runtime.metrics import METRIC_SETS, prompt_metrics
from runtime.simulation.simulator import simulate_scene
from training import separability
from training.separability import CLEAN, METRIC_SET, Outcome, Rows, draw_rows, main, mistake, study, tell_apart

FILES = ("separability-confusion.png", "separability-metrics.png", "separability.md")


@pytest.fixture(scope="module")
def scenes():
    return {f"scene{i}": simulate_scene(i, 12, 48, 48).truth for i in range(4)}


@pytest.fixture(scope="module")
def folder(scenes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    for name, scene in scenes.items():
        np.savez(folder / f"{name}.npz", cube=np.round(1000 * scene.transpose(1, 2, 0)).astype(np.uint16))
    return folder


@pytest.fixture(autouse=True)
def few_trees(monkeypatch):
    monkeypatch.setattr(separability, "TREES", 20)


def outcome(confusion):
    return Outcome(("a", "b"), np.array(confusion), np.array([1.0]), {})


def test_rows_hold_every_class_of_every_scene_and_repeat(scenes):
    rows, again = (draw_rows(scenes, 2, 32, seed=5) for _ in range(2))
    classes = len(TRAINING) + 1
    assert rows.metrics.shape == (4 * 2 * classes, len(METRIC_SETS[METRIC_SET]))
    assert [rows.scenes.count(name) for name in scenes] == [2 * classes] * 4
    assert np.bincount(rows.classes).tolist() == [8] * classes
    assert np.array_equal(rows.metrics, again.metrics)
    assert not np.array_equal(rows.metrics, draw_rows(scenes, 2, 32, seed=6).metrics)


def test_the_last_class_is_the_clean_patch(scenes):
    rows = draw_rows({"only": scenes["scene0"]}, 1, 48, seed=0)
    assert np.array_equal(rows.metrics[-1], prompt_metrics(scenes["scene0"], METRIC_SET))


def test_a_patch_larger_than_a_scene_is_refused(scenes):
    with pytest.raises(InputError, match="smaller than a patch"):
        draw_rows(scenes, 1, 64, seed=0)


def test_a_forest_tells_what_can_be_told_and_nothing_else():
    rng = np.random.default_rng(0)
    classes = np.tile([0, 1], 100)
    told = Rows(np.float32([classes, rng.random(200)]).T, classes, ("seen",) * 200)
    unseen = Rows(told.metrics, classes, ("unseen",) * 200)
    assert tell_apart(told, unseen, ("a", "b"), 0).accuracy == 1
    assert tell_apart(told, unseen, ("a", "b"), 0).importances[0] > 0.9
    noise = Rows(rng.random((200, 2)).astype(np.float32), classes, ("unseen",) * 200)
    guess = tell_apart(Rows(rng.random((200, 2)).astype(np.float32), classes, told.scenes), noise, ("a", "b"), 0)
    assert 0.3 < guess.accuracy < 0.7


def test_a_scene_on_both_sides_is_refused(scenes):
    rows = draw_rows(scenes, 1, 32, seed=0)
    with pytest.raises(InputError, match="both seen and unseen"):
        tell_apart(rows, rows, TRAINING, 0)


def test_accuracy_recall_and_mistake_follow_from_the_confusion():
    some = outcome([[3, 1], [0, 4]])
    assert some.accuracy == pytest.approx(7 / 8)
    assert some.recall.tolist() == [0.75, 1]
    assert mistake(some) == "a told as b, in 1 of 4 patches."
    assert mistake(outcome([[4, 0], [0, 4]])) == "none."


def test_the_study_writes_what_it_found_and_repeats(folder, tmp_path):
    results = []
    for out in (tmp_path / "first", tmp_path / "second"):
        out.mkdir()
        results.append(study(folder, out, ["scene1", "scene3"], 6, 32, 1000, 0))
    assert sorted(path.name for path in (tmp_path / "first").iterdir()) == list(FILES)
    assert all((tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes() for name in FILES)
    found = results[0]
    assert found.confusion.sum(axis=1).tolist() == [12] * len(TRAINING)
    assert list(found.by_scene) == ["scene1", "scene3"]
    assert found.accuracy > 0.5
    text = (tmp_path / "first" / "separability.md").read_text()
    assert f"{found.accuracy:.1%}" in text and CLEAN in text and str(tmp_path) not in text


@pytest.mark.parametrize("held", [["nowhere"], ["scene0", "scene1", "scene2", "scene3"], []])
def test_a_split_that_leaves_a_side_empty_is_refused(folder, tmp_path, held):
    with pytest.raises(InputError, match="teach with"):
        study(folder, tmp_path, held, 1, 32, 1000, 0)


def test_a_folder_without_scenes_is_refused(tmp_path):
    with pytest.raises(InputError, match="no scenes"):
        study(tmp_path, tmp_path, ["a"], 1, 32, 1000, 0)


@pytest.mark.parametrize(
    ("arguments", "says"), [(("--patches", "0"), "--patches"), (("--scale", "nan"), "--scale"), ((), "no scenes")]
)
def test_the_command_ends_with_one_line(tmp_path, monkeypatch, capsys, arguments, says):
    line = ["separability", "--data", str(tmp_path), "--out", str(tmp_path), *arguments]
    monkeypatch.setattr("sys.argv", line)
    with pytest.raises(SystemExit) as stopped:
        main()
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and said.startswith("error: ") and says in said and said.count("\n") == 1
