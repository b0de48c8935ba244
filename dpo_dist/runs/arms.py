"""The arms of an evaluation: their weights, and what they see besides the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import JsonValue

from dpo_dist.config import Arm, DataSource, required
from dpo_dist.data.hygiene import encodable
from dpo_dist.data.prompts import (
    Demonstration,
    check_disjoint,
    read_demonstrations,
    read_prompts,
    split_system,
)
from dpo_dist.data.rows import source_identity
from dpo_dist.errors import ConfigError, DataError
from dpo_dist.runs.run import Run
from dpo_dist.runs.weights import Weights
from dpo_dist.storage.records import Message, Prompt


@dataclass(frozen=True)
class Prompting:
    """What an arm sees besides a prompt: its system prompt, and solved examples. `shown` is its
    identity in a fingerprint; None: the arm sees every prompt as it is."""

    arm: str
    system: str | None = None
    examples: tuple[Demonstration, ...] = ()
    shown: JsonValue = None

    def check_disjoint(self, held_out: Sequence[Prompt]) -> None:
        """Raise `DataError` for a held-out prompt that is also an example."""
        examples = [Prompt(id=example.id, messages=example.prompt) for example in self.examples]
        check_disjoint(examples, held_out, what=f"an example of the arm {self.arm}:")

    def messages(self, prompt: Prompt) -> tuple[Message, ...]:
        """The conversation that the arm answers: the system turn, the examples, then the prompt.
        Raises `DataError` if an example has another system turn than the prompt."""
        if self.shown is None:
            return prompt.messages
        system, turns = split_system(prompt.messages)
        if self.system is not None:
            system = (Message(role="system", content=self.system),)
        examples: list[Message] = []
        for example in self.examples:
            own, solved = split_system(example.prompt)
            if own and own != system:
                raise DataError(
                    f"evaluate.arms: {self.arm}: the example {example.id} has another system turn "
                    f"than the prompt {prompt.id!r}; give the arm its own `system`, or remove the "
                    "turn from the example"
                )
            examples += [*solved, example.completion]
        return (*system, *examples, *turns)


@dataclass(frozen=True)
class ArmInUse:
    """An arm with its weights. Arms that are equal but for the name give the same answers."""

    config: Arm
    weights: Weights
    prompting: Prompting

    @property
    def is_other_model(self) -> bool:
        """Whether the arm is a whole model that this run does not use otherwise."""
        return self.config.own is None and self.config.adapter is None

    def is_same(self, other: ArmInUse) -> bool:
        """Whether two arms differ in nothing but the name."""
        return (self.weights, self.prompting.shown) == (other.weights, other.prompting.shown)


def arms_of(run: Run) -> dict[str, ArmInUse]:
    """The arms of the evaluation by name. Raises `ModelError` for missing weights and for an
    adapter of another base, `ConfigError` and `DataError` for examples that cannot be used."""
    arms = required(run.config.evaluate).named_arms
    return {
        name: ArmInUse(arm, run.arm_weights(arm), _prompting(arm)) for name, arm in arms.items()
    }


def check_arms(run: Run) -> None:
    """Check what the evaluation's arms need and no phase of this run makes: other models, adapters
    and examples. Raises as `arms_of` does, and `DataError` if an example does not fit a held-out
    prompt or is one."""
    evaluate = run.config.evaluate
    if evaluate is None:
        return
    promptings = []
    for arm in evaluate.named_arms.values():
        if arm.own is None:
            run.arm_weights(arm)
        promptings.append(_prompting(arm))
    if solved := [prompting for prompting in promptings if prompting.examples]:
        held_out = read_prompts(evaluate.prompts)
        for prompting in solved:
            prompting.check_disjoint(held_out)
            for prompt in held_out:
                prompting.messages(prompt)


def _prompting(arm: Arm) -> Prompting:
    if arm.is_plain:
        return Prompting(arm.name)
    place = f"evaluate.arms: {arm.name}"
    source, examples = arm.few_shot, []
    identity: JsonValue = None
    if isinstance(source, DataSource):
        examples, identity = read_demonstrations(source), source_identity(source)
    elif source is not None:
        identity = [[example.prompt, example.completion] for example in source]
        examples = [
            Demonstration(
                f"few_shot.{number}",
                (Message(role="user", content=example.prompt),),
                Message(role="assistant", content=example.completion),
            )
            for number, example in enumerate(source)
        ]
    texts = [turn.content for e in examples for turn in (*e.prompt, e.completion)]
    if not all(map(encodable, [*texts, arm.system or ""])):
        raise ConfigError(f"{place}: a text holds a NUL character or an unpaired surrogate")
    shown: JsonValue = {"system": arm.system, "few_shot": identity}
    return Prompting(arm.name, arm.system, tuple(examples), shown)
