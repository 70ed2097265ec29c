"""Tests of the flight install: base, an engine and pytest are enough for them.

`FLIGHT_BUNDLES` names a folder that `python -m tests.flight_bundles` filled; without it the ground builds the smallest
of them, and the packaged models are left out. They run on emulated computers too, where a second takes a minute.
"""
