"""A tiny vision-language model with its processor, and data for it: made on the spot."""

import random
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from transformers import (
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from rapidfireai.testing.tiny import sentence, tiny_model, tiny_tokenizer
from tests.compatibility.trial import Rows, Trial, refused, small, twice
from tests.training.solo import Case

_SIZE = 16
"""Pixels on a side; four patches."""
_IMAGE = "<image>"
_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{% if m['content'] is string %}{{ m['content'] }}"
    "{% else %}{% for part in m['content'] %}{% if part['type'] == 'image' %}<image>{% else %}"
    "{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def tiny_vlm() -> tuple[Any, Any]:
    """A random Llava and its processor."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [_IMAGE]})
    tokenizer.image_token = _IMAGE
    tokenizer.image_token_id = tokenizer.convert_tokens_to_ids(_IMAGE)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=_SIZE,
            patch_size=_SIZE // 2,
        ),
        text_config=tiny_model().config,
        image_token_index=tokenizer.image_token_id,
        vision_feature_layer=-1,
        image_seq_length=4,
        pad_token_id=0,
    )
    before = torch.get_rng_state()
    torch.manual_seed(1234)
    model = LlavaForConditionalGeneration(config)
    torch.set_rng_state(before)
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessorPil(
            size={"shortest_edge": _SIZE}, crop_size={"height": _SIZE, "width": _SIZE}
        ),
        tokenizer=tokenizer,
        patch_size=_SIZE // 2,
        vision_feature_select_strategy="default",
        chat_template=_TEMPLATE,
        image_token=_IMAGE,
        num_additional_image_tokens=1,
    )
    return model, processor


def vlm_without_processor() -> tuple[Any, Any]:
    """The model with its tokenizer alone."""
    model, processor = tiny_vlm()
    return model, processor.tokenizer


def image(rng: random.Random) -> Image.Image:
    """Of one colour."""
    return Image.new("RGB", (_SIZE + 4, _SIZE), tuple(rng.randrange(256) for _ in range(3)))


def _said(role: str, text: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text}]


def length_reward(completions: list[list[dict[str, str]]], **_: Any) -> list[float]:
    """A reward that depends on the reply alone."""
    return [len(messages[-1]["content"]) / 10 for messages in completions]


def picture_rows() -> Rows:
    """Pictures with a question, and replies for every kind of trainer."""
    rng = random.Random(0)
    return [
        {
            "images": [image(rng)],
            "prompt": _said("user", sentence(rng, 4)),
            "completion": _said("assistant", sentence(rng, 4)),
            "chosen": _said("assistant", sentence(rng, 4)),
            "rejected": _said("assistant", sentence(rng, 4)),
        }
        for _ in range(8)
    ]


def video_rows() -> Rows:
    """Frames with what is said of them."""
    rng = random.Random(0)
    return [
        {
            "frames": [image(rng) for _ in range(3)],
            "messages": [*_said("user", sentence(rng, 4)), *_said("assistant", sentence(rng, 4))],
        }
        for _ in range(8)
    ]


class FrameCollator:
    """Shows a video as its frames, one after the other."""

    def __init__(self) -> None:
        self._processor = tiny_vlm()[1]

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        texts, frames = [], []
        for example in examples:
            asked, replied = (message["content"] for message in example["messages"])
            frames += example["frames"]
            texts.append(f"<|user|>{_IMAGE * len(example['frames'])}{asked}<|end|>{replied}")
        batch = self._processor(images=frames, text=texts, padding=True, return_tensors="pt")
        labels = batch["input_ids"].clone()
        labels[batch["attention_mask"] == 0] = -100
        return {**batch, "labels": labels}


def _vlm(trainer: str, **args: Any) -> Case:
    plain = small(trainer, **args)
    adapter = {**(plain.lora or {}), "target_modules": "all-linear"}
    return replace(plain, make_model=tiny_vlm, lora=adapter)


def _pictures(name: str, *cases: Case) -> Trial:
    return Trial(name=name, cases=cases, rows=picture_rows, group="pictures")


def _own(name: str, trainer: str, note: str) -> Trial:
    plain = small(trainer)
    task = {"task_type": "SEQ_CLS"} if trainer == "Classifier" else {}
    return Trial(
        name=name, cases=twice(replace(plain, lora={**(plain.lora or {}), **task})), note=note
    )


_SFT = _vlm("SFT", max_length=None)
_REWARDED = {"reward_funcs": length_reward}

TRIALS = (
    _pictures("SFT on pictures", *twice(_SFT)),
    _pictures("SFT on pictures, all weights", replace(_SFT, lora=None)),
    _pictures("DPO on pictures", *twice(_vlm("DPO", max_length=None))),
    _pictures(
        "GRPO on pictures",
        *twice(
            replace(
                _vlm("GRPO", num_generations=2, max_completion_length=4), trainer_kwargs=_REWARDED
            )
        ),
    ),
    Trial(
        name="SFT on videos",
        cases=twice(
            replace(
                _vlm(
                    "SFT",
                    max_length=None,
                    remove_unused_columns=False,
                    dataset_kwargs={"skip_prepare_dataset": True},
                ),
                made_kwargs={"data_collator": FrameCollator},
            )
        ),
        rows=video_rows,
        note="As in TRL, with a `data_collator` of one's own that shows the frames.",
    ),
    refused(
        "a vision-language model without its processor",
        replace(_SFT, make_model=vlm_without_processor),
        rows=picture_rows,
    ),
    refused("pictures for a model that cannot see", small("SFT"), rows=picture_rows),
    _own("a subclass of `Trainer`", "Noisy", "Through `create_trainer`."),
    _own(
        "a sequence classifier",
        "Classifier",
        "Through `create_trainer`; one base for each seed, since the head is random.",
    ),
)
