"""libaravis-0.8 and GObject through ctypes: the library, the types of its functions, its errors.

Every call lets go of the interpreter while it runs. Names and numbers are those of Aravis 0.8
(https://aravisproject.github.io/aravis/).
"""

import ctypes
from collections.abc import Callable
from ctypes import POINTER, byref, c_char_p, c_double, c_int, c_int64, c_size_t, c_uint, c_uint32, c_uint64, c_void_p
from functools import cache
from typing import Any

from runtime.errors import MachineError

G_TYPE_INT, G_TYPE_UINT = 6 << 2, 7 << 2
_ERROR = c_void_p
_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "arv_update_device_list": (None, []),
    "arv_get_n_devices": (c_uint, []),
    **{f"arv_get_device_{what}": (c_char_p, [c_uint]) for what in ("id", "physical_id", "address", "serial_nbr")},
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
        for what in ("vendor_name", "model_name", "device_serial_number")
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
CONTROL_LOST = ctypes.CFUNCTYPE(None, c_void_p, c_void_p)
"""Type of the function that the signal of the same name calls, with the device and the data it was given."""


class _GError(ctypes.Structure):
    _fields_ = (("domain", c_uint32), ("code", c_int), ("message", c_char_p))


class _GValue(ctypes.Structure):
    _fields_ = (("type", c_size_t), ("data", c_uint64 * 2))


class AravisError(Exception):
    """What Aravis said, in its own words."""


@cache
def functions() -> dict[str, Callable[..., Any]]:
    """The functions of Aravis and GObject, by their names; a few are missing where Aravis is old.

    Raises:
        MachineError: libaravis is not installed.
    """
    try:
        libraries = [ctypes.CDLL(f"lib{name}.so.0") for name in ("aravis-0.8", "gobject-2.0")]
        found = {}
        for name, (result, arguments) in _SIGNATURES.items():
            library = libraries[0 if name.startswith("arv_") else 1]
            # GObject is linked with GLib, and a look-up in it finds GLib's functions too.
            if name in _NOT_IN_ALL and not hasattr(library, name):
                continue
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
            found[name] = function
    except (OSError, AttributeError) as error:
        raise MachineError(
            f"GenICam cameras need libaravis-0.8: {error}", remedy="apt install libaravis-0.8-0"
        ) from error
    return found


def call(name: str, *arguments: Any) -> Any:
    """Call a function that takes a GError** at the end.

    Raises:
        AravisError: it set one.
    """
    error = POINTER(_GError)()
    result = functions()[name](*arguments, byref(error))
    if error:
        message = (error.contents.message or b"").decode(errors="replace")
        functions()["g_clear_error"](byref(error))
        raise AravisError(message or name)
    return result


def text(value: bytes | None) -> str:
    """A string of C; empty where there is none."""
    return (value or b"").decode(errors="replace")


def set_property(owner: Any, name: bytes, kind: int, setter: str, value: int) -> None:
    """Set a property of a GObject.

    Args:
        kind: its GType. setter: name of the function that puts a value of that type into a GValue.
    """
    table, held = functions(), _GValue()
    table["g_value_init"](byref(held), kind)
    table[setter](byref(held), value)
    table["g_object_set_property"](owner, name, byref(held))
    table["g_value_unset"](byref(held))
