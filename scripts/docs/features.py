"""The table of SGLang's features beside Lynx, made from the refusals themselves."""

from __future__ import annotations

from lynx_sglang.integration.features import COUNTED_TWICE, rows
from lynx_sglang.integration.formats import ROUTING_RUNNERS
from lynx_sglang.integration.model_files import MODEL_FILES, Way
from scripts.docs.markdown import table

REMOVE = "Remove it."  # the remedy of most


def features_table() -> str:
    """A row per feature; a server that asks for a refused one stops with this reason."""
    lines = []
    for row in rows():
        flags = ", ".join(f"`{flag}`" for flag in row.flags)
        reason = row.cpu or row.cuda
        if row.cpu and row.cuda and row.cpu != row.cuda:
            reason = f"CPU: {row.cpu}. GPU: {row.cuda}"
        why = "" if reason is None else f"{reason[:1].upper()}{reason[1:]}."
        if reason is not None and row.remedy != REMOVE:
            why += f" {row.remedy}"
        lines.append((f"{row.name}<br>{flags}", verdict(row.cpu), verdict(row.cuda), why))
    return table(("Feature", "CPU", "GPU", "Reason"), lines)


def shadow_features_table() -> str:
    """SGLang's features that are refused beside shadow passes."""
    lines = [
        (
            f"{each.name}<br>`{each.flag}`",
            verdict(each.cpu),
            verdict(each.cuda),
            f"{str(each.cuda)[:1].upper()}{str(each.cuda)[1:]}.",
        )
        for each in COUNTED_TWICE
    ]
    return table(("Feature", "CPU", "GPU", "Reason"), lines)


def verdict(reason: str | None) -> str:
    return "**served**" if reason is None else "refused"


def runners_table() -> str:
    """SGLang's runners that no selection can stand before, and one to name instead."""
    lines = [(f"`{runner}`", f"`{other}`") for runner, other in ROUTING_RUNNERS.items()]
    return table(("`--moe-runner-backend`, refused", "Name instead"), lines)


def served_models_table() -> str:
    """SGLang's model files whose layers are served, by the way they are."""
    ways = [way for way in Way if way is not Way.REFUSED]
    lines = []
    for way in ways:
        files = [file.path.removeprefix("models/").removesuffix(".py") for file in MODEL_FILES
                 if file.way is way]  # fmt: skip
        lines.append((way.value, ", ".join(f"`{file}`" for file in files)))
    return table(("Served by", "SGLang's model files"), lines)


def refused_models_table() -> str:
    """Architectures that are refused, with the reason."""
    lines = [
        (", ".join(f"`{name}`" for name in file.architectures), f"{file.reason}.")
        for file in MODEL_FILES
        if file.way is Way.REFUSED
    ]
    return table(("Refused architecture", "Reason"), lines)
