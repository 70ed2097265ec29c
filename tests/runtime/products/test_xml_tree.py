"""XML of strangers: read as a tree, or refused within bounds."""

import gzip
from pathlib import Path

import pytest

from runtime.errors import CubeFileError
from runtime.products import xml_tree
from runtime.products.xml_tree import read_xml

TEXT = '<?xml version="1.0"?><a><b n="1"> 4.5 </b><b n="2"><c>x&amp;<!-- y --><![CDATA[<z]]></c></b><d/></a>'


def refused(path: Path, data: bytes) -> CubeFileError:
    path.write_bytes(data)
    with pytest.raises(CubeFileError) as error:
        read_xml(path)
    assert error.value.file == str(path)
    assert error.value.remedy
    return error.value


def test_a_tree_says_what_the_text_says(tmp_path: Path) -> None:
    for name, data in (("a.xml", TEXT.encode()), ("a.xml.gz", gzip.compress(TEXT.encode()))):
        (tmp_path / name).write_bytes(data)
        root = read_xml(tmp_path / name)
        assert root.name == "a"
        assert root.number("b", tmp_path) == 4.5
        assert root.said("b/c") == "x&<z"
        assert [b.attributes for b in root.all("b")] == [{"n": "1"}, {"n": "2"}]
        assert root.said("d") is root.said("e/f") is None


@pytest.mark.parametrize("text", ["", "1_000", "nan", "1e999", "٣", "4 5"])
def test_numbers_are_finite_and_plain(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.xml").write_text(f"<a><b>{text}</b></a>", encoding="utf-8")
    with pytest.raises(CubeFileError, match="finite number") as error:
        read_xml(tmp_path / "a.xml").number("b", tmp_path / "a.xml")
    assert error.value.key == "b"


@pytest.mark.parametrize(
    "data",
    [
        b"<!DOCTYPE a><a/>",
        b'<!DOCTYPE a SYSTEM "file:///etc/passwd"><a/>',
        b'<!DOCTYPE a [<!ENTITY x "y">]><a>&x;</a>',
        b"<a>&x;</a>",
        b"<a>",
        b"<a/><b/>",
        b"",
        b"\xff\xfe<\x00a",
        b'<?xml version="1.0" encoding="no such"?><a/>',
        b'<?xml version="1.0" encoding="hex"?><a/>',
        b"<a>" * 100 + b"</a>" * 100,
        gzip.compress(TEXT.encode(), mtime=0)[:-9],
        b"\x1f\x8bnonsense",
    ],
)
def test_what_is_no_plain_xml_is_refused(tmp_path: Path, data: bytes) -> None:
    refused(tmp_path / "a.xml", data)


def test_size_and_count_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xml_tree, "MOST_BYTES", 1000)
    many = b"<a>" + b" " * 1000 + b"</a>"
    assert "larger than" in refused(tmp_path / "a.xml", many).problem
    assert "larger than" in refused(tmp_path / "a.xml.gz", gzip.compress(many, mtime=0)).problem
    monkeypatch.setattr(xml_tree, "MOST_ELEMENTS", 10)
    assert "more than" in refused(tmp_path / "a.xml", b"<a>" + b"<b/>" * 10 + b"</a>").problem
