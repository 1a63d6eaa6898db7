"""One entry of `filter.rules`: the name of a rule, or `{name: {parameter: value}}`.

Only its shape is known here; which rules there are, and what each may be given, is in pipeline.filter.rules.
"""

from typing import Any

RuleEntry = str | dict[str, dict[str, Any]]


def rule_name(entry: RuleEntry) -> str:
    """The rule that an entry names. ValueError where it names several, or none."""
    if isinstance(entry, str):
        return entry
    if len(entry) != 1:
        raise ValueError(
            f"a rule is a name or {{name: {{parameter: value}}}}, found {len(entry)} names in one entry"
        )
    return next(iter(entry))


def rule_values(entry: RuleEntry) -> dict[str, Any]:
    """The parameters that an entry states. ValueError as for `rule_name`."""
    name = rule_name(entry)
    return {} if isinstance(entry, str) else entry[name]
