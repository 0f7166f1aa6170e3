"""Templates of PEFT's configs: `RF` and the name of the class in `peft`."""

import importlib
from collections.abc import Mapping
from typing import ClassVar

from rapidfireai.automl.argument_types import Argument, arguments_of
from rapidfireai.automl.knobs import fresh
from rapidfireai.automl.template import Template
from rapidfireai.training.config import PeftSpec


class PeftTemplate(Template):
    """Arguments of a PEFT config, each a value or a knob; what is not set has PEFT's default."""

    method: ClassVar[str]
    """Name of the class in `peft`."""

    def __init_subclass__(cls, *, method: str | None = None) -> None:
        super().__init_subclass__()
        if method is not None:
            cls.method = method

    def known_arguments(self) -> Mapping[str, Argument]:
        """Returns every argument of the PEFT config."""
        return arguments_of(getattr(importlib.import_module("peft"), self.method))

    def peft_spec(self) -> PeftSpec:
        """Returns what the template says, for one run."""
        return PeftSpec(method=self.method, arguments=fresh(self.arguments))


class RFLoraConfig(PeftTemplate, method="LoraConfig"):
    """Template of `peft.LoraConfig`."""


class RFAdaLoraConfig(PeftTemplate, method="AdaLoraConfig"):
    """Template of `peft.AdaLoraConfig`."""


class RFAdamssConfig(PeftTemplate, method="AdamssConfig"):
    """Template of `peft.AdamssConfig`."""


class RFAdaptionPromptConfig(PeftTemplate, method="AdaptionPromptConfig"):
    """Template of `peft.AdaptionPromptConfig`."""


class RFBOFTConfig(PeftTemplate, method="BOFTConfig"):
    """Template of `peft.BOFTConfig`."""


class RFBeftConfig(PeftTemplate, method="BeftConfig"):
    """Template of `peft.BeftConfig`."""


class RFC3AConfig(PeftTemplate, method="C3AConfig"):
    """Template of `peft.C3AConfig`."""


class RFCPTConfig(PeftTemplate, method="CPTConfig"):
    """Template of `peft.CPTConfig`."""


class RFCartridgeConfig(PeftTemplate, method="CartridgeConfig"):
    """Template of `peft.CartridgeConfig`."""


class RFDeftConfig(PeftTemplate, method="DeftConfig"):
    """Template of `peft.DeftConfig`."""


class RFDeloraConfig(PeftTemplate, method="DeloraConfig"):
    """Template of `peft.DeloraConfig`."""


class RFFourierFTConfig(PeftTemplate, method="FourierFTConfig"):
    """Template of `peft.FourierFTConfig`."""


class RFFrodConfig(PeftTemplate, method="FrodConfig"):
    """Template of `peft.FrodConfig`."""


class RFGloraConfig(PeftTemplate, method="GloraConfig"):
    """Template of `peft.GloraConfig`."""


class RFGraloraConfig(PeftTemplate, method="GraloraConfig"):
    """Template of `peft.GraloraConfig`."""


class RFHRAConfig(PeftTemplate, method="HRAConfig"):
    """Template of `peft.HRAConfig`."""


class RFHiraConfig(PeftTemplate, method="HiraConfig"):
    """Template of `peft.HiraConfig`."""


class RFIA3Config(PeftTemplate, method="IA3Config"):
    """Template of `peft.IA3Config`."""


class RFLNTuningConfig(PeftTemplate, method="LNTuningConfig"):
    """Template of `peft.LNTuningConfig`."""


class RFLilyConfig(PeftTemplate, method="LilyConfig"):
    """Template of `peft.LilyConfig`."""


class RFLoHaConfig(PeftTemplate, method="LoHaConfig"):
    """Template of `peft.LoHaConfig`."""


class RFLoKrConfig(PeftTemplate, method="LoKrConfig"):
    """Template of `peft.LoKrConfig`."""


class RFMissConfig(PeftTemplate, method="MissConfig"):
    """Template of `peft.MissConfig`."""


class RFMultitaskPromptTuningConfig(PeftTemplate, method="MultitaskPromptTuningConfig"):
    """Template of `peft.MultitaskPromptTuningConfig`."""


class RFOFTConfig(PeftTemplate, method="OFTConfig"):
    """Template of `peft.OFTConfig`."""


class RFOSFConfig(PeftTemplate, method="OSFConfig"):
    """Template of `peft.OSFConfig`."""


class RFPeanutConfig(PeftTemplate, method="PeanutConfig"):
    """Template of `peft.PeanutConfig`."""


class RFPolyConfig(PeftTemplate, method="PolyConfig"):
    """Template of `peft.PolyConfig`."""


class RFPrefixTuningConfig(PeftTemplate, method="PrefixTuningConfig"):
    """Template of `peft.PrefixTuningConfig`."""


class RFPromptEncoderConfig(PeftTemplate, method="PromptEncoderConfig"):
    """Template of `peft.PromptEncoderConfig`."""


class RFPromptTuningConfig(PeftTemplate, method="PromptTuningConfig"):
    """Template of `peft.PromptTuningConfig`."""


class RFPsoftConfig(PeftTemplate, method="PsoftConfig"):
    """Template of `peft.PsoftConfig`."""


class RFPveraConfig(PeftTemplate, method="PveraConfig"):
    """Template of `peft.PveraConfig`."""


class RFRandLoraConfig(PeftTemplate, method="RandLoraConfig"):
    """Template of `peft.RandLoraConfig`."""


class RFRoadConfig(PeftTemplate, method="RoadConfig"):
    """Template of `peft.RoadConfig`."""


class RFShadowConfig(PeftTemplate, method="ShadowConfig"):
    """Template of `peft.ShadowConfig`."""


class RFShiraConfig(PeftTemplate, method="ShiraConfig"):
    """Template of `peft.ShiraConfig`."""


class RFSupertuningConfig(PeftTemplate, method="SupertuningConfig"):
    """Template of `peft.SupertuningConfig`."""


class RFTinyLoraConfig(PeftTemplate, method="TinyLoraConfig"):
    """Template of `peft.TinyLoraConfig`."""


class RFTrainableTokensConfig(PeftTemplate, method="TrainableTokensConfig"):
    """Template of `peft.TrainableTokensConfig`."""


class RFUniLoraConfig(PeftTemplate, method="UniLoraConfig"):
    """Template of `peft.UniLoraConfig`."""


class RFVBLoRAConfig(PeftTemplate, method="VBLoRAConfig"):
    """Template of `peft.VBLoRAConfig`."""


class RFVeraConfig(PeftTemplate, method="VeraConfig"):
    """Template of `peft.VeraConfig`."""


class RFWaveFTConfig(PeftTemplate, method="WaveFTConfig"):
    """Template of `peft.WaveFTConfig`."""


class RFXLoraConfig(PeftTemplate, method="XLoraConfig"):
    """Template of `peft.XLoraConfig`."""
