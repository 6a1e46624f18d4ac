"""Every generated table of the documentation, by the name that a page asks for."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from scripts.docs import features, modules, reference, results

TABLES: Mapping[str, Callable[[], str]] = {
    "settings": reference.settings_table,
    "live": reference.live_table,
    "metrics": reference.metrics_table,
    "policies": reference.policies_table,
    "commands": reference.commands_table,
    "names": reference.names_table,
    "versions": reference.versions_table,
    "tested-versions": reference.tested_versions_table,
    "features": features.features_table,
    "shadow-features": features.shadow_features_table,
    "served-models": features.served_models_table,
    "refused-models": features.refused_models_table,
    "runners": features.runners_table,
    "modules": modules.modules_table,
    "demo": results.demo_table,
    "decode": results.decode_table,
    "shadow": results.shadow_table,
    "sketches": results.sketches_table,
}
