"""What subcommands share: the remedy for what is not installed."""

from __future__ import annotations

import sys

import pytest

from deploy.options import ground
from runtime.errors import MachineError


@pytest.mark.parametrize(
    ("module", "needs", "extra", "other"),
    [
        ("export.tensorrt.build", "onnx", "damp-deploy[tensorrt]", "export"),
        ("export.tensorrt.lint", "onnx", "[rtx]", "export"),
        ("export.onnx", "onnx", "damp-deploy[export]", "tensorrt"),
        ("torch", "torch", "damp-deploy[export]", "tensorrt"),
    ],
)
def test_the_remedy_brings_no_more_than_is_needed(
    monkeypatch: pytest.MonkeyPatch, module: str, needs: str, extra: str, other: str
) -> None:
    for name in [name for name in sys.modules if name == module or name.startswith("export.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, needs, None)
    with pytest.raises(MachineError, match=f"{needs} is not installed") as caught:
        ground(module)
    assert extra in str(caught.value.remedy) and other not in str(caught.value.remedy)


def test_targets_need_nothing() -> None:
    assert ground("export.targets").BUILT_IN
