"""The errors that Lynx raises.

LynxError
├── SettingError (also ValueError): a flag, variable or file entry is wrong
├── UnsupportedError (also ValueError): a valid setting that this server cannot honour
└── DivergedError (also RuntimeError): ranks of one replica do not run the same experts
"""

from __future__ import annotations

import reprlib

REPR = reprlib.Repr()
REPR.maxstring = REPR.maxother = 120


class LynxError(Exception):
    """Base of every error that Lynx raises on purpose."""


class SettingError(LynxError, ValueError):
    """A setting has a value outside its range; the message names setting, range and value."""


class UnsupportedError(LynxError, ValueError):
    """The model or another SGLang option rules Lynx out; the message says which and what to do."""


class DivergedError(LynxError, RuntimeError):
    """A rank is set otherwise, or has run other experts, than rank 0; the message says which."""


def short(value: object) -> str:
    """``repr`` of a wrong value, whatever it is: a few items of a few levels, on one line."""
    return REPR.repr(value)[:200]
