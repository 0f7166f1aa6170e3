"""A vision-language model learns to name colours: two ranks, two learning rates, one base.

    python examples/vlm.py                       a random model made here, to see that it works
    python examples/vlm.py --model HuggingFaceTB/SmolVLM-256M-Instruct --max-steps 100

For a real model give --model and more --max-steps, and rows of your own in place of `squares`: the
columns are images, prompt and completion. Pictures need pillow, and most real models torchvision.
"""

# ruff: noqa: T201, TID253 - a program that prints, not a part of the package
import argparse
import random
from typing import Any

from datasets import Dataset
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from rapidfireai import Experiment
from rapidfireai.automl import List, RFGridSearch, RFLoraConfig, RFModelConfig, RFSFTConfig
from rapidfireai.testing.tiny import tiny_model, tiny_tokenizer

TINY = "tiny"
COLOURS = {"red": (200, 30, 30), "green": (30, 160, 60), "blue": (40, 60, 200)}
_PIXELS = 16
_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{% if m['content'] is string %}{{ m['content'] }}"
    "{% else %}{% for part in m['content'] %}{% if part['type'] == 'image' %}<image>{% else %}"
    "{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def main() -> None:
    """Train, then rank by the loss on held-out pictures."""
    options = parse()
    config = RFModelConfig(
        model_name=options.model,
        model_type="image_text_to_text",
        peft_config=RFLoraConfig(r=List([4, 16]), lora_alpha=16, target_modules="all-linear"),
        training_args=RFSFTConfig(
            learning_rate=List([1e-3, 1e-4]),
            max_steps=options.max_steps,
            max_length=None,  # cutting a text could cut a picture's tokens
            per_device_train_batch_size=2,
        ),
    )
    experiment = Experiment("vlm", experiment_path=options.experiment_path)
    experiment.run_fit(
        RFGridSearch(config),
        create_model,
        squares(options.num_rows, seed=0),
        squares(8, seed=1),
        num_chunks=options.num_chunks,
        seed=42,
    )
    runs = experiment.get_runs_info().sort_values("eval_loss")
    print(runs[["run_id", "status", "eval_loss", "path"]].to_string(index=False))
    experiment.end()


def create_model(config: dict[str, Any]) -> tuple[Any, Any]:
    """The model and its processor; without this function `run_fit` loads both by name."""
    if config["model_name"] == TINY:
        return random_llava()
    model = AutoModelForImageTextToText.from_pretrained(config["model_name"], dtype="float32")
    return model, AutoProcessor.from_pretrained(config["model_name"])


def squares(num: int, seed: int) -> Dataset:
    """Pictures of one colour, and the question which."""
    rng = random.Random(seed)
    rows = []
    for _ in range(num):
        name = rng.choice([*COLOURS])
        shade = tuple(channel + rng.randint(-20, 20) for channel in COLOURS[name])
        rows.append(
            {
                "images": [Image.new("RGB", (_PIXELS, _PIXELS), shade)],
                "prompt": [{"role": "user", "content": "Which colour is this?"}],
                "completion": [{"role": "assistant", "content": name}],
            }
        )
    return Dataset.from_list(rows)


def random_llava() -> tuple[Any, Any]:
    """A Llava of a few thousand random weights, and its processor."""
    tokenizer: Any = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.image_token = "<image>"
    tokenizer.image_token_id = tokenizer.convert_tokens_to_ids("<image>")
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=CLIPVisionConfig(
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                image_size=_PIXELS,
                patch_size=_PIXELS // 2,
            ),
            text_config=tiny_model().config,
            image_token_index=tokenizer.image_token_id,
            vision_feature_layer=-1,
            image_seq_length=4,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessorPil(
            size={"shortest_edge": _PIXELS}, crop_size={"height": _PIXELS, "width": _PIXELS}
        ),
        tokenizer=tokenizer,
        patch_size=_PIXELS // 2,
        vision_feature_select_strategy="default",
        chat_template=_TEMPLATE,
        image_token="<image>",
        num_additional_image_tokens=1,
    )
    return model, processor


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default=TINY, help=f"name or path; default: {TINY}")
    parser.add_argument("--num-rows", type=int, default=64, help="pictures to train on")
    parser.add_argument("--max-steps", type=int, default=20, help="optimizer steps of each run")
    parser.add_argument("--num-chunks", type=int, default=4, help="how often runs are compared")
    parser.add_argument("--experiment-path", help="folder for all experiments")
    return parser.parse_args()


if __name__ == "__main__":
    main()
