"""The device that PyTorch computes on."""

import torch

from runtime.errors import InputError, MachineError


def usable(name: str, key: str = "device") -> torch.device:
    """The device of PyTorch's name (`cpu`, `cuda`, `cuda:1`), tried; `key` is what asked for it.

    A GPU computes float32 exactly from then on: TensorFloat-32 would round products to ten bits without a word.

    Raises:
        InputError: another kind of device.
        MachineError: this machine cannot use it.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise InputError("no such device", key=key, value=name, remedy="choose cpu or cuda")
    try:
        torch.ones(1, device=device).sum().item()
    except (RuntimeError, AssertionError) as error:
        raise MachineError(
            "PyTorch cannot use the device here", key=key, value=name, remedy="choose cpu, or mend its driver"
        ) from error
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    return device
