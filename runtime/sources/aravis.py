"""Cameras by Aravis: as much of libaravis-0.8 and GObject as a source of lines needs, typed, through ctypes.

Every call lets go of the interpreter while it runs. Names and numbers are those of Aravis 0.8
(https://aravisproject.github.io/aravis/).
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from contextlib import suppress
from ctypes import POINTER, byref, c_char_p, c_double, c_int, c_int64, c_size_t, c_uint, c_uint32, c_uint64, c_void_p
from dataclasses import dataclass
from functools import cache
from typing import Any

from runtime.errors import MachineError

SUCCESS = 0
STATUS = {
    -1: "unknown",
    0: "success",
    1: "cleared",
    2: "timeout",
    3: "missing packets",
    4: "wrong packet id",
    5: "size mismatch",
    6: "not filled",
    7: "aborted",
    8: "payload not supported",
}
"""ArvBufferStatus."""

_RANGE_CHECK = 1
"""ARV_RANGE_CHECK_POLICY_ENABLE."""
_NEVER = 0
"""ARV_GV_PACKET_SIZE_ADJUSTMENT_NEVER and ARV_GV_STREAM_PACKET_RESEND_NEVER."""
_CONTINUOUS = 0
"""ARV_ACQUISITION_MODE_CONTINUOUS."""
_G_TYPE_INT, _G_TYPE_UINT = 6 << 2, 7 << 2

_ERROR = c_void_p
_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "arv_update_device_list": (None, []),
    "arv_get_n_devices": (c_uint, []),
    **{
        f"arv_get_device_{what}": (c_char_p, [c_uint])
        for what in ("id", "physical_id", "address", "vendor", "model", "serial_nbr", "protocol")
    },
    "arv_camera_new": (c_void_p, [c_char_p, _ERROR]),
    "arv_camera_get_device": (c_void_p, [c_void_p]),
    "arv_camera_create_stream": (c_void_p, [c_void_p, c_void_p, c_void_p, _ERROR]),
    "arv_camera_start_acquisition": (None, [c_void_p, _ERROR]),
    "arv_camera_stop_acquisition": (None, [c_void_p, _ERROR]),
    "arv_camera_set_acquisition_mode": (None, [c_void_p, c_int, _ERROR]),
    "arv_camera_set_range_check_policy": (None, [c_void_p, c_int]),
    "arv_camera_get_region": (None, [c_void_p, *[POINTER(c_int)] * 4, _ERROR]),
    "arv_camera_get_payload": (c_uint, [c_void_p, _ERROR]),
    "arv_camera_get_pixel_format": (c_uint32, [c_void_p, _ERROR]),
    "arv_camera_get_pixel_format_as_string": (c_char_p, [c_void_p, _ERROR]),
    "arv_camera_set_pixel_format_from_string": (None, [c_void_p, c_char_p, _ERROR]),
    "arv_camera_dup_available_pixel_formats_as_strings": (c_void_p, [c_void_p, POINTER(c_uint), _ERROR]),
    "arv_camera_is_feature_available": (c_int, [c_void_p, c_char_p, _ERROR]),
    "arv_camera_is_gv_device": (c_int, [c_void_p]),
    "arv_camera_gv_auto_packet_size": (c_uint, [c_void_p, _ERROR]),
    "arv_camera_gv_get_packet_size": (c_uint, [c_void_p, _ERROR]),
    "arv_camera_gv_set_packet_size": (None, [c_void_p, c_int, _ERROR]),
    "arv_camera_gv_set_packet_size_adjustment": (None, [c_void_p, c_int]),
    **{
        f"arv_camera_{verb}": (result, [c_void_p, *more, _ERROR])
        for what, kind in (("frame_rate", c_double), ("exposure_time", c_double))
        for verb, result, more in ((f"get_{what}", kind, []), (f"set_{what}", None, [kind]))
    },
    **{
        f"arv_camera_{verb}": (result, [c_void_p, c_char_p, *more, _ERROR])
        for what, kind in (("boolean", c_int), ("integer", c_int64), ("float", c_double), ("string", c_char_p))
        for verb, result, more in ((f"get_{what}", kind, []), (f"set_{what}", None, [kind]))
    },
    **{
        f"arv_camera_get_{what}": (c_char_p, [c_void_p, _ERROR])
        for what in ("vendor_name", "model_name", "device_serial_number", "device_id")
    },
    "arv_gv_device_is_controller": (c_int, [c_void_p]),
    "arv_gv_stream_packet_resend_get_type": (c_size_t, []),
    "arv_stream_push_buffer": (None, [c_void_p, c_void_p]),
    "arv_stream_timeout_pop_buffer": (c_void_p, [c_void_p, c_uint64]),
    "arv_stream_try_pop_buffer": (c_void_p, [c_void_p]),
    "arv_stream_get_n_buffers": (None, [c_void_p, POINTER(c_int), POINTER(c_int)]),
    "arv_stream_get_info_uint64_by_name": (c_uint64, [c_void_p, c_char_p]),
    "arv_buffer_new": (c_void_p, [c_size_t, c_void_p]),
    "arv_buffer_get_status": (c_int, [c_void_p]),
    "arv_buffer_get_frame_id": (c_uint64, [c_void_p]),
    "arv_buffer_set_frame_id": (None, [c_void_p, c_uint64]),
    "arv_buffer_get_system_timestamp": (c_uint64, [c_void_p]),
    "arv_buffer_get_data": (c_void_p, [c_void_p, POINTER(c_size_t)]),
    "arv_buffer_get_image_pixel_format": (c_uint32, [c_void_p]),
    "arv_buffer_get_image_width": (c_int, [c_void_p]),
    "arv_buffer_get_image_height": (c_int, [c_void_p]),
    "arv_buffer_get_image_padding": (None, [c_void_p, POINTER(c_int), POINTER(c_int)]),
    "g_object_unref": (None, [c_void_p]),
    "g_object_set_property": (None, [c_void_p, c_char_p, c_void_p]),
    "g_value_init": (c_void_p, [c_void_p, c_size_t]),
    "g_value_set_enum": (None, [c_void_p, c_int]),
    "g_value_set_int": (None, [c_void_p, c_int]),
    "g_value_set_uint": (None, [c_void_p, c_uint]),
    "g_value_unset": (None, [c_void_p]),
    "g_signal_connect_data": (c_size_t, [c_void_p, c_char_p, c_void_p, c_void_p, c_void_p, c_int]),
    "g_signal_handler_disconnect": (None, [c_void_p, c_size_t]),
    "g_clear_error": (None, [c_void_p]),
    "g_free": (None, [c_void_p]),
}
_NOT_IN_ALL = frozenset({"arv_buffer_get_image_padding", "arv_buffer_set_frame_id"})
"""Not to be counted on in Aravis 0.8.20, which Ubuntu 22.04 has."""
_NO_ID = (1 << 64) - 1
"""Aravis writes a frame id only when the image's first packet comes; this is what stays where that was lost."""
_CONTROL_LOST = ctypes.CFUNCTYPE(None, c_void_p, c_void_p)


class _GError(ctypes.Structure):
    _fields_ = (("domain", c_uint32), ("code", c_int), ("message", c_char_p))


class _GValue(ctypes.Structure):
    _fields_ = (("type", c_size_t), ("data", c_uint64 * 2))


class AravisError(Exception):
    """What Aravis said, in its own words."""


class NotFoundError(AravisError):
    """No camera of that name answers."""


@cache
def _functions() -> dict[str, Callable[..., Any]]:
    try:
        libraries = [ctypes.CDLL(f"lib{name}.so.0") for name in ("aravis-0.8", "gobject-2.0")]
        functions = {}
        for name, (result, arguments) in _SIGNATURES.items():
            library = libraries[0 if name.startswith("arv_") else 1]
            # GObject is linked with GLib, and a look-up in it finds GLib's functions too.
            if name in _NOT_IN_ALL and not hasattr(library, name):
                continue
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
            functions[name] = function
    except (OSError, AttributeError) as error:
        raise MachineError(
            f"GenICam cameras need libaravis-0.8: {error}", remedy="apt install libaravis-0.8-0"
        ) from error
    return functions


def _call(name: str, *arguments: Any) -> Any:
    """Call a function that takes a GError** at the end.

    Raises:
        AravisError: it set one.
    """
    error = POINTER(_GError)()
    result = _functions()[name](*arguments, byref(error))
    if error:
        message = (error.contents.message or b"").decode(errors="replace")
        _functions()["g_clear_error"](byref(error))
        raise AravisError(message or name)
    return result


def _text(value: bytes | None) -> str:
    return (value or b"").decode(errors="replace")


@dataclass(frozen=True)
class Device:
    """A camera that answered the discovery; `physical_id` is the MAC of a GigE Vision camera."""

    id: str
    physical_id: str
    address: str
    vendor: str
    model: str
    serial: str
    protocol: str

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
    arv = _functions()
    kinds = ("id", "physical_id", "address", "vendor", "model", "serial_nbr", "protocol")
    with _listing:
        arv["arv_update_device_list"]()
        return tuple(
            Device(*(_text(arv[f"arv_get_device_{kind}"](index)) for kind in kinds))
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
            self._pointer = _call("arv_camera_new", name.encode())
        except AravisError as error:
            raise NotFoundError(*error.args) from error
        if not self._pointer:
            raise NotFoundError(f"{name} cannot be opened")
        arv = _functions()
        self._device = arv["arv_camera_get_device"](self._pointer)
        # Aravis calls it from its heartbeat's thread, and for the last time before `close` returns.
        self._on_lost = _CONTROL_LOST(lambda device, data: self.lost.set())
        self._handler = arv["g_signal_connect_data"](self._device, b"control-lost", self._on_lost, None, None, 0)
        arv["arv_camera_set_range_check_policy"](self._pointer, _RANGE_CHECK)
        self.gige = bool(arv["arv_camera_is_gv_device"](self._pointer))

    def close(self) -> None:
        if self._pointer:
            _functions()["g_signal_handler_disconnect"](self._device, self._handler)
            _functions()["g_object_unref"](self._pointer)
            self._pointer = None

    def _ask(self, name: str, *arguments: Any) -> Any:
        return _call(f"arv_camera_{name}", self._pointer, *arguments)

    @property
    def controlled(self) -> bool:
        """Whether this process may write to it; always for USB."""
        return not self.gige or bool(_functions()["arv_gv_device_is_controller"](self._device))

    def describe(self) -> dict[str, str]:
        """vendor, model, serial; what the camera does not tell is left out."""
        found = {}
        for key, name in (("vendor", "vendor_name"), ("model", "model_name"), ("serial", "device_serial_number")):
            with suppress(AravisError):
                found[key] = _text(self._ask(f"get_{name}"))
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
        return int(self._ask("get_pixel_format")), _text(self._ask("get_pixel_format_as_string"))

    def pixel_formats(self) -> tuple[str, ...]:
        count = c_uint()
        array = self._ask("dup_available_pixel_formats_as_strings", byref(count))
        try:
            return tuple(_text(name) for name in ctypes.cast(array, POINTER(c_char_p))[: count.value])
        finally:
            _functions()["g_free"](array)

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
        return bool(self._ask("is_feature_available", feature.encode()))

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
        return _text(self._ask("get_string", name))

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

    def packet_size(self) -> int:
        return int(self._ask("gv_get_packet_size"))

    def negotiate_packet_size(self) -> int:
        """Let the camera send test packets and take the largest size that came through."""
        return int(self._ask("gv_auto_packet_size"))

    def set_packet_size(self, size: int) -> None:
        """Bytes of a GigE Vision packet, IP header included; not changed by anybody afterwards."""
        _functions()["arv_camera_gv_set_packet_size_adjustment"](self._pointer, _NEVER)
        self._ask("gv_set_packet_size", size)

    def stream(self) -> Stream:
        return Stream(self._ask("create_stream", None, None))


class Stream:
    """Buffers of a camera: empty ones are pushed, filled ones popped. One thread pops."""

    def __init__(self, pointer: Any) -> None:
        if not pointer:
            raise AravisError("the stream cannot be set up")
        self._pointer = pointer
        arv = _functions()
        self._push, self._try_pop = arv["arv_stream_push_buffer"], arv["arv_stream_try_pop_buffer"]
        self._wait_pop = arv["arv_stream_timeout_pop_buffer"]
        self._set_id = arv.get("arv_buffer_set_frame_id")

    def close(self) -> None:
        """Ends its thread and gives back all buffers that are in it."""
        if self._pointer:
            _functions()["g_object_unref"](self._pointer)
            self._pointer = None

    def no_resend(self) -> None:
        """Ask for no packet twice (GigE Vision)."""
        kind = _functions()["arv_gv_stream_packet_resend_get_type"]()
        self._set(b"packet-resend", kind, "g_value_set_enum", _NEVER)

    def retain(self, seconds: float) -> None:
        """How long a frame that lacks packets is waited for (GigE Vision)."""
        self._set(b"frame-retention", _G_TYPE_UINT, "g_value_set_uint", int(seconds * 1e6))

    def socket_buffer(self, size: int) -> None:
        """Bytes that the system may hold back for it, as far as the system lets (net.core.rmem_max; GigE Vision).

        It matters where packets come through a plain socket: to a program that may not open packet sockets.
        """
        self._set(b"socket-buffer-size", _G_TYPE_INT, "g_value_set_int", size)

    def _set(self, name: bytes, kind: int, setter: str, value: int) -> None:
        arv, held = _functions(), _GValue()
        arv["g_value_init"](byref(held), kind)
        arv[setter](byref(held), value)
        arv["g_object_set_property"](self._pointer, name, byref(held))
        arv["g_value_unset"](byref(held))

    def push_memory(self, address: int, size: int) -> None:
        """Add a buffer of memory that is the caller's and outlives the stream."""
        self.push(_functions()["arv_buffer_new"](size, address))

    def push(self, buffer: Any) -> None:
        if self._set_id is not None:
            self._set_id(buffer, _NO_ID)
        self._push(self._pointer, buffer)

    def pop(self, seconds: float) -> Any:
        """A filled buffer, or None; it may be None before the time is over."""
        if seconds <= 0:
            return self._try_pop(self._pointer)
        return self._wait_pop(self._pointer, int(seconds * 1e6))

    def levels(self) -> tuple[int, int]:
        """Buffers that wait to be filled and to be popped."""
        waiting, filled = c_int(), c_int()
        _functions()["arv_stream_get_n_buffers"](self._pointer, byref(waiting), byref(filled))
        return waiting.value, filled.value

    def count(self, name: str) -> int:
        """A statistic by its name, for example `n_resent_packets`; 0 where this stream has none of that name."""
        return int(_functions()["arv_stream_get_info_uint64_by_name"](self._pointer, name.encode()))


@dataclass(frozen=True)
class Filled:
    """What is known of a popped buffer.

    Attributes:
        status: `SUCCESS` or another of `STATUS`.
        frame_id: as the camera sent it; None where its first packet was lost.
        utc_ns: when its first packet came, by this computer's clock.
        data: address of its memory.
        received: bytes that came.
    """

    status: int
    frame_id: int | None
    utc_ns: int
    data: int
    received: int


def filled(buffer: Any) -> Filled:
    arv, received = _functions(), c_size_t()
    data = arv["arv_buffer_get_data"](buffer, byref(received))
    status, frame_id = arv["arv_buffer_get_status"](buffer), arv["arv_buffer_get_frame_id"](buffer)
    if status != SUCCESS and (frame_id == _NO_ID or "arv_buffer_set_frame_id" not in arv):
        frame_id = None
    return Filled(status, frame_id, arv["arv_buffer_get_system_timestamp"](buffer), data or 0, received.value)


def image_of(buffer: Any) -> tuple[int, int, int, int]:
    """Height, width, PFNC value and bytes between the rows of the image in a whole buffer."""
    arv, columns, rows = _functions(), c_int(), c_int()
    if "arv_buffer_get_image_padding" in arv:
        arv["arv_buffer_get_image_padding"](buffer, byref(columns), byref(rows))
    return (
        arv["arv_buffer_get_image_height"](buffer),
        arv["arv_buffer_get_image_width"](buffer),
        arv["arv_buffer_get_image_pixel_format"](buffer),
        columns.value,
    )
