"""`deploy stream`: lines from a spectrometer to a record and to restored lines, until somebody says stop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from runtime.bundle import Bundle
from runtime.doubts import DIM_SHARE, UNIT_LIMIT, wavelength_doubt
from runtime.errors import CubeError, InputError, MachineError
from runtime.files.disk import available_memory
from runtime.lines import LineFormat
from runtime.manifest import Manifest
from runtime.radiometry import Radiometry, load_radiometry
from runtime.record.writer import LineWriter, open_line_writer
from runtime.sinks.contract import Sink, StreamFacts
from runtime.sinks.quicklook import Quicklook, Scroll
from runtime.sinks.restored_file import RestoredFile
from runtime.sinks.spectra import Spectra
from runtime.sources import Source
from runtime.stream.pipeline import NamedSink, StreamOptions, bytes_needed
from runtime.stream.restoring import RestorerFacts
from runtime.stream.teller import Snapshot

from .. import console
from ..config.stream import StreamSection


@dataclass(frozen=True)
class Outward:
    """What a stream tells beside its files.

    Attributes:
        quicklook: PNG of the newest lines.
        publish: ZeroMQ port of this machine, or an address.
        packets: file or UDP `HOST:PORT` for CCSDS packets.
        prometheus, web: ports of this machine; 0 takes a free one.
    """

    quicklook: Path | None = None
    publish: str | None = None
    packets: str | None = None
    prometheus: int | None = None
    web: int | None = None


EXACT_BYTES = 2
"""float32 holds every whole number of so many bytes."""


@dataclass
class Parts:
    """Everything that a stream needs, open.

    Attributes:
        facts: what the network restores.
        radiometry: from digital numbers to the unit range.
        output: format of the restored lines.
        record: the raw record, or None; `limit` bytes of it are kept.
        restored: the file of restored lines, or None.
        sinks: what restored lines go to.
        options: how the stream runs.
        first_sequence: number of the first line: behind those that are in the files already.
        telling: called about once a second with a snapshot.
        notes: what people should read before they trust the result.
        bands: which of the source's bands are restored, for people.
        addresses: where others may look, by name.
    """

    facts: RestorerFacts
    radiometry: Radiometry
    output: LineFormat
    options: StreamOptions
    record: LineWriter | None = None
    limit: int | None = None
    restored: LineWriter | None = None
    sinks: list[NamedSink] = field(default_factory=list)
    first_sequence: int = 0
    telling: list[Callable[[Mapping[str, Any]], None]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    bands: str = ""
    addresses: dict[str, str] = field(default_factory=dict)
    _scroll: Scroll | None = None
    _spectra: Spectra | None = None

    def spool(self) -> dict[str, Any]:
        """The record on disk."""
        writer = self.record
        if writer is None:
            return {}
        return {
            "bytes": writer.bytes,
            "limit": self.limit,
            "lines": writer.lines,
            "deleted_segments": writer.deleted_segments,
            "deleted_lines": writer.deleted_lines,
            "bad_segments": writer.bad_segments,
        }

    def serve(self, snapshot: Snapshot, outward: Outward, stack: ExitStack) -> dict[str, str]:
        """Open what others may look at; returns their addresses by name."""
        found = self.addresses
        if outward.prometheus is not None:
            from runtime.stream.prometheus import PrometheusEndpoint

            endpoint = stack.enter_context(PrometheusEndpoint(snapshot, outward.prometheus))
            found["prometheus"] = f"http://127.0.0.1:{endpoint.port}/metrics"
        if outward.web is not None and self._spectra is not None and self._scroll is not None:
            from runtime.stream.web import serve

            server = stack.enter_context(serve(snapshot, self._scroll.png, self._spectra.spectra, outward.web))
            found["web"] = server.url
        return found


def make_parts(
    bundle: Bundle,
    source: Source,
    told: StreamSection,
    record: Path | None,
    restored: Path | None,
    limit: int | None,
    seconds: float | None,
    scale: float | None,
    outward: Outward,
    opened: ExitStack,
) -> Parts:
    """Open the files and sinks of a stream; `opened` closes them. Raises DeployError."""
    _check_scale(source.format, told, scale)
    manifest, lines = bundle.manifest, source.format
    signature = manifest.signature
    measured = signature.measured
    chosen = _chosen(told, lines, manifest.wavelengths)
    count = lines.bands if chosen is None else len(chosen)
    if signature.measured.size != signature.restored.size:
        raise InputError(
            "the network's frames come out in another size, and a stream restores line for line",
            file=bundle.path,
            key="signature",
            remedy="restore files with `deploy run`",
        )
    if signature.tiling == "fixed" and lines.samples != measured.samples:
        raise CubeError(
            "the network takes lines of one width, which have one place only",
            key="samples",
            value=lines.samples,
            remedy=f"give lines of {measured.samples} samples",
        )
    if count > measured.bands and not signature.band_groups:
        raise CubeError(
            "the source has more bands than the network, which does not restore them in groups",
            key="bands",
            value=count,
            remedy=f"choose {measured.bands} of them: stream.bands",
        )
    if count < measured.bands:
        raise CubeError(
            "the source has fewer bands than the network" if chosen is None else "fewer bands than the network has",
            key="bands",
            value=count,
            remedy=f"the network restores {measured.bands} bands",
        )
    radiometry = load_radiometry(told.radiometry, _scaled(lines, bundle, told), told.folder or ".")
    output = _output(lines, chosen, radiometry, told) if signature.alike else _made(manifest)
    parts = Parts(
        RestorerFacts(signature, manifest.overlap, bundle.prompts, chosen),
        radiometry,
        output,
        StreamOptions(
            seconds, told.line_buffers, told.frame_buffers, told.policy, told.bridge, float(told.drain_seconds)
        ),
        limit=limit,
        bands=_bands_text(lines, chosen, measured.bands),
        notes=_notes(lines, chosen, manifest.wavelengths, measured.bands),
    )
    _check_memory(parts, lines, outward, restored is not None)
    about = f"{manifest.network.architecture} {manifest.precision.chosen}"
    if record is not None:
        parts.record = opened.enter_context(
            open_line_writer(
                record, "lines", lines, fields={"description": f"raw lines of {_described(source)}"}, limit=limit,
                segment_bytes=None if told.segment_mib is None else told.segment_mib << 20,
            )
        )  # fmt: skip
    if restored is not None:
        fields = {"description": f"lines of {_described(source)} restored by {about}"}
        places = "all" if chosen is None else ",".join(map(str, chosen))
        meaning = (
            f"network {manifest.network.checkpoint_sha256[:12]}, bands {places}, radiometry {radiometry.digest()[:12]}"
        )
        parts.restored = opened.enter_context(
            open_line_writer(restored, "restored", parts.output, fields=fields, meaning=meaning)
        )
        parts.sinks.append(NamedSink("restored", RestoredFile(parts.restored), "block", principal=True))
    _add_sinks(parts, StreamFacts(parts.output, about), told, outward, opened)
    writers = [writer for writer in (parts.record, parts.restored) if writer is not None]
    parts.first_sequence = max((writer.next_sequence for writer in writers), default=0)
    parts.notes += [writer.resumed for writer in writers if writer.resumed]
    floats = lines.dtype.kind == "f"
    said = lines.scale is not None or "scale" in told.radiometry or told.radiometry.get("output") == "reflectance"
    if not floats and not said:
        parts.notes.append(
            f"nobody said what stands for 1.0 in these lines: the bundle's {radiometry.scale:g} is taken (--scale)"
        )
    parts.telling.append(_doubt_scale(not floats and not said, floats, console.warn))
    parts.notes += _never_restored(parts)
    return parts


def _never_restored(parts: Parts) -> list[str]:
    """Lines at the end of the record that no run before has restored: it was killed, or dropped its last frames."""
    if parts.record is None or parts.restored is None:
        return []
    first, behind = parts.restored.next_sequence, parts.record.next_sequence
    if first >= behind:
        return []
    names = "lines.hdr" if parts.limit is None else "lines-NNNN.hdr, segment by segment"
    return [
        f"lines {first} to {behind - 1} of the record were not restored by the run before; a copy of the record can be "
        f"restored later with --source envi:COPY/{names}, which numbers its lines anew and knows of no gaps"
    ]


def _doubt_scale(unsaid: bool, floats: bool, warn: Callable[[str], None]) -> Callable[[Mapping[str, Any]], None]:
    """Looks at a stream's snapshots; warns once where the numbers do not look like the scale that was taken."""
    done = False

    def look(snapshot: Mapping[str, Any]) -> None:
        nonlocal done
        peak = snapshot["peak"]
        if peak is None or done:
            return
        done = True
        if peak > UNIT_LIMIT:
            remedy = "say it in stream.radiometry.scale" if floats else "say it: --scale"
            warn(f"values reach {peak:.4g} times what stands for 1.0; if that is another number, {remedy}")
        elif unsaid and peak < DIM_SHARE:
            warn(f"values reach {100 * peak:.2g} % of what stands for 1.0, which nobody said; say it: --scale")

    return look


def _check_memory(parts: Parts, lines: LineFormat, outward: Outward, restored: bool) -> None:
    sinks = [restored, outward.quicklook, outward.web is not None, outward.publish, outward.packets]
    needed = bytes_needed(parts.facts, parts.options, lines, parts.output, sum(map(bool, sinks)))
    there = available_memory()
    if needed > there:
        raise MachineError(
            f"the lines and frames on their way take {needed / 2**20:.0f} MiB, and {there / 2**20:.0f} are free",
            key="stream",
            value=f"{parts.output.bands} bands x {lines.samples} samples, frames of {parts.facts.frame[0]} lines",
            remedy="choose bands (stream.bands), fewer stream.line_buffers, or a bundle with shorter frames",
        )


def _add_sinks(parts: Parts, facts: StreamFacts, told: StreamSection, outward: Outward, opened: ExitStack) -> None:
    def add(name: str, sink: Sink, *, stays_open: bool = False) -> None:
        opened.enter_context(sink)
        parts.sinks.append(NamedSink(name, sink, stays_open=stays_open))

    if outward.quicklook is not None:
        if outward.quicklook.suffix.lower() != ".png":
            raise InputError("is a PNG", key="--quicklook", value=outward.quicklook, remedy="name it .png")
        add("quicklook", Quicklook(outward.quicklook, facts, bands_nm=told.quicklook_nm))
    if outward.web is not None:
        # The page has a picture of its own: no file is asked for.
        watched = Watched(Scroll(facts, bands_nm=told.quicklook_nm), Spectra(facts, told.spectra))
        parts._scroll, parts._spectra = watched.scroll, watched.spectra
        add("web", watched)
    if outward.publish is not None:
        from runtime.sinks.zeromq import Publisher

        port = outward.publish.isascii() and outward.publish.isdigit()
        if not port and "://" not in outward.publish:
            raise InputError(
                "neither a port nor an address", key="--publish", value=outward.publish,
                remedy="for example 5556, or tcp://127.0.0.1:5556",
            )  # fmt: skip
        publisher = Publisher(facts, **({"port": int(outward.publish)} if port else {"address": outward.publish}))
        # Its last word is the final count, behind the last line.
        add("publish", publisher, stays_open=True)
        parts.addresses["publish"] = publisher.address
        parts.telling.append(publisher.telemetry)
    if outward.packets is not None:
        from runtime.sinks.ccsds import SpacePackets

        packets = SpacePackets(facts, _packet_target(outward.packets))
        add("packets", packets, stays_open=True)
        parts.telling.append(packets.housekeeping)
        parts.addresses["packets"] = outward.packets
        if packets.resumed:
            parts.notes.append(packets.resumed)


class Watched(Sink):
    """What the live page shows: a scrolling picture and spectra."""

    def __init__(self, scroll: Scroll, spectra: Spectra) -> None:
        self.scroll, self.spectra = scroll, spectra

    def write(self, block: Any) -> None:
        self.scroll.add(block)
        self.spectra.write(block)

    def close(self) -> None:
        """Nothing is held."""


def _packet_target(text: str) -> Path | tuple[int, str]:
    host, colon, port = text.rpartition(":")
    if colon and port.isascii() and port.isdigit() and "/" not in text:
        if not 0 < int(port) < 65536:
            raise InputError("no such port", key="--packets", value=text, remedy="HOST:PORT, 1 to 65535")
        return int(port), host.strip("[]") or "127.0.0.1"
    if text.isascii() and text.isdigit():
        raise InputError("neither a file nor HOST:PORT", key="--packets", value=text, remedy=f"127.0.0.1:{text}")
    return Path(text)


def _described(source: Source) -> str:
    return ", ".join(source.describe().values())


def _chosen(told: StreamSection, lines: LineFormat, trained: list[float] | None) -> tuple[int, ...] | None:
    if told.bands is not None and told.nearest_bands:
        raise InputError("two ways to choose bands", key="stream.bands", remedy="leave bands or nearest_bands out")
    if told.bands is not None:
        beyond = [band for band in told.bands if band >= lines.bands]
        if beyond:
            raise InputError(
                "the source has no such band", key="stream.bands", value=beyond[0], remedy=f"0 to {lines.bands - 1}"
            )
        if len(set(told.bands)) < len(told.bands):
            raise InputError("a band is chosen twice", key="stream.bands", remedy="name each band once")
        return told.bands
    if not told.nearest_bands:
        return None
    if lines.wavelengths is None or trained is None:
        raise InputError(
            "the wavelengths of source and network are needed to choose bands by them",
            key="stream.nearest_bands",
            remedy="give stream.wavelengths, or choose stream.bands",
        )
    apart = np.abs(np.asarray(lines.wavelengths)[None] - np.asarray(trained)[:, None])
    nearest = tuple(int(band) for band in apart.argmin(axis=1))
    if len(set(nearest)) < len(nearest):
        raise InputError(
            f"only {len(set(nearest))} of the source's bands lie near the network's {len(nearest)}",
            key="stream.nearest_bands",
            remedy="choose stream.bands by number, or restore all bands in groups",
        )
    return nearest


def _check_scale(lines: LineFormat, told: StreamSection, scale: float | None) -> None:
    if lines.dtype.kind == "f" and (scale is not None or told.scale is not None):
        raise InputError(
            "a scale is for lines of integers, these hold floats",
            key="scale",
            value=scale or told.scale,
            remedy="leave the scale out; floats pass as they are",
        )


def _scaled(lines: LineFormat, bundle: Bundle, told: StreamSection) -> LineFormat:
    """The format with a scale that somebody said: flag, file or camera, bundle."""
    if lines.dtype.kind == "f" or lines.scale is not None:
        return lines
    scale = bundle.manifest.scale
    if scale is None and "scale" not in told.radiometry and told.radiometry.get("output") != "reflectance":
        raise InputError(
            "lines of integers need a scale, and neither flag, source nor bundle tells one",
            key="scale",
            remedy="say which digital number stands for 1.0, for example --scale 4095",
        )
    return replace(lines, scale=scale)


def _output(
    lines: LineFormat, chosen: tuple[int, ...] | None, radiometry: Radiometry, told: StreamSection
) -> LineFormat:
    """Restored lines: the input's type and scale, or float32 in the unit range where that is asked for or needed."""
    wavelengths = lines.wavelengths
    if chosen is not None and wavelengths is not None:
        wavelengths = tuple(wavelengths[band] for band in chosen)
    bands = lines.bands if chosen is None else len(chosen)
    mark = lines.ignore_value
    if told.output == "input" and lines.dtype.kind in "iu" and told.radiometry.get("output", "dn") == "dn":
        if lines.dtype.itemsize > EXACT_BYTES:
            raise InputError(
                f"float32, in which lines are restored, does not hold every {lines.dtype}",
                key="stream.output",
                value="input",
                remedy="set stream.output to float32",
            )
        # Behind radiometry the detector's limit is another number in every element.
        saturation = None if told.radiometry else lines.saturation
        return LineFormat(bands, lines.samples, lines.dtype, radiometry.scale, saturation, wavelengths, mark)
    return LineFormat(bands, lines.samples, np.dtype(np.float32), None, None, wavelengths, mark)


def _made(manifest: Manifest) -> LineFormat:
    """Lines of what is restored, where that is another thing than what is measured."""
    plane, centres = manifest.signature.restored, manifest.wavelengths
    return LineFormat(plane.bands, plane.samples, np.dtype(np.float32), None, None, tuple(centres) if centres else None)


def _bands_text(lines: LineFormat, chosen: tuple[int, ...] | None, network: int) -> str:
    if chosen is not None:
        return f"{len(chosen)} of {lines.bands}: " + ", ".join(map(str, chosen))
    return f"all {lines.bands}" + (f", in overlapping groups of {network}" if lines.bands > network else "")


def _notes(lines: LineFormat, chosen: tuple[int, ...] | None, trained: list[float] | None, bands: int) -> list[str]:
    notes = []
    count = lines.bands if chosen is None else len(chosen)
    if count > bands:
        notes.append(
            f"{count} bands are restored in overlapping groups of the network's {bands}: choose bands if the network "
            "was trained on some of them (stream.bands, stream.nearest_bands)"
        )
    elif lines.wavelengths is not None:
        found = [lines.wavelengths[band] for band in chosen] if chosen else list(lines.wavelengths)
        notes += filter(None, [wavelength_doubt("the source's", found, trained)])
    return notes
