"""`deploy archive` on real products, with workers that are processes: what a user sees."""

from __future__ import annotations

import json
import os
import resource
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

pytest.importorskip("distributed")

from deploy.archive.order import FOLDER, Order
from deploy.archive.work import Look, Task, do, looked_at
from runtime.bundle import load_bundle
from runtime.by_lines.product import restore_product
from runtime.by_lines.provenance import seal_of
from runtime.by_lines.ways import Ways
from tests.contracts.bundles import known_bundle
from tests.contracts.command import assert_json_error, invoke, start
from tests.runtime.files_data import write_pair

Capsys = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a bundle that doubles, and with `in`: three products in two folders, and two that are none."""
    folder = tmp_path_factory.mktemp("archive")
    known_bundle(folder / "bundle", gain=2, scale=10000)
    rng = np.random.default_rng(0)
    deeper = folder / "in" / "deeper"
    deeper.mkdir(parents=True)
    for path, lines in ((folder / "in" / "a.npy", 20), (folder / "in" / "tall.npy", 200), (deeper / "a.npy", 24)):
        np.save(path, rng.integers(100, 3000, (lines, 24, 3)).astype(np.uint16))
    np.save(folder / "in" / "bands.npy", rng.integers(100, 3000, (20, 24, 2)).astype(np.uint16))
    (folder / "in" / "torn.npy").write_bytes((folder / "in" / "a.npy").read_bytes()[:500])
    return folder


@pytest.fixture(scope="module")
def archived(scene: Path) -> Path:
    """The folder once `in` was restored into `out`; `run.json` is what was printed."""
    ended = start(
        "archive", "run", "bundle", "in", "--out", "out", "--workers", "2", "--json", cwd=scene, env=dict(os.environ)
    )
    (scene / "run.json").write_text(json.dumps({"code": ended.code, "err": ended.err, **ended.json}))
    return scene


def test_the_plan_tells_sizes_and_refusals_and_does_nothing(
    capsys: Capsys, scene: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(scene)
    planned = invoke(capsys, "archive", "plan", "bundle", "in", "--out", "planned", "--json")
    assert planned.code == 0
    assert planned.json["products"]["left"] == 3 and planned.json["products"]["refused"] == 2
    assert planned.json["seconds"] is None and not Path("planned").exists()
    of = {Path(row["path"]).relative_to(scene / "in").as_posix(): row for row in planned.json["plan"]}
    assert of["a.npy"]["shape"] == [3, 20, 24] and of["a.npy"]["peak"] > 3 * 20 * 24
    assert of["deeper/a.npy"]["out"] == "deeper/a_restored.npy"
    assert "bands.npy" in of["bands.npy"]["line"] and "torn.npy" in planned.err


def test_each_is_restored_as_alone_and_others_are_refused_by_name(archived: Path) -> None:
    told = json.loads((archived / "run.json").read_text())
    assert told["code"] == told["error"]["code"] == 1, told["err"]
    assert told["error"]["message"] == "2 of 5 products were not restored: 2 refused"
    assert told["products"] == {
        "planned": 5, "done": 3, "present": 0, "refused": 2, "failed": 0, "quarantined": 0, "left": 0,
    }  # fmt: skip
    assert told["seconds"] > 0 and {"bands.npy", "torn.npy"} <= {
        Path(line.split(": ")[1].split(",")[0]).name for line in told["errors"]
    }
    with load_bundle(archived / "bundle") as bundle:
        for inner in ("a", "tall", "deeper/a"):
            alone = archived / "alone" / f"{inner}_restored.npy"
            alone.parent.mkdir(parents=True, exist_ok=True)
            restore_product(bundle, archived / "in" / f"{inner}.npy", alone, Ways())
            assert alone.read_bytes() == (archived / "out" / f"{inner}_restored.npy").read_bytes()
            np.testing.assert_array_equal(np.load(alone), 2 * np.load(archived / "in" / f"{inner}.npy"))


def test_read_back_and_told_and_found_again_without_the_ledger(
    capsys: Capsys, archived: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(archived)
    assert invoke(capsys, "archive", "verify", "out").code == 0
    page = invoke(capsys, "archive", "report", "out", "--quicklooks", "2", "--json")
    assert page.code == 0 and page.json["quicklooks"] == 2
    html = Path("out/report.html").read_text()
    assert "torn.npy" in html and "data:image/png;base64," in html and "3 of 5 restored" in html

    copy = Path(shutil.copytree("out", "copy"))
    for file in Path(copy, FOLDER).glob("ledger*"):
        file.unlink()
    again = invoke(capsys, "archive", "resume", copy, "--json")
    assert again.code == 1 and again.json["products"]["present"] == 3 and again.json["products"]["done"] == 0

    damaged = shutil.copytree("out", "damaged") / Path("a_restored.npy")
    damaged.write_bytes(damaged.read_bytes()[:-8])
    wrong = invoke(capsys, "archive", "verify", "damaged", "--json")
    assert assert_json_error(wrong, 1)["message"] == "1 of 3 outputs are not what was written"
    assert "a_restored.npy" in wrong.json["wrong"][0]


def test_what_is_not_what_was_written_is_restored_again(
    capsys: Capsys, archived: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(archived)
    shutil.copytree("out", "mended")
    good = {path: path.read_bytes() for path in Path("mended").rglob("*_restored.npy")}
    flipped, gone, left = sorted(good)
    flipped.write_bytes(good[flipped][:-1] + bytes([good[flipped][-1] ^ 1]))
    gone.unlink()
    # It stays wrong until it is restored, or put back.
    for _ in range(2):
        wrong = invoke(capsys, "archive", "verify", "mended", "--json")
        assert wrong.code == 1 and len(wrong.json["wrong"]) == 2 and wrong.json["verified"] == 1
    gone.write_bytes(good[gone])
    assert len(invoke(capsys, "archive", "verify", "mended", "--json").json["wrong"]) == 1
    before = left.stat().st_mtime_ns
    again = invoke(capsys, "archive", "resume", "mended", "--json")
    assert (again.json["products"]["done"], again.json["products"]["present"]) == (1, 2)
    assert {path: path.read_bytes() for path in good} == good and left.stat().st_mtime_ns == before
    assert invoke(capsys, "archive", "verify", "mended", "--json").json["verified"] == 3


def test_what_is_wrong_and_has_no_input_any_more_stays_wrong(
    capsys: Capsys, scene: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(scene)
    shutil.copytree("in/deeper", "lost")
    assert invoke(capsys, "archive", "run", "bundle", "lost", "--out", "losing", "--json").code == 0
    Path("losing/a_restored.npy").write_bytes(b"")
    Path("lost/a.npy").unlink()
    for _ in range(2):
        assert invoke(capsys, "archive", "verify", "losing").code == 1
        ended = invoke(capsys, "archive", "resume", "losing", "--json")
        assert ended.code == 1 and "has gone, and its output is not" in ended.json["errors"][0]


def test_split_is_whole(capsys: Capsys, archived: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(archived)
    ended = invoke(capsys, "archive", "run", "bundle", "in/tall.npy", "--out", "split", "--split", "--json")
    assert ended.code == 0, ended.err
    assert Path("split/tall_restored.npy").read_bytes() == Path("out/tall_restored.npy").read_bytes()
    assert not list(Path("split").rglob("*.part*"))
    events = [json.loads(line) for line in Path("split", FOLDER, "events.jsonl").read_text().splitlines()]
    (done,) = [event for event in events if event["event"] == "product"]
    assert done["attempts"] > 3


def test_outputs_of_another_bundle_are_left_alone_until_they_are_to_be_replaced(
    capsys: Capsys, archived: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(archived)
    known_bundle(archived / "tripling", gain=3, scale=10000)
    shutil.copytree("out", "both")
    before = Path("both/a_restored.npy").read_bytes()
    given = ("archive", "run", "tripling", "in/a.npy", "--out", "both", "--json")
    known = Path("both", FOLDER, "archive.json").read_bytes()
    for other, word in ((given, "BUNDLE"), ((*given[:2], "bundle", *given[3:], "--format", "envi"), "--format envi")):
        refused = assert_json_error(invoke(capsys, *other), 2)
        assert word in refused["message"] and "--replace" in refused["remedy"]
    assert Path("both/a_restored.npy").read_bytes() == before
    assert Path("both", FOLDER, "archive.json").read_bytes() == known
    assert invoke(capsys, "archive", "verify", "both", "--json").json["verified"] == 3
    replaced = invoke(capsys, *given, "--replace")
    assert replaced.json["products"]["done"] == 1 and "is begun anew" in replaced.err
    np.testing.assert_array_equal(np.load("both/a_restored.npy"), 3 * np.load("in/a.npy"))


def test_inputs_are_added_and_what_was_restored_stays(
    capsys: Capsys, scene: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(scene)
    shutil.copytree("in/deeper", "first/deeper")
    given = ("archive", "run", "bundle", "first", "--out", "added", "--json")
    assert invoke(capsys, *given).json["products"]["done"] == 1
    # What was verified may be deleted.
    shutil.rmtree("first/deeper")
    more = invoke(capsys, "archive", "run", "bundle", "in/a.npy", "--out", "added", "--json")
    assert more.code == 0 and (more.json["products"]["present"], more.json["products"]["done"]) == (1, 1)
    assert sorted(path.relative_to("added").as_posix() for path in Path("added").rglob("*_restored.npy")) == [
        "a_restored.npy", "deeper/a_restored.npy",
    ]  # fmt: skip
    assert invoke(capsys, "archive", "verify", "added", "--json").json["verified"] == 2


def test_what_is_odd_is_told_at_the_end_and_in_the_report(
    capsys: Capsys, scene: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(scene)
    cube = np.load("in/a.npy")
    cube[3, 4, 1] = 60000
    np.save("bright.npy", cube)
    ended = invoke(capsys, "archive", "run", "bundle", "bright.npy", "--scale", "10000", "--out", "odd", "--json")
    assert ended.code == 0 and ended.json["to_be_looked_at"] == 1
    assert "1 restored products are to be looked at" in " ".join(ended.err.split())
    assert invoke(capsys, "archive", "report", "odd").code == 0
    page = Path("odd/report.html").read_text()
    assert "Restored, and to be looked at" in page and "1 values do not fit the type" in page


def test_a_plan_is_read_on_a_narrow_terminal(capsys: Capsys, scene: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(scene)
    name = "PRS_L1_STD_OFFL_20240402102837_20240402102842_0001.npy"
    for folder in ("first", "second"):
        Path("long", folder).mkdir(parents=True)
        shutil.copy("in/a.npy", Path("long", folder, name))
    monkeypatch.setenv("COLUMNS", "80")
    said = invoke(capsys, "archive", "plan", "bundle", "long", "--out", "planned").out
    cells = [[cell.strip() for cell in line.split("│")] for line in said.splitlines() if "│" in line]
    assert len(cells) > 2 and {len(line) for line in said.splitlines() if "│" in line} <= set(range(81))
    assert "".join(row[1] for row in cells) == f"first/{name}second/{name}"
    assert [row[3] for row in cells if row[3]] == ["3 x 20 x 24"] * 2


def test_inputs_that_hold_nothing_end_at_once(capsys: Capsys, scene: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(scene)
    for name in ("hollow", "stac"):
        Path(name).mkdir()
    item = {"type": "Feature", "stac_version": "1.0.0", "id": "a", "assets": {}, "links": [], "properties": {}}
    Path("stac/item.json").write_text(json.dumps(item))
    for name, word in (("gone", "no such file"), ("hollow", "no product"), ("stac", "STAC files and no product")):
        for what in ("plan", "run"):
            error = assert_json_error(
                invoke(capsys, "archive", what, "bundle", "in", name, "--out", "nothing", "--json"), 2
            )
            assert word in error["message"] and error["file"].endswith(name)
    assert "stac/item.json" in error["remedy"] and not Path("nothing").exists()


def test_what_was_typed_wrong_ends_at_once(capsys: Capsys, scene: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(scene)
    given = ("archive", "run", "bundle", "in", "--out", "wrong")
    Path("ca.pem").write_text("-")
    for flags, key in (
        (("--memory", "much"), "--memory"),
        (("--memory", "2"), "--memory"),
        (("--memory", "200MiB"), "--memory"),
        (("--scheduler", "tcp://10.0.0.1:8786"), "--scheduler"),
        (("--scheduler", "127.0.0.1:8786", "--workers", "2"), "--workers"),
        (("--tls-ca", "ca.pem"), "--tls-cert"),
    ):
        ended = invoke(capsys, *given, *flags, "--json")
        assert assert_json_error(ended, 2)["key"] == key
    assert not Path("wrong").exists()
    ended = invoke(capsys, *given, "--memory", "9000GiB", "--json")
    assert assert_json_error(ended, 3)["key"] == "--memory"


def test_archives_without_dask_say_what_to_install(capsys: Capsys) -> None:
    ended = invoke(capsys, "doctor", "--json")
    (row,) = [finding for finding in ended.json["findings"] if finding["name"] == "archives"]
    assert row["outcome"] == "ok" and row["text"].startswith("Dask distributed ")


def test_products_of_one_stem_do_not_share_side_files(
    capsys: Capsys, scene: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(scene)
    twins = Path("twins")
    twins.mkdir()
    cube = np.load("in/a.npy")
    np.save(twins / "cube.npy", cube)
    write_pair(twins, cube.transpose(2, 0, 1), 12)
    np.save(twins / "cube_y.npy", cube)
    given = ("bundle", "twins", "--out", "of-twins", "--json")
    planned = invoke(capsys, "archive", "plan", *given)
    of = {Path(row["path"]).name: row for row in planned.json["plan"]}
    assert [of[name]["state"] for name in ("cube.img", "cube.npy", "cube_y.npy")] == ["planned", "refused", "planned"]
    assert "would become files of the same names as" in of["cube.npy"]["line"] and "cube.img" in of["cube.npy"]["line"]
    # Whichever is there stays.
    assert invoke(capsys, "archive", "run", "bundle", "twins/cube.npy", "--out", "of-twins", "--json").code == 0
    of = {Path(row["path"]).name: row for row in invoke(capsys, "archive", "plan", *given).json["plan"]}
    assert [of[name]["state"] for name in ("cube.img", "cube.npy", "cube_y.npy")] == ["refused", "present", "planned"]


def test_its_own_outputs_are_not_restored_again(capsys: Capsys, scene: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(scene)
    shutil.copytree("in/deeper", "nested")
    for state in ("done", "present"):
        again = invoke(capsys, "archive", "run", "bundle", "nested", "--out", "nested/out", "--json")
        assert again.code == 0 and again.json["products"]["planned"] == again.json["products"][state] == 1


@pytest.mark.parametrize("kind", ["cog", "netcdf", "like"])
def test_what_the_disk_does_not_take_is_no_fault_of_the_product(scene: Path, tmp_path: Path, kind: str) -> None:
    bundle, path = scene / "bundle", scene / "in" / "tall.npy"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with load_bundle(bundle) as opened:
        order = Order(bundle=str(bundle), seal=seal_of(opened.contents), inputs=(str(path),), kind=kind)
        look = looked_at(Look(str(path), str(tmp_path), order))
        task = Task(str(path), look["out"], look["key"], order)
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, limits[1]))
        try:
            told = do(task, opened)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert told["state"] == "failed", told
        # A TIFF's library does not tell that more space would not help.
        assert told["retry"] == (kind == "cog") and not list(tmp_path.iterdir())
        assert do(task, opened)["state"] == "done"


def test_outputs_are_read_back_as_their_inputs_were_read(
    capsys: Capsys, scene: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(scene)
    turned = Path("turned")
    turned.mkdir()
    np.save(turned / "a.npy", np.load("in/a.npy").transpose(2, 0, 1))
    with h5py.File(turned / "b.nc", "w") as file:
        for name in ("one", "two"):
            made = file.create_dataset(name, data=np.load("in/a.npy").transpose(2, 0, 1))
            made.attrs["long_name"] = "reflectance"
    for product, kind, *said in (
        ("a.npy", "like"), ("a.npy", "zarr"), ("b.nc", "like", "--key", "/two"), ("b.nc", "envi", "--key", "/two"),
    ):  # fmt: skip
        said = ["--layout", "bands,lines,samples", *said]
        out = f"back-{product}-{kind}"
        ran = invoke(capsys, "archive", "run", "bundle", turned / product, "--out", out, "--format", kind, *said)
        assert ran.code == 0, ran.err
        read = invoke(capsys, "archive", "verify", out, "--json")
        assert read.code == 0 and read.json["verified"] == 1, read.err
        assert invoke(capsys, "archive", "report", out, "--quicklooks", "1", "--json").json["quicklooks"] == 1


@pytest.mark.parametrize(
    ("kind", "gone", "ledger"),
    [("like", "a_restored_quality.npy", True), ("envi", "a_restored_quality.img", False),
     ("cog", "a_restored_quality.tif", False)],
)  # fmt: skip
def test_a_side_file_that_is_gone_is_told_and_made_again(
    capsys: Capsys, scene: Path, tmp_path: Path, kind: str, gone: str, ledger: bool
) -> None:
    out = tmp_path / "out"
    given = ("archive", "run", scene / "bundle", scene / "in" / "a.npy", "--out", out, "--format", kind, "--json")
    assert invoke(capsys, *given).json["products"]["done"] == 1
    if not ledger:
        for file in (out / FOLDER).glob("ledger*"):
            file.unlink()
        assert invoke(capsys, *given).json["products"]["present"] == 1
    before = (out / gone).read_bytes()
    (out / gone).unlink()
    wrong = invoke(capsys, "archive", "verify", out, "--json")
    assert wrong.code == 1 and gone in wrong.json["wrong"][0]
    assert invoke(capsys, *given).json["products"]["done"] == 1
    assert (out / gone).read_bytes() == before and invoke(capsys, "archive", "verify", out).code == 0


def test_where_an_item_and_its_file_differ_is_told(
    capsys: Capsys, scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("a.npy", np.load(scene / "in" / "a.npy"))
    item = {
        "type": "Feature", "stac_version": "1.1.0", "id": "one",
        "assets": {"a": {"href": "a.npy", "roles": ["data"], "proj:shape": [20, 25], "bands": 3}},
    }  # fmt: skip
    Path("item.json").write_text(json.dumps(item))
    notes = ["bands is no list of bands", "the item says 20 x 25 lines x samples, the file has 20 x 24"]
    given = (scene / "bundle", "item.json", "--out", "out", "--json")
    planned = invoke(capsys, "archive", "plan", *given)
    assert [note.partition(":")[0] for note in planned.json["plan"][0]["notes"]] == notes
    ended = invoke(capsys, "archive", "run", *given)
    assert ended.code == 0 and all(note in ended.err and note in planned.err for note in notes)
    assert invoke(capsys, "archive", "report", "out").code == 0
    assert all(note in Path("out/report.html").read_text() for note in notes)


@pytest.mark.parametrize("ledger", [True, False])
def test_an_input_that_was_touched_is_known_by_its_bytes(
    capsys: Capsys, scene: Path, tmp_path: Path, ledger: bool
) -> None:
    path, out = tmp_path / "a.npy", tmp_path / "out"
    cube = np.load(scene / "in" / "a.npy")
    np.save(path, cube)
    given = ("archive", "run", scene / "bundle", path, "--out", out, "--json")

    def run(*flags: str, later: int) -> dict[str, int]:
        # By so many hours.
        time_ns = path.stat().st_mtime_ns + later * 3600 * 10**9
        os.utime(path, ns=(time_ns, time_ns))
        if not ledger:
            for file in (out / FOLDER).glob("ledger*"):
                file.unlink()
        products: dict[str, int] = invoke(capsys, *given, *flags).json["products"]
        return {name: count for name, count in products.items() if count and name != "planned"}

    assert run(later=-1) == {"done": 1}
    assert run(later=3) == {"present": 1}
    np.save(path, cube[::-1])
    assert run(later=3) == {"refused": 1}
    assert run("--replace", later=0) == {"done": 1}
    np.testing.assert_array_equal(np.load(out / "a_restored.npy"), 2 * cube[::-1])
