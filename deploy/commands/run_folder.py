"""`deploy run` on a folder of photographs: each restored into another folder, those that are there already left out."""

import hashlib
import time
from pathlib import Path
from typing import Any

from runtime.bundle import Bundle
from runtime.durable import write_bytes
from runtime.errors import CubeError, CubeFileError, DeployError, InputError, MachineError, printable
from runtime.files import CubeFile, read_cube
from runtime.files.disk import reason
from runtime.files.photographs import SUFFIXES
from runtime.manifest import dump
from runtime.restore import Restored, check_fits
from runtime.restore_file import meaning_of_file, restore_file

from .. import console
from .run_cube import How, opened, proved, refuse_full, refuse_large, refuse_unwritable, write

PICTURES = (
    ".heic", ".heif", ".avif", ".webp", ".jp2", ".jxl", ".bmp", ".gif", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf",
    ".orf", ".rw2",
)  # fmt: skip
"""What cameras write too, and is not read."""
RECORD = ".restored-by"
"""File of a folder of restored pictures: what restored them."""


def run_folder(bundle: Path, folder: Path, out: Path, how: How) -> dict[str, Any]:
    """Restore a folder's photographs; returns what `--json` prints.

    Raises:
        InputError: nothing can be done at all, or at the end: some of them could not be restored, which `report` lists.
    """
    how.refuse_for("a folder")
    targets = _targets(folder, out)
    done = {"pictures": len(targets), "restored": 0, "skipped": 0, "frames": 0}
    failed: dict[str, str] = {}
    began = time.monotonic()
    with opened(bundle, how) as loaded:
        proved(loaded, how)
        told = {"prompt": loaded.prompts.chosen, "precision": loaded.engine.describe()["computes in"]}
        made = _maker(loaded, how)
        _refuse_mixture(out, made, how, any(map(Path.exists, targets.values())))
        console.say(f"photographs {len(targets)} in {folder}")
        try:
            with console.progress("restoring") as moved:
                for number, (path, target) in enumerate(targets.items()):
                    moved(number, len(targets))
                    if not how.replace and _whole(target):
                        done["skipped"] += 1
                        continue
                    try:
                        source, restored = _restored(loaded, path, target, how)
                        write(target, source, restored, loaded.manifest)
                    except InputError as error:
                        failed[path.name] = error.one_line()
                        console.warn(failed[path.name])
                        continue
                    done["restored"] += 1
                    done["frames"] += restored.frames
        except KeyboardInterrupt:
            left = len(targets) - done["restored"] - done["skipped"]
            console.complain(f"deploy: {left} of {len(targets)} are left; the same command goes on with them")
            raise
        except DeployError as error:
            error.report = {"out": str(out), **done, "failed": failed}
            raise
    if how.replace and not failed:
        write_bytes(out / RECORD, made.encode())
    seconds = round(time.monotonic() - began, 3)
    report = {"out": str(out), **done, "failed": failed, "seconds": seconds, **told}
    if done["skipped"]:
        console.say(f"skipped     {done['skipped']} that are in {out} already; --replace restores them again")
    console.say(f"restored    {done['restored']} photograph{'s' * (done['restored'] != 1)} in {seconds:.2f} s")
    if failed:
        wrong = InputError(
            f"{len(failed)} of {len(targets)} photographs were not restored: {', '.join(failed)}",
            file=folder,
            remedy="the others were; the same command tries these again",
        )
        wrong.report = report
        raise wrong
    console.say(f"wrote       {out}", "bold green")
    return report


def _targets(folder: Path, out: Path) -> dict[Path, Path]:
    """Of every photograph, sorted by name, where it goes; makes the folder `out`. Raises CubeFileError."""
    try:
        there = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
        # A link that leads nowhere was a photograph: it is told like one that cannot be read.
        there = [path for path in there if not path.is_dir()]
        others = sorted(p.name for p in folder.iterdir() if p.suffix.lower() in PICTURES and not p.name.startswith("."))
        if others:
            console.warn(
                f"{len(others)} picture{'s' * (len(others) > 1)} of other formats left out, first {others[0]}: "
                f"save as one of {' '.join(SUFFIXES)}"
            )
        if not there:
            raise CubeFileError(
                "holds no photographs",
                file=folder,
                remedy=f"give a folder with files of {' '.join(SUFFIXES)}; `deploy archive run` restores products",
            )
        out.mkdir(exist_ok=True)
        if out.samefile(folder):
            raise CubeFileError("is the folder of the photographs itself", file=out, key="--out", remedy="give another")
    except OSError as error:
        where = folder if error.filename == str(folder) else out
        raise CubeFileError(f"cannot be used: {reason(error)}", file=where, remedy="give a folder of yours") from error
    targets: dict[Path, Path] = {}
    for path in there:
        target = out / f"{path.stem}{'.tif' if path.suffix.lower().startswith('.tif') else '.png'}"
        if other := next((known for known, taken in targets.items() if taken == target), None):
            raise CubeFileError(
                f"{other.name} and {path.name} would both become {target.name}", file=folder, remedy="rename one"
            )
        targets[path] = target
    return targets


def _maker(loaded: Bundle, how: How) -> str:
    """What restores: the bundle, its precision and prompt, and all options that change a picture."""
    digest = hashlib.sha256(dump(loaded.manifest)).hexdigest()
    options = f"scale {how.scale}, marks {how.marks}, constant bands {how.constant_bands}, clip {how.clip}"
    told = f"{digest}, {loaded.engine.describe()['computes in']}", loaded.prompts.identity, options
    return "bundle " + ", ".join(filter(None, told))


def _refuse_mixture(out: Path, made: str, how: How, begun: bool) -> None:
    """Keep what a folder is filled by, and refuse to go on with something else. Raises InputError."""
    record = out / RECORD
    known = record.read_text(errors="replace") if record.is_file() else None
    if how.replace:
        # Till all are replaced, nobody knows by what they were made.
        record.unlink(missing_ok=True)
    elif known != made and (begun or known is not None):
        raise InputError(
            "holds pictures that another bundle, prompt or option restored, or nobody knows what",
            file=out,
            key="--out",
            value=printable(known or ""),
            remedy="give another folder, or --replace to restore all of them again",
        )
    else:
        write_bytes(record, made.encode())


def _whole(target: Path) -> bool:
    """Whether there is a picture that can be read to its end; one that cannot is told."""
    if not target.exists():
        return False
    try:
        read_cube(target)
    except CubeFileError as error:
        console.warn(f"{error.one_line()}; it is restored again")
        return False
    return True


def _restored(loaded: Bundle, path: Path, target: Path, how: How) -> tuple[CubeFile, Restored]:
    """A photograph, and what the network makes of it. Raises InputError where it cannot be used."""
    signature = loaded.manifest.signature
    source = _photograph(path)
    try:
        check_fits(source.cube.shape, signature)
    except CubeError as error:
        error.file = str(path)
        raise
    refuse_full(source, target)
    refuse_unwritable(source, target, signature, unit=False)
    meaning = meaning_of_file(loaded, source, how.asked)
    for doubt in meaning.doubts:
        console.warn(f"{path.name}: {doubt}")
    return source, restore_file(loaded, source, meaning, clip=how.clip)


def _photograph(path: Path) -> CubeFile:
    """Raises InputError, also where this one is too large for the machine."""
    try:
        source = read_cube(path)
        refuse_large(source)
    except MachineError as error:
        if error.file is None:
            raise
        raise CubeFileError(error.problem, file=path, value=error.value, remedy="make it smaller") from error
    if source.photograph is None:
        raise CubeFileError("is no photograph", file=path, remedy="give it alone, as a cube")
    return source
