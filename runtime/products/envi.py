"""ENVI pairs of any size, by lines; a data file packed by gzip is unpacked once into a file without a name."""

import gzip
import re
import zlib
from contextlib import suppress
from pathlib import Path
from typing import cast

from runtime.errors import CubeFileError, plain
from runtime.files.disk import PIECE, check_expansion, opened, reason, unchanged
from runtime.files.envi import DATA_SUFFIXES, may_hold_data, pair_of, read_header, read_text
from runtime.files.envi_header import EnviHeader, fwhm_nm, parse_header, stated_by
from runtime.files.foreign import HEAD_BYTES, begun
from runtime.products.contract import Description, Doubles, Glt, Place, Quantity, Reading
from runtime.products.envi_place import (
    begins_gzip,
    beside,
    check_glt,
    grid_of,
    located_bands,
    read_glt,
    read_located,
)
from runtime.products.flat import FlatReader
from runtime.products.place_texts import with_texts
from runtime.products.spool import Spool
from runtime.untrusted import open_regular

UNIT_KEY, QUANTITY_KEY = "data units", "data quantity"
_OTHERS = (".npy", ".npz", ".mat", ".zarr", ".json", ".xml")
_AVIRIS = re.compile(r"(?:ang|f|AV[345])\d{6,8}t\d+.*?(rdn|rfl)", re.IGNORECASE)
"""Names of the deliveries of AVIRIS-C, -NG and -3, whose radiance is in uW nm-1 cm-2 sr-1."""


def recognises(path: Path) -> bool:
    """A header, a file with a suffix of ENVI data, or any other with a header beside it that is no other format."""
    suffix = path.suffix.lower()
    with suppress(OSError, ValueError, CubeFileError):
        if not path.is_file() or suffix in _OTHERS:
            return False
        if suffix in (".hdr", *DATA_SUFFIXES):
            return True
        if not may_hold_data(path.name):
            return False
        pair_of(path)
        with open_regular(path)[0] as file:
            kind = begun(file.read(HEAD_BYTES))
        return kind is None or kind.rows or begins_gzip(path)[0]
    return False


def open_reader(path: Path, reading: Reading) -> "EnviReader":
    """Raises CubeFileError: as `runtime.files.envi.read_header`, or the data file is packed by something but gzip."""
    if reading.key is not None:
        raise CubeFileError(
            "this format holds one cube without a name", file=path, key="key", value=reading.key,
            remedy="leave the key out",
        )  # fmt: skip
    with unchanged(*pair_of(path)):
        return EnviReader(path, *_header(path))


def _header(path: Path) -> tuple[EnviHeader, bool]:
    """The header of a pair, and whether its data file is packed."""
    header_path, data_path = pair_of(path)
    header = parse_header(read_text(header_path), path=header_path, data_path=data_path, compressed=True)
    said = header.fields.get("file compression", "") == "1"
    packed, size = begins_gzip(data_path)
    if not said and (not packed or size == header.rows.end):
        return read_header(path), False
    if not packed:
        raise CubeFileError(
            "its header says that it is compressed, and it is no gzip file",
            file=data_path,
            key="file compression",
            value=1,
            remedy="set 'file compression = 0' if its numbers are plain",
        )
    check_expansion(data_path, header.rows.end, size)
    return header, True


class EnviReader(FlatReader):
    """An open ENVI pair, with the tables of places that lie beside it."""

    def __init__(self, path: Path, header: EnviHeader, packed: bool) -> None:
        self.header = header
        rows = header.rows
        files, notes, grid, why = [header.data_path, header.path], [], *grid_of(header)
        if why:
            notes.append(f"{why}: its place is not known")
        if packed:
            notes.append("packed by gzip: unpacked into a temporary file at the first line")
        self._glt = self._located = None
        if grid is None:
            self._glt, said = _table(header, "glt")
            notes += said
            for kind in ("loc", "igm"):
                table, said = _table(header, kind)
                bands = None if table is None else located_bands(table, rows.shape)
                if table is not None and bands is not None:
                    self._located = table, bands
                    break
                notes += said
        for table in (self._glt, self._located and self._located[0]):
            files += [] if table is None else [table.data_path, table.path]
        quantity, unit = _quantity(header)
        place = Place(grid=grid, ortho=None if self._glt is None else check_glt(self._glt))
        description = Description(
            format="envi",
            path=path,
            files=tuple(files),
            shape=rows.shape,
            dtype=rows.dtype.newbyteorder("="),
            block=rows.best_lines,
            holds=rows.holds,
            stated=stated_by(header),
            fwhm=fwhm_nm(header),
            quantity=quantity,
            unit=unit,
            place=with_texts(place, lambda key: header.fields.get(key, "").strip("{} \n\t")),
            notes=tuple(notes),
        )
        super().__init__(description, rows, self._unpacked if packed else None)

    def located(self, start: int, stop: int) -> tuple[Doubles, Doubles] | None:
        return None if self._located is None else read_located(*self._located, start, stop)

    def glt(self) -> Glt | None:
        return None if self._glt is None else read_glt(self._glt, self.description.shape)

    def _unpacked(self, spool: Spool) -> None:
        path, left = self.header.data_path, self.header.rows.end
        with opened(path) as (file, _), gzip.GzipFile(fileobj=file) as unpacked:
            while True:
                try:
                    piece = unpacked.read(min(PIECE, left + 1))
                except (OSError, EOFError, zlib.error) as error:
                    raise CubeFileError(f"is damaged: {reason(error)}", file=path, remedy="copy it again") from error
                if not piece:
                    break
                left -= len(piece)
                if left < 0:
                    break
                spool.append(piece)
        if left:
            what = "more" if left < 0 else "fewer"
            raise CubeFileError(
                f"holds {what} bytes than the {self.header.rows.end} that its header asks for",
                file=path,
                key="lines",
                value=self.header.lines,
                remedy="copy the data file again or correct the header",
            )


def _table(header: EnviHeader, kind: str) -> tuple[EnviHeader | None, list[str]]:
    """A table beside a cube, and a word where it cannot be used."""
    try:
        table = beside(header, kind)
        if table is not None and kind == "glt":
            check_glt(table)
        return table, []
    except CubeFileError as error:
        return None, [f"{plain(Path(error.file or kind).name)} beside it is not used: {error.problem}"]


def _quantity(header: EnviHeader) -> tuple[Quantity | None, str | None]:
    unit = header.fields.get(UNIT_KEY, "").strip("{} \n\t") or None
    said = header.fields.get(QUANTITY_KEY, "").strip()
    if said in ("reflectance", "radiance", "counts"):
        return cast(Quantity, said), unit
    if header.reflectance_scale_factor is not None or header.reflectance_gains is not None:
        return "reflectance", unit
    product = _AVIRIS.match(header.data_path.name)
    if product is not None:
        radiance = product[1].lower() == "rdn"
        return ("radiance", unit or "uW nm-1 cm-2 sr-1") if radiance else ("reflectance", unit)
    return None, unit
