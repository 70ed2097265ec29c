"""The stream of a camera by Aravis: its buffers, and what is known of a filled one."""

from ctypes import byref, c_int, c_size_t
from dataclasses import dataclass
from typing import Any

from runtime.sources.camera.aravis_library import G_TYPE_INT, G_TYPE_UINT, AravisError, functions, set_property

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
_NEVER = 0
"""ARV_GV_STREAM_PACKET_RESEND_NEVER."""
_NO_ID = (1 << 64) - 1
"""Aravis writes a frame id only when the image's first packet comes; this is what stays where that was lost."""


class Stream:
    """Buffers of a camera: empty ones are pushed, filled ones popped. One thread pops."""

    def __init__(self, pointer: Any) -> None:
        if not pointer:
            raise AravisError("the stream cannot be set up")
        self._pointer = pointer
        arv = functions()
        self._push, self._try_pop = arv["arv_stream_push_buffer"], arv["arv_stream_try_pop_buffer"]
        self._wait_pop = arv["arv_stream_timeout_pop_buffer"]
        self._set_id = arv.get("arv_buffer_set_frame_id")

    def close(self) -> None:
        """Ends its thread and gives back all buffers that are in it."""
        if self._pointer:
            functions()["g_object_unref"](self._pointer)
            self._pointer = None

    def no_resend(self) -> None:
        """Ask for no packet twice (GigE Vision)."""
        kind = functions()["arv_gv_stream_packet_resend_get_type"]()
        set_property(self._pointer, b"packet-resend", kind, "g_value_set_enum", _NEVER)

    def retain(self, seconds: float) -> None:
        """How long a frame that lacks packets is waited for (GigE Vision)."""
        set_property(self._pointer, b"frame-retention", G_TYPE_UINT, "g_value_set_uint", int(seconds * 1e6))

    def socket_buffer(self, size: int) -> None:
        """Bytes that the system may hold back for it, as far as the system lets (net.core.rmem_max; GigE Vision).

        It matters where packets come through a plain socket: to a program that may not open packet sockets.
        """
        set_property(self._pointer, b"socket-buffer-size", G_TYPE_INT, "g_value_set_int", size)

    def push_memory(self, address: int, size: int) -> None:
        """Add a buffer of memory that is the caller's and outlives the stream."""
        self.push(functions()["arv_buffer_new"](size, address))

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
        functions()["arv_stream_get_n_buffers"](self._pointer, byref(waiting), byref(filled))
        return waiting.value, filled.value

    def count(self, name: str) -> int:
        """A statistic by its name, for example `n_resent_packets`; 0 where this stream has none of that name."""
        return int(functions()["arv_stream_get_info_uint64_by_name"](self._pointer, name.encode()))


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
    arv, received = functions(), c_size_t()
    data = arv["arv_buffer_get_data"](buffer, byref(received))
    status, frame_id = arv["arv_buffer_get_status"](buffer), arv["arv_buffer_get_frame_id"](buffer)
    if status != SUCCESS and (frame_id == _NO_ID or "arv_buffer_set_frame_id" not in arv):
        frame_id = None
    return Filled(status, frame_id, arv["arv_buffer_get_system_timestamp"](buffer), data or 0, received.value)


def image_of(buffer: Any) -> tuple[int, int, int, int]:
    """Height, width, PFNC value and bytes between the rows of the image in a whole buffer."""
    arv, columns, rows = functions(), c_int(), c_int()
    if "arv_buffer_get_image_padding" in arv:
        arv["arv_buffer_get_image_padding"](buffer, byref(columns), byref(rows))
    return (
        arv["arv_buffer_get_image_height"](buffer),
        arv["arv_buffer_get_image_width"](buffer),
        arv["arv_buffer_get_image_pixel_format"](buffer),
        columns.value,
    )
