"""The parameters of each filter rule, validated when a recipe is loaded; the rules are in pipeline.rules.

In a recipe a rule is its name, or `{name: {parameter: value}}`.
"""

from typing import Annotated, Any

from pydantic import Field

from pipeline.errors import RecipeError
from pipeline.strict_yaml import Strict, nearest, validate

Share = Annotated[float, Field(ge=0, le=1)]


class NoParameters(Strict):
    """For rules that have nothing to set."""


class ClosedThinking(Strict):
    """`required: false` also lets responses pass that have no thinking block at all."""

    required: bool = True


class Limit(Strict):
    """A number of tokens of the trace, thinking and answer with their tags, by the student's tokenizer."""

    limit: Annotated[int, Field(ge=1)]


class NotRepetitive(Strict):
    """`max_loops`: times that a span may stand right behind itself. The two shares are of repeated lines and
    of repeated runs of `run_words` words; `max_compression` is text over zlib. All but the loops are measured
    on texts of at least `min_letters` characters, since short worked steps repeat by nature."""

    max_loops: Annotated[int, Field(ge=2)] = 6
    max_repeated_lines: Share = 0.5
    max_repeated_runs: Share = 0.5
    run_words: Annotated[int, Field(ge=2, le=20)] = 8
    max_compression: Annotated[float, Field(ge=2)] = 8.0
    min_letters: Annotated[int, Field(ge=1)] = 600


class OneLanguage(Strict):
    """Letters of scripts that the question does not use; Latin and Greek stand in all mathematics."""

    max_letters: Annotated[int, Field(ge=0)] = 2


class NotContaminated(Strict):
    """`min_letters`: eval questions shorter than this are not looked for as a whole, being mere phrases."""

    min_letters: Annotated[int, Field(ge=10)] = 30


PARAMETERS: dict[str, type[Strict]] = {
    "finished": NoParameters,
    "closed_thinking": ClosedThinking,
    "one_answer": NoParameters,
    "correct": NoParameters,
    "min_tokens": Limit,
    "max_tokens": Limit,
    "not_repetitive": NotRepetitive,
    "one_language": OneLanguage,
    "no_leaked_template": NoParameters,
    "no_refusal": NoParameters,
    "no_gold_leak": NoParameters,
    "not_contaminated": NotContaminated,
}


def parse_rule(entry: str | dict[str, dict[str, Any]]) -> tuple[str, Strict]:
    """Name and parameters of one entry of `filter.rules`. ValueError says what is wrong with it."""
    values: dict[str, Any]
    if isinstance(entry, str):
        name, values = entry, {}
    elif len(entry) == 1:
        [(name, values)] = entry.items()
    else:
        raise ValueError(
            f"a rule is a name or {{name: {{parameter: value}}}}, found {len(entry)} names in one entry"
        )
    if name not in PARAMETERS:
        raise ValueError(f"unknown rule '{name}'; {nearest(name, list(PARAMETERS))}")
    try:
        return name, validate(PARAMETERS[name], values, f"rule {name}")
    except RecipeError as error:
        raise ValueError(str(error)) from None
