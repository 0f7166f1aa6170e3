"""No secret is shown, and nothing that is none is hidden."""

import math

import pytest

from rapidfireai.store.plain import MASK, encoded, is_secret, shown, shown_text


@pytest.mark.parametrize(
    "key",
    [
        "token",
        "hub_token",
        "hf_token",
        "training_args.push_to_hub_token",
        "api_key",
        "apikey",
        "OPENAI_API_KEY",
        "key",
        "aws_access_key",
        "password",
        "db_password",
        "secret",
        "client_secret",
        "credentials",
        "private_key",
        "secret_value",
        "Authorization",
    ],
)
def test_secrets_are_known_by_their_names(key: str) -> None:
    assert is_secret(key)
    assert shown("value", key) == MASK
    assert shown({key: ["a", {"b": "c"}]})[key] == [MASK, {"b": "c"}]


@pytest.mark.parametrize(
    "key",
    [
        "num_tokens",
        "max_new_tokens",
        "eos_token",
        "pad_token",
        "tokenizer",
        "learning_rate",
        "keys_to_ignore",
        "tokenizer_kwargs",
        "include_num_input_tokens_seen",
        "monkey",
    ],
)
def test_other_names_hide_nothing(key: str) -> None:
    assert not is_secret(key)
    assert shown("value", key) == "value"


def test_numbers_and_nothing_are_no_secrets() -> None:
    assert shown({"token": None, "key": 3, "password": ""}) == {
        "token": None,
        "key": 3,
        "password": "",
    }


@pytest.mark.parametrize(
    "text",
    ["hf_" + "a" * 20, "sk-" + "b" * 30, "ghp_" + "c" * 30, "https://me:geheim@host/x"],
)
def test_secrets_are_known_by_their_form(text: str) -> None:
    told = shown_text(f"before {text} after")
    assert MASK in told
    assert text not in told
    assert told.startswith("before ")
    assert told.endswith(" after")


def test_what_json_lacks_becomes_text() -> None:
    assert encoded(shown([math.nan, math.inf, -math.inf, 1.5])) == b'["nan","inf","-inf",1.5]'
    assert encoded("\ud800") == b'"\\ud800"'
