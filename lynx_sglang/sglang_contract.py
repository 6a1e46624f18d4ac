"""The table of SGLang names against the source of one SGLang: what Lynx needs and it lacks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from lynx_sglang import sglang_names
from lynx_sglang.sglang_names import ATTRIBUTES, SERVER_ARGUMENTS, Name
from lynx_sglang.sglang_source import Source

MAX_PLACES = 3  # named of those where something may have gone


def faults(source: Source, arguments: Iterable[str] = ()) -> Iterator[str]:
    """A line for each thing that Lynx relies on and this SGLang lacks.

    Args:
        arguments: fields of ``ServerArgs`` that are read beside those in the table.
    """
    lacks = sglang_names.LACKS.get(source.version, {})
    for name in sglang_names.names_of(source.version):
        if (fault := name_fault(source, name)) is not None:
            yield fault
    needed = {path: set(names) for path, names in ATTRIBUTES.items()}
    needed[SERVER_ARGUMENTS] |= set(arguments)
    for path, names in needed.items():
        if source.find(path) is None:
            yield gone(source, path)
            continue
        missing = names - set(lacks.get(path, ())) - source.attributes(path)
        yield from (f"{path}: no attribute {name}" for name in sorted(missing))


def name_fault(source: Source, name: Name) -> str | None:
    """The difference between an entry and a source of SGLang, or None."""
    if source.find(name.path) is None:
        return gone(source, name.path)
    present = source.parameters(name.path)
    missing = [each for each in name.parameters if each not in present]
    return f"{name.path}: no parameter {', '.join(missing)}" if missing else None


def gone(source: Source, path: str) -> str:
    """A line for a name that is not where it was, with the places that have its like."""
    module, _, names = path.partition(":")
    first, _, last = names.rpartition(".")
    is_class_there = bool(first) and source.find(f"{module}:{first}") is not None
    wanted = last if is_class_there or not first else first
    places = source.places_of(wanted)
    if not places or wanted.startswith("__"):
        return f"{path}: gone"
    more = len(places) - MAX_PLACES
    shown = ", ".join(places[:MAX_PLACES]) + (f" and {more} more" if more > 0 else "")
    return f"{path}: gone; {wanted} is in {shown}"


def changes(source: Source, known: Source) -> Iterator[str]:
    """A line for each name whose parameters differ from those of an SGLang that Lynx knows.

    Lynx does not rely on these parameters, but what it puts in a function's place may miss them.
    """
    paths = dict.fromkeys(name.path for name in sglang_names.names_of(source.version))
    for path in paths:
        if source.find(path) is None or known.find(path) is None:
            continue
        before, after = known.parameters(path), source.parameters(path)
        added = [f"+{name}" for name in after if name not in before]
        removed = [f"-{name}" for name in before if name not in after]
        if added or removed:
            yield f"{path}: parameters {' '.join([*added, *removed])}"
    before_args, after_args = (each.attributes(SERVER_ARGUMENTS) for each in (known, source))
    if new := sorted(after_args - before_args):
        yield f"{SERVER_ARGUMENTS}: new, served or refused by nobody yet: {' '.join(new)}"
