"""Templates of TRL's configs: one class per row of the trainer registry."""

from collections.abc import Mapping
from typing import Any, ClassVar

from rapidfireai.automl.argument_types import Argument, arguments_of
from rapidfireai.automl.peft_configs import RFLoraConfig
from rapidfireai.automl.template import Template
from rapidfireai.training.registry import TRAINERS, TrainerSpec

_LORA = {
    "lora_rank": "r",
    "lora_alpha": "lora_alpha",
    "lora_dropout": "lora_dropout",
    "lora_target_modules": "target_modules",
}
"""Short form -> argument of LoraConfig."""

_LORA_RANK = 8
_TASKS = {"causal_lm": "CAUSAL_LM", "seq_cls": "SEQ_CLS"}


class TrainerTemplate(Template):
    """Arguments of a TRL config, each a value or a knob; what is not set has TRL's default.

    Besides TRL's arguments there is a short form for LoRA: `lora_rank`, `lora_alpha`,
    `lora_dropout` and `lora_target_modules`. Any of them makes the run train a LoRA adapter. The
    others are then rank 8, alpha twice the rank (so that ranks compare at one scale), no dropout,
    and all linear layers.
    """

    classes: ClassVar[dict[str, type["TrainerTemplate"]]] = {}
    """By name of the trainer."""
    spec: ClassVar[TrainerSpec]

    def __init_subclass__(cls, *, trainer: str | None = None) -> None:
        super().__init_subclass__()
        if trainer is not None:
            cls.spec = TRAINERS[trainer]
            TrainerTemplate.classes[trainer] = cls

    def known_arguments(self) -> Mapping[str, Argument]:
        """Returns every argument of the TRL config, and LoRA's short form."""
        lora = RFLoraConfig().known_arguments()
        short = {name: lora[target].renamed(name) for name, target in _LORA.items()}
        return {**arguments_of(self.spec.load_config()), **short}

    @property
    def training_args(self) -> dict[str, Any]:
        """What was set of the TRL config."""
        return {name: value for name, value in self._arguments.items() if name not in _LORA}

    @property
    def lora(self) -> RFLoraConfig | None:
        """The adapter that the short form asks for; None where it was not used."""
        given = {_LORA[name]: value for name, value in self._arguments.items() if name in _LORA}
        if not given:
            return None
        rank = given.get("r", _LORA_RANK)
        defaults: dict[str, Any] = {"r": rank, "target_modules": "all-linear"}
        # A knob of ranks has been resolved before an adapter is asked for; one that has not been
        # is only being shown.
        if isinstance(rank, int):
            defaults["lora_alpha"] = 2 * rank
        if task := _TASKS.get(self.spec.model_type):
            defaults["task_type"] = task
        return RFLoraConfig(**{**defaults, **given})


class RFSFTConfig(TrainerTemplate, trainer="SFT"):
    """Template of `trl.SFTConfig`: supervised fine-tuning."""


class RFDPOConfig(TrainerTemplate, trainer="DPO"):
    """Template of `trl.DPOConfig`: direct preference optimization."""


class RFGRPOConfig(TrainerTemplate, trainer="GRPO"):
    """Template of `trl.GRPOConfig`: group relative policy optimization."""


class RFRLOOConfig(TrainerTemplate, trainer="RLOO"):
    """Template of `trl.RLOOConfig`: REINFORCE with a leave-one-out baseline."""


class RFKTOConfig(TrainerTemplate, trainer="KTO"):
    """Template of `trl.KTOConfig`: Kahneman-Tversky optimization, of unpaired preferences."""


class RFRewardConfig(TrainerTemplate, trainer="Reward"):
    """Template of `trl.RewardConfig`: a reward model from preferences."""


class RFDistillationConfig(TrainerTemplate, trainer="Distillation"):
    """Template of `trl.DistillationConfig`: on-policy distillation from a teacher."""


class RFA2POConfig(TrainerTemplate, trainer="A2PO"):
    """Template of `trl.experimental.a2po.A2POConfig`."""


class RFCPOConfig(TrainerTemplate, trainer="CPO"):
    """Template of `trl.experimental.cpo.CPOConfig`: contrastive preference optimization."""


class RFGKDConfig(TrainerTemplate, trainer="GKD"):
    """Template of `trl.experimental.gkd.GKDConfig`: generalized knowledge distillation."""


class RFGMPOConfig(TrainerTemplate, trainer="GMPO"):
    """Template of `trl.experimental.gmpo.GMPOConfig`: geometric-mean policy optimization."""


class RFGOLDConfig(TrainerTemplate, trainer="GOLD"):
    """Template of `trl.experimental.gold.GOLDConfig`: distillation across tokenizers."""


class RFIWOPDConfig(TrainerTemplate, trainer="IWOPD"):
    """Template of `trl.experimental.iw_opd.IWOPDConfig`: weighted on-policy distillation."""


class RFOnlineDPOConfig(TrainerTemplate, trainer="OnlineDPO"):
    """Template of `trl.experimental.online_dpo.OnlineDPOConfig`."""


class RFORPOConfig(TrainerTemplate, trainer="ORPO"):
    """Template of `trl.experimental.orpo.ORPOConfig`: odds ratio preference optimization."""


class RFSDFTConfig(TrainerTemplate, trainer="SDFT"):
    """Template of `trl.experimental.sdft.SDFTConfig`: self-distilled fine-tuning."""


class RFSDPOConfig(TrainerTemplate, trainer="SDPO"):
    """Template of `trl.experimental.sdpo.SDPOConfig`: self-distilled policy optimization."""


class RFTPOConfig(TrainerTemplate, trainer="TPO"):
    """Template of `trl.experimental.tpo.TPOConfig`: triple preference optimization."""


class RFBEMADPOConfig(TrainerTemplate, trainer="BEMADPO"):
    """Template of `trl.DPOConfig`, for the trainer in `trl.experimental.bema_for_ref_model`."""
