"""An agent: a model learns to play a game by calling tools, at two temperatures.

    python examples/agent.py
    python examples/agent.py --model Qwen/Qwen3-4B --max-steps 200

For a real model give --model and more --max-steps; its chat template has to know tool calls. For a
game of your own write a class like Cellar: reset begins a game, public methods are the tools.
"""

# ruff: noqa: T201, TID253 - a program that prints, not a part of the package
import argparse
import random
from typing import Any

from datasets import Dataset

from rapidfireai import Experiment
from rapidfireai.automl import List, RFGridSearch, RFGRPOConfig, RFLoraConfig, RFModelConfig

ROOMS = ("hall", "kitchen", "cellar", "attic")


class Cellar:
    """A house with four rooms, in one of which there is a key; leaving with the key wins."""

    def reset(self, place: str, **row: Any) -> str:
        """Begin a game. What is returned is appended to the prompt."""
        self._place = place
        self._room = "hall"
        self._has_key = self._is_out = False
        return f" You are in the hall. There are a {', a '.join(ROOMS[1:])}."

    def go(self, room: str) -> str:
        """Walk into a room.

        Args:
            room: Its name.

        Returns:
            What is there to be seen.
        """
        if room not in ROOMS:
            return f"There is no {room}."
        self._room = room
        return "A key lies here." if room == self._place and not self._has_key else "Nothing."

    def take(self) -> str:
        """Take what lies in the room.

        Returns:
            What you have now.
        """
        self._has_key = self._has_key or self._room == self._place
        return "You have a key." if self._has_key else "There is nothing to take."

    def leave(self) -> str:
        """Leave the house, if you have the key.

        Returns:
            Whether the door opens.
        """
        self._is_out = self._has_key
        return "You are out." if self._is_out else "The door is locked."

    def get_reward(self) -> float:
        """1 for leaving, half of it for having found the key."""
        return 1.0 if self._is_out else 0.5 * self._has_key


def plays(completions: list[Any], **_: Any) -> list[float]:
    """A little for using tools at all, to be learned before winning."""
    return [0.1 * any(message["role"] == "tool" for message in reply) for reply in completions]


def main() -> None:
    """Train, then rank by how often the game is won."""
    options = parse()
    config = RFModelConfig(
        model_name=options.model,
        peft_config=RFLoraConfig(r=16, lora_alpha=32, target_modules="all-linear"),
        training_args=RFGRPOConfig(
            learning_rate=2e-5,
            max_steps=options.max_steps,
            per_device_train_batch_size=8,
            num_generations=8,
            temperature=List([0.7, 1.0]),
            max_completion_length=options.max_completion_length,
            max_tool_calling_iterations=6,
            logging_steps=1,
        ),
        environment_factory=Cellar,
        reward_funcs=[plays],
    )
    experiment = Experiment("agent", experiment_path=options.experiment_path)
    experiment.run_fit(
        RFGridSearch(config),
        train_dataset=games(options.num_games),
        num_chunks=options.num_chunks,
        seed=42,
        tool_timeout_s=60,
    )
    metrics = ["rewards/Cellar/mean", "rewards/plays/mean", "tools/call_frequency"]
    runs = experiment.get_runs_info().sort_values(metrics[0], ascending=False)
    print(runs[["run_id", "status", *metrics, "path"]].to_string(index=False))
    experiment.end()


def games(num: int) -> Dataset:
    """Games that differ in where the key is; every run plays the same ones."""
    rng = random.Random(0)
    task = "You are locked in a house. Find the key and leave."
    return Dataset.from_list(
        [
            {"prompt": [{"role": "user", "content": task}], "place": rng.choice(ROOMS)}
            for _ in range(num)
        ]
    )


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="Qwen/Qwen3-0.6B")
    parser.add_argument("--num-games", type=int, default=256)
    parser.add_argument("--max-steps", type=int, default=100, help="optimizer steps of each run")
    parser.add_argument("--max-completion-length", type=int, default=512, help="tokens of a game")
    parser.add_argument("--num-chunks", type=int, default=4, help="how often runs take turns")
    parser.add_argument("--experiment-path", help="folder for all experiments")
    return parser.parse_args()


if __name__ == "__main__":
    main()
