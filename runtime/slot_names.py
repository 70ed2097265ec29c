"""The two slots of bundles by name, for options that are told before anything of `runtime.slots` is needed."""

NAMES = ("a", "b")
