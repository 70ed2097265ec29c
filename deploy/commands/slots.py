"""`deploy slots`: two places for bundles on a flight computer, so that an update that does not work gives way."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from runtime.slot_names import NAMES

from .. import console
from .options import examples, json_option, trust_option

if TYPE_CHECKING:
    from runtime.slots import State

store_option = click.option(
    "--store",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder of the two slots and of what is known of them.",
)
slot_argument = click.argument("slot", type=click.Choice(NAMES))


@click.group(
    no_args_is_help=False,
    epilog=examples(
        "deploy slots install nano.damp --store /var/lib/damp-deploy/store",
        "deploy slots list --store /var/lib/damp-deploy/store --json",
    ),
)
def command() -> None:
    """Keep two bundles: the newest one flies once it has proved itself, the other one where it does not.

    `deploy stream --store STORE` flies from them.
    """


@command.command()
@click.argument("bundle", metavar="BUNDLE|ARCHIVE", type=click.Path(path_type=Path))
@store_option
@click.option("--allow-older", is_flag=True, help="Also where its serial is lower than that of one that was good.")
@trust_option
@json_option
def install(bundle: Path, store: Path, allow_older: bool) -> dict[str, Any]:
    """Write a bundle into the slot that is not needed; the next stream tries it, three times at most."""
    from runtime import slots

    if store.exists():
        _warn(store)
    with console.progress("checking and writing every byte"):
        state = slots.install(bundle, store, allow_older=allow_older)
    return _told(store, state)


@command.command(name="list")
@store_option
@json_option
def list_slots(store: Path) -> dict[str, Any]:
    """Show what is in the slots, which one is tried first, and why one is bad."""
    from runtime import slots

    _warn(store)
    return _told(store, slots.read_state(store))


@command.command()
@slot_argument
@store_option
@trust_option
@json_option
def use(slot: str, store: Path) -> dict[str, Any]:
    """Try a slot first from the next start on, be it older or bad; it is checked, and proves itself anew."""
    from runtime import slots

    return _told(store, slots.use(store, slot))


@command.command()
@slot_argument
@store_option
@json_option
def good(slot: str, store: Path) -> dict[str, Any]:
    """Say that a slot has proved itself, as a stream does after three self-tests and a minute of restored lines."""
    from runtime import slots

    return _told(store, slots.good(store, slot))


@command.command()
@slot_argument
@store_option
@click.option("--why", default="somebody said so", show_default=True, help="For the log.")
@json_option
def bad(slot: str, store: Path, why: str) -> dict[str, Any]:
    """Say that a slot is not to be tried again; the other one is, where it may be."""
    from runtime import slots

    return _told(store, slots.bad(store, slot, why))


def _warn(store: Path) -> None:
    from runtime import slots

    for doubt in slots.doubts(store):
        console.warn(doubt)


def _told(store: Path, state: State) -> dict[str, Any]:
    for name, slot in state.slots.items():
        about = "" if slot.state == "empty" else f", serial {slot.serial}"
        about += (
            f", {slot.tries} {'try' if slot.tries == 1 else 'tries'} left"
            if slot.state == "new"
            else f": {slot.why}"
            if slot.why
            else ""
        )
        console.say(f"{'*' if name == state.active else ' '} {name}  {slot.state}{about}")
    return {"store": str(store), **asdict(state)}
