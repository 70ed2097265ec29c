"""Two slots for bundles, of which one flies: an update that fails, or a bundle that broke, gives way to the other.

STORE/a and STORE/b are bundles. STORE/state and STORE/state.bak say the same of them, each under a checksum, so that
one damaged copy costs nothing; STORE/log.jsonl keeps what was done. As in RAUC, tries are counted down, durably, before
a new bundle is loaded, and it is good only once it has proved itself; serial numbers do not go back unless somebody
says so.
"""

import fcntl
import json
import os
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from .archive import check, pack, unpack
from .bundle_files import digest
from .durable import write_bytes
from .errors import BundleError, DeployError, InputError, MachineError
from .manifest import MANIFEST
from .plain_json import plain_json
from .slot_names import NAMES
from .trust import Trust
from .untrusted import TooLargeError, read_untrusted

TRIES = 3
STATE, COPY, LOG, LOCK, INCOMING = "state", "state.bak", "log.jsonl", "lock", "incoming"
LARGEST_STATE, LARGEST_LOG = 64 << 10, 16 << 20


@dataclass(frozen=True)
class Slot:
    """What is known of a slot.

    Attributes:
        state: `empty`, `new`: to be proved, `good`: it has flown, or `bad`.
        tries: loadings that a new one has left.
        serial: of its bundle, which only grows from one release to the next.
        digest: SHA-256 of its manifest.
        why: it is bad.
    """

    state: Literal["empty", "new", "good", "bad"] = "empty"
    tries: int = 0
    serial: int = 0
    digest: str = ""
    why: str = ""


@dataclass(frozen=True)
class State:
    """What a store says of itself.

    Attributes:
        generation: counts its changes; of two copies the later one holds.
        active: the slot that is tried first.
        highest: serial of the newest bundle that was ever good.
        slots: by name.
    """

    generation: int = 0
    active: str = "a"
    highest: int = 0
    slots: dict[str, Slot] = field(default_factory=lambda: {name: Slot() for name in NAMES})

    @property
    def other(self) -> str:
        """The slot that is tried when the active one does not work."""
        return _other(self.active)

    def having(self, name: str, slot: Slot, **more: Any) -> "State":
        """The same with another slot in the place of that one."""
        return replace(self, slots={**self.slots, name: slot}, **more)


def _other(name: str) -> str:
    return NAMES[1 - NAMES.index(name)]


def read_state(store: Path) -> State:
    """What the later of the two copies that are whole says; where none is, what lies in the slots.

    Raises:
        InputError: this is no store.
    """
    refuse_no_store(store)
    found = [state for name in (STATE, COPY) if (state := _parsed(store / name)) is not None]
    if found:
        return max(found, key=lambda state: state.generation)
    return _rebuilt(store)


def refuse_no_store(store: Path) -> None:
    """Raise InputError where there is no folder, or one that holds something else."""
    if not store.is_dir():
        remedy = "`deploy slots install BUNDLE --store STORE` makes one"
        raise InputError("no such store" + ", this is a file" * store.is_file(), file=store, remedy=remedy)
    there = sorted(one.name for one in store.iterdir() if not one.name.startswith("."))
    if strange := not {STATE, COPY, LOG}.intersection(there) and set(there) - {*NAMES, LOCK, INCOMING}:
        raise InputError("is no store", file=store, value=min(strange), remedy="give a store, or a new folder")


def doubts(store: Path) -> list[str]:
    """What a person should know of a store's state: copies that are damaged or lost. Raises InputError."""
    refuse_no_store(store)
    lost = [name for name in (STATE, COPY) if _parsed(store / name) is None]
    if len(lost) == 1:
        return [f"{store / lost[0]} is damaged or lost: the other copy holds, and the next change writes both"]
    if not lost or not any((store / name).exists() for name in (*NAMES, STATE, COPY, LOG)):
        return []
    return [
        f"both copies of the state in {store} are damaged or lost: what is whole in the slots is to be proved anew, "
        f"and serials below {_rebuilt(store).highest} are older ones"
    ]


def _highest_good(store: Path) -> int:
    """The highest serial that was good by the store's log, as far as that is there."""
    highest = 0
    for name in (f"{LOG}.1", LOG):
        with suppress(OSError, TooLargeError):
            for line in read_untrusted(store / name, LARGEST_LOG).splitlines():
                # What a power cut tore is no line.
                with suppress(ValueError, TypeError, KeyError):
                    told = json.loads(line)
                    highest = max(highest, int(told["serial"])) if told["kind"] == "good" else highest
    return highest


def _rebuilt(store: Path) -> State:
    """Of a store whose two copies are lost: what is whole is to be proved anew."""
    slots = dict.fromkeys(NAMES, Slot())
    for name in NAMES:
        with suppress(DeployError):
            head = check(store / name)
            slots[name] = Slot("new", TRIES, head.manifest.serial, digest(head.files[MANIFEST]))
    active = max(NAMES, key=lambda name: (slots[name].state != "empty", slots[name].serial))
    return State(0, active, max(_highest_good(store), *(slot.serial for slot in slots.values())), slots)


def _parsed(path: Path) -> State | None:
    try:
        data = read_untrusted(path, LARGEST_STATE)
        content = json.loads(data)
        checksum = content.pop("crc32")
        if checksum != zlib.crc32(_canonical(content)):
            return None
        slots = {name: Slot(**content["slots"][name]) for name in NAMES}
        return State(int(content["generation"]), content["active"], int(content["highest"]), slots)
    # What is not ours, or damaged, is no copy.
    except Exception:
        return None


def _canonical(content: dict[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()


@contextmanager
def _changing(store: Path) -> Iterator[State]:
    """The state, which nobody else changes meanwhile. Raises DeployError."""
    refuse_no_store(store)
    try:
        descriptor = os.open(store / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise _refused(store, error) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise MachineError("another process changes this store", file=store, remedy="try again") from error
        for doubt in doubts(store):
            note(store, "doubt", why=doubt)
        yield read_state(store)
    finally:
        os.close(descriptor)


def _refused(store: Path, error: OSError) -> MachineError:
    problem = f"the store cannot be written: {error.strerror or error}"
    return MachineError(problem, file=store, remedy="check the folder, its permissions and its free space")


def _keep(store: Path, state: State, what: str, **facts: Any) -> State:
    """Write both copies, one after the other, and a line of the log. Raises MachineError."""
    state = replace(state, generation=state.generation + 1)
    content = asdict(state)
    data = _canonical({**content, "crc32": zlib.crc32(_canonical(content))})
    try:
        for name in (STATE, COPY):
            write_bytes(store / name, data)
    except InputError as error:
        raise MachineError(error.problem, file=error.file, remedy=error.remedy) from error
    note(store, what, **facts)
    return state


def note(store: Path, what: str, **facts: Any) -> None:
    """Add a line to the store's log; a disk that refuses it stops nothing."""
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    line = json.dumps(plain_json({"utc": now, "kind": what, **facts})).encode() + b"\n"
    with suppress(OSError):
        path = store / LOG
        if path.exists() and path.stat().st_size + len(line) > LARGEST_LOG:
            path.replace(path.with_suffix(".jsonl.1"))
        with path.open("ab") as file:
            file.write(line)


def install(bundle: Path, store: Path, *, allow_older: bool = False, trust: Trust | None = None) -> State:
    """Write a bundle, a folder or an archive, into the slot that is not needed, to be tried next.

    The slot of the only bundle that is good is never written to. Killed at any moment, the store has what it had.

    Raises:
        BundleError: it is damaged, or not signed as it must be.
        InputError: it is older than one that was good, or lies in the store itself.
        MachineError: the store cannot be written, or somebody else changes it.
    """
    head = check(bundle, trust)
    serial = head.manifest.serial
    if store.resolve() in bundle.resolve().parents:
        raise InputError("lies in the store itself", file=bundle, remedy="give the bundle that came from the ground")
    if store.exists():
        refuse_no_store(store)
    try:
        store.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _refused(store, error) from error
    with _changing(store) as state:
        if serial < state.highest and not allow_older:
            raise InputError(
                "is older than one that was good here",
                file=bundle,
                key="serial",
                value=serial,
                remedy=f"{state.highest} was good; install a newer one, or say --allow-older",
            )
        good = [name for name in NAMES if state.slots[name].state == "good"]
        name = state.other if len(good) != 1 else _other(good[0])
        # Until all is there the slot counts for nothing.
        state = _keep(store, state.having(name, Slot(), active=_other(name)), "begun", slot=name, serial=serial)
        archive = bundle
        if bundle.is_dir():
            archive = store / INCOMING
            pack(bundle, archive, trust)
        try:
            head = unpack(archive, store / name, replace=True, trust=trust)
        finally:
            (store / INCOMING).unlink(missing_ok=True)
        slot = Slot("new", TRIES, serial, digest(head.files[MANIFEST]))
        older = {"allowed_older_than": state.highest} if serial < state.highest else {}
        return _keep(store, state.having(name, slot, active=name), "installed", slot=name, serial=serial, **older)


def use(store: Path, name: str) -> State:
    """Make a slot the one that is tried first; it gets its tries anew, unless it is good. Raises DeployError."""
    with _changing(store) as state:
        slot = _whole(store, state, name)
        fresh = slot if slot.state == "good" else replace(slot, state="new", tries=TRIES, why="")
        older = {"older_than": state.highest} if slot.serial < state.highest else {}
        return _keep(store, state.having(name, fresh, active=name), "use", slot=name, serial=slot.serial, **older)


def good(store: Path, name: str) -> State:
    """A slot has proved itself; every byte of it is checked. Raises DeployError."""
    with _changing(store) as state:
        slot = _whole(store, state, name)
        fresh = replace(slot, state="good", tries=TRIES, why="")
        highest = max(state.highest, slot.serial)
        return _keep(store, state.having(name, fresh, highest=highest), "good", slot=name, serial=slot.serial)


def bad(store: Path, name: str, why: str) -> State:
    """A slot is not to be tried again; the other one is, where it may be. Raises DeployError."""
    with _changing(store) as state:
        slot = _there(store, state, name)
        return _keep(store, _gone_bad(state, name, why), "bad", slot=name, serial=slot.serial, why=why)


def untried(store: Path, name: str) -> State:
    """Give a new slot the try back that was counted: it was not to blame for the end. Raises DeployError."""
    with _changing(store) as state:
        slot = _there(store, state, name)
        if slot.state != "new":
            return state
        fresh = replace(slot, tries=min(slot.tries + 1, TRIES))
        return _keep(store, state.having(name, fresh), "untried", slot=name, serial=slot.serial, left=fresh.tries)


def _gone_bad(state: State, name: str, why: str) -> State:
    state = state.having(name, replace(state.slots[name], state="bad", tries=0, why=why))
    usable = state.slots[_other(name)].state in ("good", "new")
    return replace(state, active=_other(name)) if usable and state.active == name else state


def _there(store: Path, state: State, name: str) -> Slot:
    if name not in NAMES or state.slots[name].state == "empty":
        there = [one for one in NAMES if state.slots[one].state != "empty"]
        raise InputError(
            "there is no bundle in this slot",
            file=store,
            key="slot",
            value=name,
            remedy=f"there is one in {' and '.join(there)}" if there else "install one first",
        )
    return state.slots[name]


def _whole(store: Path, state: State, name: str) -> Slot:
    """A slot whose bundle is undamaged, and the one that was installed."""
    slot = _there(store, state, name)
    if digest(check(store / name).files[MANIFEST]) != slot.digest:
        raise BundleError("is another bundle than the one that was installed", file=store / name, remedy="install it")
    return slot


def next_slot(store: Path, without: Collection[str] = ()) -> str | None:
    """The slot to load now, whose try is counted before it is loaded; None where none is left. Raises DeployError.

    Args:
        without: slots that were tried just now and do not work.
    """
    if (state := read_state(store)).slots[state.active].state == "good" and state.active not in without:
        # Nothing is to be counted, and the store may be read-only.
        return state.active
    with _changing(store) as state:
        for name in (one for one in (state.active, state.other) if one not in without):
            slot = state.slots[name]
            if slot.state == "new" and slot.tries < 1:
                why = f"it did not prove itself in {TRIES} tries"
                state = _keep(store, _gone_bad(state, name, why), "bad", slot=name, serial=slot.serial, why=why)
                continue
            if slot.state == "new":
                fresh = replace(slot, tries=slot.tries - 1)
                _keep(store, state.having(name, fresh), "try", slot=name, serial=slot.serial, left=fresh.tries)
            if slot.state in ("new", "good"):
                return name
    return None
