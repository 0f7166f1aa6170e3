"""Where a trainer hands its backbone's work over to a gang, and which trainers can.

Three methods are replaced on instances: the `forward` of the backbone, from the embeddings to the
last norm, `accelerator.backward`, and `prediction_step`, within which the backbone's calls are an
evaluation's. Heads, losses, metrics, clipping, optimizers and schedules stay the trainer's own.
A reference model's calls go to the run's own backbone, and so does generation, unless it is to be
shared: then the run computes its prompts by itself, and hands out what follows token by token.
Sampling, stopping and the cache are the trainer's own.
"""

from collections.abc import Callable, Iterator
from types import MethodType
from typing import Any, TypeGuard

import torch
from peft import PeftModel
from peft.tuners.lora import Linear as LoraLinear
from torch import nn
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPast

from rapidfireai.training.arguments import Resolved
from rapidfireai.training.build import RunParts
from rapidfireai.training.reference import has_hook
from rapidfireai.workers.apart import is_plain, why_not_apart
from rapidfireai.workers.gang import Backward, Forward, Request
from rapidfireai.workers.rows import MIN_TOKENS, Slice

FUSABLE = ("SFT", "DPO", "KTO", "Reward", "ORPO", "CPO", "GRPO", "RLOO")
"""Trainers that call their model once with gradients for each `accelerator.backward`."""


def why_sliced(parts: RunParts, resolved: Resolved, trainer: Any) -> str | None:
    """Why the run cannot share its passes, for people to read; None if it can.

    Args:
        parts: The run's own.
        resolved: Its arguments in force.
        trainer: Built, not trained yet.
    """
    for reason in _reasons(parts, resolved, trainer):
        return reason
    return None


def _reasons(parts: RunParts, resolved: Resolved, trainer: Any) -> Iterator[str]:
    name = parts.spec.config.trainer_type
    if parts.create_trainer is not None:
        yield "create_trainer makes its trainer, whose use of the model is not known"
    elif name not in FUSABLE:
        yield f"its trainer is {name}; passes are shared by {', '.join(FUSABLE)}"
    if resolved.private_base is not None:
        yield f"it has base weights of its own: {resolved.private_base}"
    if isinstance(parts.base.model, PeftModel):
        yield "create_model returned a model with adapters on it"
    if resolved.peft_config is None:
        yield "it trains all weights"
    for option in resolved.computes_otherwise():
        yield f"{option} changes how the model computes for this run alone"
    yield from _reasons_in_model(parts.base.model, trainer)


def _reasons_in_model(base: nn.Module, trainer: Any) -> Iterator[str]:
    model = trainer.model
    if not isinstance(model, PeftModel):
        yield "its model is no PeftModel"
        return
    whole = model.get_base_model()
    backbone = whole.base_model
    text_config = whole.config.get_text_config()
    if backbone is whole or getattr(whole.config, "is_encoder_decoder", False):
        yield f"{type(whole).__name__} is no decoder with a head"
    if any(getattr(text_config, n, None) for n in ("num_experts", "num_local_experts")):
        yield "the base is a mixture of experts"
    if any(hasattr(module, "quant_state") for module in base.modules()) or getattr(
        whole, "is_quantized", False
    ):
        yield "the base is quantized"
    dropout = active_dropout(base)
    if dropout is not None:
        yield f"the base drops activations at random itself ({dropout})"
    reason = why_not_apart(whole)
    if reason is not None:
        yield reason
    yield from _reasons_in_layers(backbone)


def active_dropout(base: nn.Module) -> str | None:
    """What in the base drops activations at random while it trains; None if nothing does."""
    config = base.config.get_text_config()  # type: ignore[operator, union-attr]
    for name, value in vars(config).items():
        is_rate = isinstance(value, float | int) and not isinstance(value, bool) and value > 0
        if "drop" in name and name != "classifier_dropout" and is_rate:
            return f"{name}={value}"
    return None


def _reasons_in_layers(backbone: nn.Module) -> Iterator[str]:
    if "forward" in vars(backbone):
        yield "somebody has replaced its backbone's forward"
    for name, module in backbone.named_modules():
        if has_hook(module):
            yield f"{name or 'the backbone'} has a hook"
    yield from _reasons_in_adapters(backbone)


def _reasons_in_adapters(backbone: nn.Module) -> Iterator[str]:
    known: set[int] = set()
    for name, module in backbone.named_modules():
        if not hasattr(module, "lora_A"):
            continue
        if type(module) is not LoraLinear:
            yield f"its adapter on {name} is a {type(module).__name__}, not a linear layer"
            continue
        if module.lora_variant or any(module.lora_bias.values()) or module.merged:
            yield f"its adapter on {name} is not plain LoRA"
        if len(module.active_adapters) != 1:
            yield f"its layer {name} has several active adapters"
        known.update(id(p) for a in _low_rank(module) for p in a.parameters())
    for name, parameter in backbone.named_parameters():
        if parameter.requires_grad and id(parameter) not in known:
            yield f"it trains {name}, which is no part of LoRA on a linear layer"
        if parameter._post_accumulate_grad_hooks:  # noqa: SLF001
            yield "its optimizer works inside the backward pass"


def _low_rank(module: LoraLinear) -> Iterator[nn.Module]:
    for name in module.active_adapters:
        yield module.lora_A[name]
        yield module.lora_B[name]


class FusedBackbone:
    """Hands a trainer's backbone calls out as requests.

    Args:
        trainer: Built, not trained yet; `why_sliced` finds nothing against it.
        parts: The run's own.
        ask: Returns when the request has been answered. Called in the run's own thread.
        note: Takes what people should know about the run.
    """

    def __init__(
        self,
        trainer: Any,
        parts: RunParts,
        ask: Callable[[Request], None],
        note: Callable[[str], None],
    ) -> None:
        self._trainer = trainer
        self._base = parts.base
        self._device = parts.spec.device
        self._ask = ask
        self._note = note
        self._noted: set[type] = set()
        whole = trainer.model.get_base_model()
        self._backbone: nn.Module = whole.base_model
        self._adapters = {
            name: module
            for name, module in self._backbone.named_modules()
            if isinstance(module, LoraLinear)
        }
        self._own_backward = trainer.accelerator.backward
        self._predict = trainer.prediction_step
        self._evaluates = False
        self._shares_generation = parts.spec.fuse_generation
        self._generator = torch.Generator(self._device)
        # What PEFT and TRL change, they change in all layers at once.
        self._one = next(iter(self._adapters.values()))
        self._drops = any(
            getattr(dropout, "p", 0.0) > 0
            for module in self._adapters.values()
            for dropout in module.lora_dropout.values()
        )
        self._answered: Forward | None = None
        trainer.accelerator.backward = self._backward
        trainer.prediction_step = self._prediction_step

        def forward(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if module is not self._backbone:  # of a copy that somebody made of the model
                return type(module).forward(module, *args, **kwargs)
            return self._forward(*args, **kwargs)

        # A method of the backbone's, so that a copy of the model gets one of its own.
        self._backbone.forward = MethodType(forward, self._backbone)

    def _own_forward(self, *args: Any, **kwargs: Any) -> Any:
        return type(self._backbone).forward(self._backbone, *args, **kwargs)

    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        request = self._request(*args, **kwargs)
        if request is None:
            return self._own_forward(*args, **kwargs)
        self._ask(request)
        if request.trains:
            self._answered = request
        if request.hidden is None:
            if request.error is not None:
                self._note_once(request.error)
            return self._own_forward(*args, **kwargs)
        if request.rng_after is not None:
            _set_rng_state(request.rng_after, self._device)
        return BaseModelOutputWithPast(
            last_hidden_state=request.hidden, past_key_values=request.rows.cache
        )

    def _backward(self, loss: torch.Tensor, **kwargs: Any) -> None:
        self._own_backward(loss, **kwargs)
        answered, self._answered = self._answered, None
        if answered is None or (answered.hidden is None and not answered.is_measured):
            return
        request = Backward(forward=answered)
        self._ask(request)
        if request.error is not None:
            self._note_once(request.error)
            self._repeat(answered)

    def _repeat(self, answered: Forward) -> None:
        """Do by itself what a shared backward pass did not: no gradient has changed yet."""
        rows, hidden = answered.rows, answered.hidden
        assert hidden is not None, "it was shared"
        now = None
        if answered.rng is not None:
            now = _rng_state(self._device)
            _set_rng_state(answered.rng, self._device)
        autocast = torch.autocast(
            self._device.type, answered.autocast, enabled=answered.autocast is not None
        )
        with autocast:
            own = self._own_forward(
                input_ids=rows.input_ids,
                attention_mask=rows.attention_mask,
                position_ids=rows.position_ids,
                use_cache=False,
            )
        own.last_hidden_state.backward(hidden.grad)
        if now is not None:
            _set_rng_state(now, self._device)

    def _prediction_step(self, *args: Any, **kwargs: Any) -> Any:
        self._evaluates = True
        try:
            return self._predict(*args, **kwargs)
        finally:
            self._evaluates = False

    def _note_once(self, error: BaseException) -> None:
        kind = type(error)
        if kind not in self._noted:
            self._noted.add(kind)
            self._note(
                f"at step {self._trainer.state.global_step + 1} it computed a pass by itself: "
                f"{kind.__name__}: {error}"
            )

    def _request(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        **others: Any,
    ) -> Forward | None:
        """The call as a request; None for one that goes to the run's own backbone."""
        if input_ids is None or self._answered is not None:
            return None
        modes = (torch.is_grad_enabled(), self._backbone.training)
        trains, num_cached = all(modes), 0
        if past_key_values is not None or use_cache:
            if position_ids is None or not self._may_share_token(past_key_values, input_ids):
                return None
            num_cached = past_key_values.get_seq_length()
        elif not trains and (any(modes) or not self._evaluates):
            return None
        elif input_ids.numel() < MIN_TOKENS:
            return None  # alone its products round as in plain TRL
        elif position_ids is not None and attention_mask is None:
            return None  # texts packed into one row
        num_tokens = num_cached + input_ids.shape[1]
        if attention_mask is not None and attention_mask.shape != (len(input_ids), num_tokens):
            return None
        if any(value is not None and value is not False for value in others.values()):
            return None
        if self._one.disable_adapters or self._one.merged:
            return None
        device_type = self._device.type
        draws = self._drops and self._backbone.training
        rows = Slice(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            adapters=self._adapters,
            generator=self._generator if draws else None,
            cache=past_key_values,
            num_cached=num_cached,
        )
        return Forward(
            base=self._base,
            rows=rows,
            autocast=(
                torch.get_autocast_dtype(device_type)
                if torch.is_autocast_enabled(device_type)
                else None
            ),
            checkpointing=trains and bool(getattr(self._backbone, "gradient_checkpointing", False)),
            rng=_rng_state(self._device) if draws else None,
            trains=trains,
        )

    def _may_share_token(
        self, cache: Cache | None, input_ids: torch.Tensor
    ) -> TypeGuard[DynamicCache]:
        if torch.is_grad_enabled() or not self._shares_generation:
            return False
        # Otherwise these are the prompts, or another cache does what it likes with its tokens.
        return is_plain(cache) and input_ids.shape[1] == 1


def _rng_state(device: torch.device) -> torch.Tensor:
    """Of the generator that dropout on the device draws from."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _set_rng_state(state: torch.Tensor, device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)
