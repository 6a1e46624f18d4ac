"""The errors that Lynx raises.

LynxError
├── SettingError (also ValueError): a flag, variable or file entry has a wrong value
├── UnsupportedError (also ValueError): a valid setting that this server cannot honour
└── DivergedError (also RuntimeError): the ranks of one replica run different experts
"""

from __future__ import annotations

import reprlib

REPR = reprlib.Repr()
REPR.maxstring = REPR.maxother = 120


class LynxError(Exception):
    """Base of Lynx's own errors."""


class SettingError(LynxError, ValueError):
    """A setting has a value outside its range; the message names setting, range and value."""


class UnsupportedError(LynxError, ValueError):
    """Lynx does not support the model or an SGLang option; the message names it and a remedy."""


class DivergedError(LynxError, RuntimeError):
    """Settings or experts of a rank differ from rank 0's; the message gives both."""


def short(value: object) -> str:
    """``repr`` of a wrong value, whatever it is: a few items of a few levels, on one line."""
    return REPR.repr(value)[:200]
