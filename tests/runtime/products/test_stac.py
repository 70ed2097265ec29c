"""STAC items, catalogues and collections: which files they name, and what they may not."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.errors import CubeFileError
from runtime.products.contract import Description
from runtime.products.stac import MOST_LINKS, Item, differences, is_stac, items
from runtime.stated import Stated


def item(href: Any = "cube.tif", version: str = "1.0.0", **asset: Any) -> dict[str, Any]:
    cube = {"href": href, "type": "image/tiff; application=geotiff", "roles": ["data"], **asset}
    return {"type": "Feature", "stac_version": version, "id": "one", "properties": {}, "assets": {"cube": cube}}


def saved(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def refusal(path: Path, **more: Any) -> str:
    with pytest.raises(CubeFileError) as error:
        items(path, **more)
    assert error.value.file is not None and error.value.remedy
    return error.value.one_line()


@pytest.mark.data
@pytest.mark.parametrize("version", ["1.0.0", "1.1.0"])
def test_miniatures_name_their_files_and_what_they_hold(data_dir: Path, version: str) -> None:
    path = data_dir / "products" / "stac" / f"item-{version}.json"
    assert "leads out" in refusal(path), "the file lies in a folder beside the item's"
    (asked,) = items(path, outside=True)
    assert is_stac(path) and asked.path.is_file() and asked.notes == ()
    assert np.allclose(asked.item.wavelengths, np.linspace(420, 980, 48), atol=1e-3)
    assert asked.item.marks == ((-9999.0,) if version == "1.0.0" else (0.0,)) * 48
    assert asked.item.scales == ((1e-4,) * 48 if version == "1.0.0" else ())


@pytest.mark.data
def test_hostile_items_are_refused(data_dir: Path, tmp_path: Path) -> None:
    folder = data_dir / "products"
    made = subprocess.run(
        [sys.executable, "make_hostile.py", tmp_path / "h"], cwd=folder, capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip("the attack files need libraries that are not here")
    for name, why in (
        ("file", "not a path"),
        ("vsi", "plain path"),
        ("out", "leads out"),
        ("http", "not a path"),
        ("deep", "deeply"),
    ):
        assert why in refusal(tmp_path / "h" / f"stac-{name}.json")
    for name in ("vsi", "http", "deep"):
        refusal(tmp_path / "h" / f"stac-{name}.json", outside=True)


@pytest.mark.parametrize(
    "href",
    [
        "http://example.org/x.tif", "s3://bucket/x.tif", "HTTPS://x", "file:///etc/passwd", "/etc/passwd", "../x.tif",
        "a/../../x.tif", "/vsicurl/x", "\\\\host\\x", "x\0.tif", "", 5, None, ["x"], "C:\\x.tif", "data:text,x",
        "a\nb.tif", "\ud800.tif",
    ],
)  # fmt: skip
def test_references_that_are_no_plain_paths_below_are_refused(tmp_path: Path, href: Any) -> None:
    assert "assets.cube.href" in refusal(saved(tmp_path / "item.json", item(href)))


def test_outside_means_local_files_only(tmp_path: Path) -> None:
    path = tmp_path / "a" / "item.json"
    for href, found in (
        ("../x.tif", tmp_path / "x.tif"),
        ("/data/x.tif", Path("/data/x.tif")),
        ("file:///d%20e/x.tif", Path("/d e/x.tif")),
    ):
        (asked,) = items(saved(path, item(href)), outside=True)
        assert asked.path.resolve() == found.resolve()
    for href in ("http://x/x.tif", "file://host/x.tif", "/vsizip/x.zip/x.tif", "s3://x"):
        refusal(saved(path, item(href)), outside=True)


def test_a_link_inside_that_leads_out_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "cube.tif").symlink_to("/etc/passwd")
    path = saved(tmp_path / "in" / "item.json", item())
    assert "leads out" in refusal(path)
    assert len(items(path, outside=True)) == 1


def test_assets_are_chosen_by_what_they_are(tmp_path: Path) -> None:
    made = item()
    made["assets"] = {
        "thumb": {"href": "t.png", "type": "image/png", "roles": ["thumbnail"]},
        "meta": {"href": "http://elsewhere/m.xml", "type": "application/xml", "roles": ["metadata"]},
        "rfl": {"href": "r.tif", "roles": ["data", "reflectance"]},
        "unc": {"href": "u.tif", "roles": ["data"]},
        "bare": {"href": "b.tif", "type": "image/tiff"},
    }
    path = saved(tmp_path / "item.json", made)
    assert [asked.path.name for asked in items(path)] == ["r.tif"]
    del made["assets"]["rfl"]
    assert [asked.path.name for asked in items(saved(path, made))] == ["u.tif"]
    del made["assets"]["unc"]
    assert [asked.path.name for asked in items(saved(path, made))] == ["b.tif"]
    del made["assets"]["bare"]
    assert "names no product" in refusal(saved(path, made))


def test_a_catalogue_is_followed_once_and_within_bounds(tmp_path: Path) -> None:
    links = [
        {"rel": rel, "href": href}
        for rel, href in (
            ("self", "http://x"),
            ("parent", "../x"),
            ("item", "a/item.json"),
            ("child", "b/collection.json"),
        )
    ]
    top = saved(tmp_path / "catalog.json", {"type": "Catalog", "stac_version": "1.0.0", "id": "c", "links": links})
    saved(tmp_path / "a" / "item.json", item())
    below = [{"rel": "child", "href": "collection.json"}, {"rel": "item", "href": "item.json"}]
    saved(
        tmp_path / "b" / "collection.json", {"type": "Collection", "stac_version": "1.1.0", "id": "d", "links": below}
    )
    saved(tmp_path / "b" / "item.json", item(version="1.1.0"))
    found = items(top)
    assert [asked.path.relative_to(tmp_path) for asked in found] == [Path("a/cube.tif"), Path("b/cube.tif")]
    for number in range(20):
        link = [{"rel": "child", "href": f"{number + 1}.json"}]
        saved(tmp_path / f"{number}.json", {"type": "Catalog", "stac_version": "1.0.0", "id": "c", "links": link})
    assert "deep" in refusal(tmp_path / "0.json")
    assert "cannot be read" in refusal(tmp_path / "9.json"), "the last one is not there"
    many = [{"rel": "item", "href": "a/item.json"}] * (MOST_LINKS + 5)
    saved(top, {"type": "Catalog", "stac_version": "1.0.0", "id": "c", "links": many})
    assert len(items(top)) == 1
    saved(
        top,
        {"type": "Catalog", "stac_version": "1.0.0", "id": "c", "links": [{"rel": "item", "href": "http://x/y.json"}]},
    )
    assert "not a path" in refusal(top)


def test_a_list_of_items_is_read(tmp_path: Path) -> None:
    path = saved(
        tmp_path / "all.json", {"type": "FeatureCollection", "features": [item("a.tif"), item("b.tif"), item("a.tif")]}
    )
    assert [asked.path.name for asked in items(path)] == ["a.tif", "b.tif"]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ({"type": "Feature", "stac_version": "0.9.0", "assets": {}}, "version"),
        ({"type": "Feature", "stac_version": 1, "assets": {}}, "version"),
        ({"type": "Feature", "stac_version": "1.0.0", "assets": []}, "no assets"),
        ({"type": "Feature", "stac_version": "1.0.0", "assets": {"a": 5}}, "names no product"),
        ({"type": "Polygon"}, "no STAC"),
        ({"type": ["Feature"]}, "no STAC"),
        ({"type": "FeatureCollection", "features": [5]}, "no item"),
        ({"type": "Catalog", "stac_version": "1.0.0", "links": 5}, "no list"),
        ({"type": "Catalog", "stac_version": "1.0.0", "links": [5, {"rel": "item"}]}, "no reference"),
    ],
)
def test_what_is_no_stac_is_refused(tmp_path: Path, content: dict[str, Any], why: str) -> None:
    assert why in refusal(saved(tmp_path / "item.json", content))


@pytest.mark.parametrize(
    "text", ['{"a": NaN}', '{"a": 1e400}', '{"a": 1, "a": 1}', '{"a": ' + "9" * 9999 + "}", "[" * 100_000, "", "\x00"]
)
def test_json_is_bounded(tmp_path: Path, text: str) -> None:
    (tmp_path / "item.json").write_text(text)
    assert "JSON" in refusal(tmp_path / "item.json") or "deeply" in refusal(tmp_path / "item.json")
    assert not is_stac(tmp_path / "item.json")


def test_numbers_that_are_none_are_left_out(tmp_path: Path) -> None:
    bands = [{"scale": "x", "nodata": "nan", "offset": True, "eo:center_wavelength": 0.5}, {}]
    (asked,) = items(saved(tmp_path / "item.json", item(version="1.1.0", bands=bands, **{"proj:shape": [5, "x"]})))
    assert (asked.item.scales, asked.item.offsets, asked.item.wavelengths) == ((), (), (500.0, None))
    assert np.isnan(asked.item.marks[0] or 0) and asked.item.shape is None
    (asked,) = items(saved(tmp_path / "item.json", item(**{"raster:bands": 5})))
    assert asked.notes == ("raster:bands is no list of bands",)


def test_the_file_wins_and_what_differs_is_told() -> None:
    stated = Stated(gains=(1e-4, 1e-4), offsets=(0.0, 0.0), marks=(-9999.0,), wavelengths=(400.0, 500.0))
    file = Description("geotiff", Path("a.tif"), (Path("a.tif"),), (2, 5, 6), np.dtype("i2"), stated=stated)
    same = Item("one", "cube", (400.0, 500.0), (1e-4, 1e-4), (0.0, None), (-9999.0, -9999.0), (5, 6))
    assert differences(same, file) == () and differences(Item("one", "cube"), file) == ()
    told = " ".join(
        differences(replace(same, scales=(1e-4, 2e-4), offsets=(0.1, 0.1), marks=(0.0,), shape=(6, 5)), file)
    )
    for text in (
        "6 x 5 lines x samples",
        "scale 0.0002 in band 2, the file 0.0001",
        "offset 0.1 in band 1, the file 0",
        "nodata 0.0, the file -9999",
    ):
        assert text in told
    told = " ".join(differences(replace(same, wavelengths=(400.0, 510.0, 520.0)), file))
    assert "3 bands with a wavelength, the file has 2" in told
    plain = replace(file, stated=Stated())
    assert len(differences(same, plain)) == 3, "wavelengths, scales and nodata, of which it says none"
