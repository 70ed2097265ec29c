"""Cameras by Aravis: as much of it as a source of lines needs, typed.

Every call lets go of the interpreter while it runs. Names and numbers are those of Aravis 0.8
(https://aravisproject.github.io/aravis/).
"""

import ctypes
import threading
from contextlib import suppress
from ctypes import POINTER, byref, c_char_p, c_int, c_uint
from dataclasses import dataclass
from typing import Any

from runtime.sources.camera.aravis_library import CONTROL_LOST, AravisError, call, functions, text
from runtime.sources.camera.aravis_stream import Stream

_RANGE_CHECK = 1
"""ARV_RANGE_CHECK_POLICY_ENABLE."""
_NEVER = 0
"""ARV_GV_PACKET_SIZE_ADJUSTMENT_NEVER."""
_CONTINUOUS = 0
"""ARV_ACQUISITION_MODE_CONTINUOUS."""


class NotFoundError(AravisError):
    """No camera of that name answers."""


@dataclass(frozen=True)
class Device:
    """A camera that answered the discovery; `physical_id` is the MAC of a GigE Vision camera."""

    id: str
    physical_id: str
    address: str
    serial: str

    def __str__(self) -> str:
        return f"{self.id} ({', '.join(filter(None, (self.address, self.physical_id, self.serial)))})"

    def answers_to(self, name: str) -> bool:
        """Whether `name` is its id, address, MAC or serial number."""
        names = {self.id, self.physical_id, self.address, self.serial}
        return name.lower() in {known.lower() for known in names if known}


_listing = threading.Lock()


def devices() -> tuple[Device, ...]:
    """Cameras on all network interfaces and USB; takes up to a second or two.

    Raises:
        MachineError: libaravis is not installed.
    """
    arv = functions()
    kinds = ("id", "physical_id", "address", "serial_nbr")
    with _listing:
        arv["arv_update_device_list"]()
        return tuple(
            Device(*(text(arv[f"arv_get_device_{kind}"](index)) for kind in kinds))
            for index in range(arv["arv_get_n_devices"]())
        )


class Camera:
    """An open camera. Its methods raise AravisError where the camera or the line to it fails.

    Args:
        name: Aravis id, or an IP address, which may be in another network. NotFoundError where nothing answers.

    Attributes:
        lost: set, from a thread of Aravis, when the camera no longer answers or somebody else controls it.
    """

    def __init__(self, name: str) -> None:
        self.lost = threading.Event()
        try:
            self._pointer = call("arv_camera_new", name.encode())
        except AravisError as error:
            raise NotFoundError(*error.args) from error
        if not self._pointer:
            raise NotFoundError(f"{name} cannot be opened")
        arv = functions()
        self._device = arv["arv_camera_get_device"](self._pointer)
        # Aravis calls it from its heartbeat's thread, and for the last time before `close` returns.
        self._on_lost = CONTROL_LOST(lambda device, data: self.lost.set())
        self._handler = arv["g_signal_connect_data"](self._device, b"control-lost", self._on_lost, None, None, 0)
        arv["arv_camera_set_range_check_policy"](self._pointer, _RANGE_CHECK)
        self.gige = bool(arv["arv_camera_is_gv_device"](self._pointer))

    def close(self) -> None:
        if self._pointer:
            functions()["g_signal_handler_disconnect"](self._device, self._handler)
            functions()["g_object_unref"](self._pointer)
            self._pointer = None

    def _ask(self, name: str, *arguments: Any) -> Any:
        return call(f"arv_camera_{name}", self._pointer, *arguments)

    @property
    def controlled(self) -> bool:
        """Whether this process may write to it; always for USB."""
        return not self.gige or bool(functions()["arv_gv_device_is_controller"](self._device))

    def describe(self) -> dict[str, str]:
        """vendor, model, serial; what the camera does not tell is left out."""
        found = {}
        for key, name in (("vendor", "vendor_name"), ("model", "model_name"), ("serial", "device_serial_number")):
            with suppress(AravisError):
                found[key] = text(self._ask(f"get_{name}"))
        return {key: value for key, value in found.items() if value}

    def start(self) -> None:
        self._ask("set_acquisition_mode", _CONTINUOUS)
        self._ask("start_acquisition")

    def stop(self) -> None:
        self._ask("stop_acquisition")

    def size(self) -> tuple[int, int]:
        """Height and width of an image, in pixels."""
        x, y, width, height = (c_int() for _ in range(4))
        self._ask("get_region", byref(x), byref(y), byref(width), byref(height))
        return height.value, width.value

    def payload(self) -> int:
        """Bytes of a buffer."""
        return int(self._ask("get_payload"))

    def pixel_format(self) -> tuple[int, str]:
        """PFNC value and the camera's name of it."""
        return int(self._ask("get_pixel_format")), text(self._ask("get_pixel_format_as_string"))

    def pixel_formats(self) -> tuple[str, ...]:
        count = c_uint()
        array = self._ask("dup_available_pixel_formats_as_strings", byref(count))
        try:
            return tuple(text(name) for name in ctypes.cast(array, POINTER(c_char_p))[: count.value])
        finally:
            functions()["g_free"](array)

    def set_pixel_format(self, name: str) -> None:
        self._ask("set_pixel_format_from_string", name.encode())

    def frame_rate(self) -> float:
        return float(self._ask("get_frame_rate"))

    def set_frame_rate(self, hertz: float) -> None:
        self._ask("set_frame_rate", hertz)

    def exposure_us(self) -> float:
        return float(self._ask("get_exposure_time"))

    def set_exposure_us(self, microseconds: float) -> None:
        self._ask("set_exposure_time", microseconds)

    def has(self, feature: str) -> bool:
        """Whether there is such a feature; not, where the camera does not say."""
        with suppress(AravisError):
            return bool(self._ask("is_feature_available", feature.encode()))
        return False

    def get_float(self, feature: str) -> float:
        return float(self._ask("get_float", feature.encode()))

    def get(self, feature: str, like: bool | int | float | str) -> bool | int | float | str:
        """Value of a feature, of the type of `like`."""
        name = feature.encode()
        if isinstance(like, bool):
            return bool(self._ask("get_boolean", name))
        if isinstance(like, int):
            return int(self._ask("get_integer", name))
        if isinstance(like, float):
            return self.get_float(feature)
        return text(self._ask("get_string", name))

    def set(self, feature: str, value: bool | int | float | str) -> None:
        """Set a feature of exactly this type; text goes to strings and enumerations."""
        name = feature.encode()
        if isinstance(value, bool):
            self._ask("set_boolean", name, int(value))
        elif isinstance(value, int):
            self._ask("set_integer", name, value)
        elif isinstance(value, float):
            self._ask("set_float", name, value)
        else:
            self._ask("set_string", name, value.encode())

    def negotiate_packet_size(self) -> int:
        """Let the camera send test packets and take the largest size that came through."""
        return int(self._ask("gv_auto_packet_size"))

    def set_packet_size(self, size: int) -> None:
        """Bytes of a GigE Vision packet, IP header included; not changed by anybody afterwards."""
        functions()["arv_camera_gv_set_packet_size_adjustment"](self._pointer, _NEVER)
        self._ask("gv_set_packet_size", size)

    def stream(self) -> Stream:
        return Stream(self._ask("create_stream", None, None))
