"""The registry of trainers: every row leads to TRL's classes, every wrong name to an answer."""

import subprocess
import sys

import pytest
import transformers

from rapidfireai.core.spelling import did_you_mean
from rapidfireai.errors import ConfigError
from rapidfireai.training.registry import REFUSED, TRAINERS, trainer_spec


@pytest.mark.parametrize("name", TRAINERS)
def test_every_row_leads_to_the_classes(name: str) -> None:
    spec = trainer_spec(name)
    assert spec.name == name
    assert issubclass(spec.load_config(), transformers.TrainingArguments)
    assert issubclass(spec.load_trainer(), transformers.Trainer)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sft", "trainer_type='sft' is not known; did you mean 'SFT'?"),
        ("GPRO", "did you mean 'GRPO'?"),
        ("PPO", "allowed: SFT, DPO, GRPO"),
        ("xyz", "allowed: SFT, DPO, GRPO"),
        (3, "trainer_type=3 is not known"),
        *((name, f"trainer_type='{name}' is not supported: ") for name in REFUSED),
    ],
)
def test_wrong_names(name: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        trainer_spec(name)
    assert message in str(caught.value)


def test_importing_the_registry_imports_no_library() -> None:
    program = (
        "import sys\nfrom rapidfireai.training.registry import TRAINERS\n"
        "assert not {'torch', 'trl', 'transformers'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_did_you_mean() -> None:
    assert did_you_mean("Alphaa", ["alpha", "beta"]) == "did you mean 'alpha'?"
    assert did_you_mean("x", ["alpha", "beta"]) == "allowed: alpha, beta"
    assert did_you_mean("x", map(str, range(50))) == "none of the 50 that exist is similar"
