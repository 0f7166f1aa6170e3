"""From a file to what `Experiment` and `run_fit` are given."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rapidfireai import policies, tracking
from rapidfireai.automl.argument_types import shown
from rapidfireai.automl.knobs import List, Range, knobs_in
from rapidfireai.automl.model_config import RFModelConfig
from rapidfireai.automl.optuna_search import RFOptuna
from rapidfireai.automl.search import RFGridSearch, RFRandomSearch, Search
from rapidfireai.automl.trainer_configs import TrainerTemplate
from rapidfireai.automl.trainer_kwargs import takes
from rapidfireai.core.spelling import did_you_mean
from rapidfireai.errors import ConfigError, RapidFireError
from rapidfireai.recipe import document, names
from rapidfireai.recipe.adapter import adapter
from rapidfireai.recipe.data import Data
from rapidfireai.recipe.keys import WITHOUT_KNOBS, Keys, Part
from rapidfireai.recipe.values import as_knob, mapped, takes_list
from rapidfireai.training.config import RunConfig
from rapidfireai.training.registry import TRAINERS, TrainerSpec, trainer_spec

DEFAULT_SEED: Final = 42
"""TRL's, and `run_fit`'s."""

_TRL_REWARDS: Final = (
    "accuracy_reward",
    "reasoning_accuracy_reward",
    "think_format_reward",
    "get_soft_overlong_punishment",
)
"""Reward functions that TRL's command line knows by name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """What a file asks for."""

    name: str
    """Of the experiment."""
    path: str | None
    """Folder of all experiments; None: the usual one."""
    env: Mapping[str, str]
    """Variables for the process's environment."""
    search: Search
    data: Data
    seed: int
    fit: Mapping[str, Any]
    """Further arguments of `run_fit`."""

    def configs(self) -> list[RunConfig]:
        """The configurations that would be trained; of a search with Optuna the first ones."""
        return self.search.get_runs(self.seed)


def read(path: Path, trainer: str | None = None, changes: Sequence[tuple[str, Any]] = ()) -> Recipe:
    """What a file asks for.

    Args:
        path: Of the file.
        trainer: Such as "sft", where the file does not say it.
        changes: Keys and values that count instead of the file's.

    Raises:
        RapidFireError: It cannot be read, or asks for what is not possible; names file and key.
    """
    given = {**document.read_mapping(path), **dict(changes)}
    try:
        return _Reader(path, given, _spec(given, trainer)).recipe()
    except RapidFireError as error:
        # Where it stands is for the user to know; the error's class stays.
        raise type(error)(f"{path}: {error}") from error


def _spec(given: Mapping[str, Any], trainer: str | None) -> TrainerSpec:
    written = given.get("trainer_type")
    if trainer is None and written is None:
        raise ConfigError(
            "nothing says which trainer: write trainer_type: SFT, or another of "
            f"{', '.join(TRAINERS)}; or give --trainer"
        )
    by_lower = {name.lower(): name for name in TRAINERS}
    wanted, said = (by_lower.get(str(one).lower(), str(one)) for one in (trainer, written))
    if trainer is not None and written is not None and wanted != said:
        raise ConfigError(f"trainer_type: {written} contradicts --trainer {trainer}")
    return trainer_spec(said if trainer is None else wanted)


class _Reader:
    """Sorts a file's keys, and makes of each part what it stands for."""

    def __init__(self, path: Path, given: Mapping[str, Any], spec: TrainerSpec) -> None:
        self._path = path
        self._spec = spec
        self._parts: dict[Part, dict[str, Any]] = {part: {} for part in Part}
        keys = Keys(spec)
        for key, value in given.items():
            part, argument = keys.place(key)
            if part in WITHOUT_KNOBS and isinstance(value, list) and not takes_list(argument):
                if argument.annotation is not Any:
                    raise ConfigError(f"{key} is the same for all runs, and takes no list")
                self._parts[part][key] = value
            elif part in WITHOUT_KNOBS:
                self._parts[part][key] = argument.checked(_spelled(value, key), "the file")
            else:
                self._parts[part][key] = as_knob(value, argument, "the file")

    def recipe(self) -> Recipe:
        parts = self._parts
        file, fit = parts[Part.FILE], dict(parts[Part.FIT])
        arguments, seed = dict(parts[Part.ARGUMENTS]), DEFAULT_SEED
        if isinstance(arguments.get("seed"), int):
            seed = arguments.pop("seed")
        strategy = arguments.get("eval_strategy", "no")
        alternatives = strategy.values if isinstance(strategy, List) else [strategy]
        data = Data(given=self._data(), evaluates=any(one != "no" for one in alternatives))
        config = self._config(arguments, fit)
        for key, make in (("policy", self._policies), ("trackers", self._trackers)):
            if fit.get(key) is not None:
                fit[key] = make(fit[key])
        return Recipe(
            name=file.get("experiment_name") or self._path.stem,
            path=file.get("experiment_path"),
            env={name: str(value) for name, value in (file.get("env") or {}).items()},
            search=_search(config, file),
            data=data,
            seed=seed,
            fit=fit,
        )

    def _data(self) -> dict[str, Any]:
        given = {key: value for key, value in self._parts[Part.DATA].items() if value is not None}
        if given.pop("ignore_bias_buffers", False):
            raise ConfigError(
                "ignore_bias_buffers is for several processes that train one model (DDP); a run "
                "trains in one here: leave it out"
            )
        return given

    def _config(self, arguments: dict[str, Any], fit: dict[str, Any]) -> RFModelConfig:
        model, code = dict(self._parts[Part.MODEL]), self._code()
        for key in ("create_model", "create_trainer"):
            if key in code:
                fit[key] = code.pop(key)
        teacher = arguments.get("teacher_model_name_or_path")
        if teacher is not None and takes(self._spec, "teacher_model"):
            code["teacher_model"] = teacher
        kwargs = self._model_kwargs(model, arguments)
        own = {key: model[key] for key in ("model_type", "tokenizer", "share_base") if key in model}
        return RFModelConfig(
            model.get("model_name_or_path"),
            peft_config=adapter(self._parts[Part.ADAPTER], self._spec),
            training_args=TrainerTemplate.classes[self._spec.name](**arguments),
            model_kwargs=kwargs or None,
            tokenizer_kwargs=self._tokenizer_kwargs(model, arguments),
            reward_funcs=self._rewards(),
            **own,
            **code,
        )

    def _model_kwargs(self, model: Mapping[str, Any], arguments: dict[str, Any]) -> dict[str, Any]:
        """As TRL's scripts put them together; what the file does not say keeps its default."""
        kwargs = {
            target: model[key]
            for key, target in (
                ("model_revision", "revision"),
                ("attn_implementation", "attn_implementation"),
                ("dtype", "dtype"),
            )
            if model.get(key) is not None
        }
        if arguments.get("trust_remote_code"):
            kwargs["trust_remote_code"] = arguments["trust_remote_code"]
        if quantization := _quantization(self._parts[Part.QUANTIZATION], model.get("dtype")):
            kwargs["quantization_config"] = quantization
        given = arguments.pop("model_init_kwargs", None) or {}
        if not isinstance(given, dict):
            raise ConfigError(
                f"model_init_kwargs: {shown(given)} cannot be used; it is one set of names and "
                "values, of which each may have alternatives: {list: [...]}"
            )
        return {**kwargs, **given}

    def _tokenizer_kwargs(
        self, model: Mapping[str, Any], arguments: Mapping[str, Any]
    ) -> Mapping[str, Any] | None:
        kwargs = {}
        if model.get("model_revision") is not None and "tokenizer" not in model:
            kwargs["revision"] = model["model_revision"]
        if arguments.get("trust_remote_code"):
            kwargs["trust_remote_code"] = arguments["trust_remote_code"]
        given = model.get("tokenizer_kwargs") or {}
        return {**kwargs, **given} if isinstance(given, dict) else given

    def _rewards(self) -> Any:
        given = self._parts[Part.REWARDS]
        first = given.get("reward_model_name_or_path")
        if isinstance(first, List):
            raise ConfigError(
                "reward_model_name_or_path takes no alternatives; write the names into "
                "reward_funcs, as lists of which each is one set"
            )
        named = given.get("reward_funcs")
        if named is None:
            return None if first is None else [first]
        front = [] if first is None else [first]
        return mapped(named, lambda several: [*front, *map(self._reward, several)])

    def _reward(self, name: str) -> Any:
        if name not in _TRL_REWARDS and "." not in name:
            raise ConfigError(
                f"reward_funcs: {name!r} is not known; {did_you_mean(name, _TRL_REWARDS)} Or name "
                "a function of yours as module.function"
            )
        if name in _TRL_REWARDS:
            import trl.rewards

            reward = getattr(trl.rewards, name)
            if name == "get_soft_overlong_punishment":
                return reward(max_completion_len=1280, soft_punish_cache=256)
            return reward
        return self._load(name, "reward_funcs")

    def _code(self) -> dict[str, Any]:
        found = {}
        for key, value in self._parts[Part.CODE].items():
            if key != "generation_config" and value is not None:
                value = mapped(value, self._loader(key))
            found[key] = value
        return found

    def _loader(self, key: str) -> Callable[[Any], Any]:
        def load(value: Any) -> Any:
            if isinstance(value, list):
                return [load(item) for item in value]
            if isinstance(value, dict):
                return {name: load(item) for name, item in value.items()}
            found = None if value is None else self._load(value, key)
            return found() if key == "callbacks" and isinstance(found, type) else found

        return load

    def _load(self, name: str, key: str) -> Any:
        return names.load(name, key, self._path.absolute().parent)

    def _trackers(self, given: Any) -> list[Any]:
        """Trackers by name are left to `run_fit`; {name: {setting: value}} has settings."""
        settings = {each.__name__: each for each in tracking.TRACKERS.values()}
        return [
            self._made(one, "trackers", settings) if _is_call(one) or "." in str(one) else one
            for one in given
        ]

    def _policies(self, given: Any) -> Any:
        if isinstance(given, list):
            return [self._policies(one) for one in given]
        known = {name: getattr(policies, name) for name in policies.__all__}
        classes = {name: one for name, one in known.items() if inspect.isclass(one)}
        return given if given == "auto" else self._made(given, "policy", classes)

    def _made(self, given: Any, key: str, known: Mapping[str, Any]) -> Any:
        """An object of ours or of the user's by name, or as {name: {argument: value}}."""
        name, kwargs = next(iter(given.items())) if _is_call(given) else (given, None)
        if isinstance(name, str) and "." in name:
            found = self._load(name, key)
        elif name in known:
            found = known[name]
        else:
            raise ConfigError(
                f"{key}: {shown(given)} is not known; {did_you_mean(str(name), known)} Arguments "
                "are written as {Name: {argument: value}}, what is yours as module.name"
            )
        try:
            return found(**(kwargs or {})) if isinstance(found, type) or kwargs else found
        except TypeError as error:
            raise ConfigError(f"{key}: {name} refuses {shown(kwargs)}: {error}") from error


def _is_call(given: Any) -> bool:
    return (
        isinstance(given, dict)
        and len(given) == 1
        and all(isinstance(kwargs, dict | None) for kwargs in given.values())
    )


def _spelled(value: Any, key: str) -> Any:
    """`fuse: off` is a word here; booleans are read as other readers of YAML would."""
    return {True: "on", False: "off"}.get(value, value) if key == "fuse" else value


def _quantization(given: Mapping[str, Any], dtype: Any) -> Any:
    """The dictionary that TRL makes a `BitsAndBytesConfig` of; None for an alternative without."""
    four, eight = given.get("load_in_4bit", False), given.get("load_in_8bit", False)
    further = [key for key in given if not key.startswith("load_in_")]
    if four is False and further:
        raise ConfigError(f"{', '.join(further)} has no effect without load_in_4bit: true")
    if four is not False and eight is not False:
        raise ConfigError("load_in_4bit and load_in_8bit: give one of them")
    if four is False and eight is False:
        return None
    if eight is not False:
        return mapped(eight, lambda on: {"load_in_8bit": True} if on else None)
    if isinstance(dtype, List):
        raise ConfigError("dtype takes no alternatives together with load_in_4bit; give one")
    config = {
        "load_in_4bit": True,
        "bnb_4bit_compute_dtype": dtype or "float32",
        "bnb_4bit_quant_type": given.get("bnb_4bit_quant_type", "nf4"),
        "bnb_4bit_use_double_quant": given.get("use_bnb_nested_quant", False),
    }
    if given.get("bnb_4bit_quant_storage") is not None:
        config["bnb_4bit_quant_storage"] = given["bnb_4bit_quant_storage"]
    return mapped(four, lambda on: config if on else None)


def _search(config: RFModelConfig, file: Mapping[str, Any]) -> Search:
    num_runs, optuna = file.get("num_runs"), file.get("optuna")
    if num_runs is not None and optuna is not None:
        raise ConfigError("num_runs and optuna: give one of them; Optuna's number is its budget")
    if optuna is not None:
        try:
            return RFOptuna(config, **optuna)
        except TypeError as error:
            raise ConfigError(
                f"optuna: {shown(optuna)} cannot be used: {error}. It has n_initial, budget, "
                "objective and seed"
            ) from error
    if num_runs is not None:
        return RFRandomSearch(config, num_runs=num_runs)
    ranges = [knob for knob in knobs_in(config) if isinstance(knob, Range)]
    if ranges:
        raise ConfigError(
            f"{ranges[0]!r} cannot be tried in full: give num_runs, how many configurations to "
            "draw, or optuna"
        )
    return RFGridSearch(config)
