"""From a model under construction to the runtime that serves it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

import torch

from lynx_sglang import calibration
from lynx_sglang.errors import LynxError
from lynx_sglang.loop.layers import MoeLayers
from lynx_sglang.loop.runtime import Runtime
from lynx_sglang.settings import Settings
from lynx_sglang.sketches import StandIns

RuntimeForm = TypeVar("RuntimeForm", bound=Runtime, covariant=True)


class Builder(ABC, Generic[RuntimeForm]):
    """Notes the MoE layers while SGLang builds the model, then makes the runtime, once."""

    def __init__(self, settings: Settings) -> None:
        self.refused_change: str | None = None  # why the last change of settings was refused
        self._settings = settings
        self._runtime: RuntimeForm | None = None
        self._configs: list[Any] = []
        self._routed: dict[int, int] = {}  # top-k of each layer's router

    @property
    def runtime(self) -> RuntimeForm | None:
        """None until ``start``."""
        return self._runtime

    @property
    def settings(self) -> Settings:
        """In force."""
        return self._settings if self._runtime is None else self._runtime.settings

    @property
    def layers(self) -> MoeLayers:
        return MoeLayers.of(self._configs, self._routed)

    def add_layer(self, config: Any) -> None:
        """Note a MoE layer's ``MoeRunnerConfig`` as SGLang builds the layer."""
        self._configs.append(config)

    def add_router(self, layer_id: int, top_k: int) -> None:
        """Note a layer's router as SGLang builds it; ``top_k`` counts fused shared experts."""
        self._routed[layer_id] = top_k

    def start(self) -> RuntimeForm:
        """The runtime, made at the first call: before the first step, and before any capture.

        Raises:
            LynxError: the model was built without a MoE layer.
            SettingError: the calibration file is of other layers or experts, or its sketches are
                of other weights.
        """
        if self._runtime is None:
            layers = self.layers
            contributions: dict[int, torch.Tensor] = {}
            stand_ins: dict[int, StandIns] = {}
            if not layers.ids:
                raise LynxError("--moe-backend lynx: the model has no MoE layer that lynx runs")
            if self._settings.calibration is not None:
                measured = calibration.load(self._settings.calibration, self._settings.policy)
                contributions = measured.contributions_of(layers.ids, layers.num_experts)
                if measured.sketches is not None:
                    stand_ins = measured.stand_ins_of(
                        self._settings.calibration, model_path(), layers.ids, layers.num_experts
                    )
            self._runtime = self.make(self._settings, layers, contributions, stand_ins)
        return self._runtime

    def apply(self, settings: Settings) -> None:
        """Put changed settings in force."""
        if self._runtime is None:
            self._settings = settings
        else:
            self._runtime.apply(settings)

    @abstractmethod
    def make(
        self,
        settings: Settings,
        layers: MoeLayers,
        contributions: Mapping[int, torch.Tensor],
        stand_ins: Mapping[int, StandIns],
    ) -> RuntimeForm:
        """Allocate the data path at full quality.

        Args:
            contributions: by layer id, float32 [E] on the CPU; see ``lynx_kernels.select``.
            stand_ins: by layer id, on the CPU; empty without sketches.
        """


def model_path() -> str:
    """Of the model that this process serves."""
    from sglang.srt.runtime_context import get_server_args

    return str(get_server_args().model_path)
