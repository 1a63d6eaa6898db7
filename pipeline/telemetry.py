"""No telemetry of any library, and no chatter, unless the user turned it on by setting the variable."""

from collections.abc import MutableMapping

OFF = {
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRACKIO_DISABLE": "1",
    "WANDB_MODE": "disabled",
    "TOKENIZERS_PARALLELISM": "false",
    "VLLM_LOGGING_LEVEL": "ERROR",
}
TRACKERS = {"wandb": "WANDB_MODE", "trackio": "TRACKIO_DISABLE"}


def quiet(environment: MutableMapping[str, str]) -> None:
    """Set what is not set; before any library is imported."""
    for name, value in OFF.items():
        environment.setdefault(name, value)


def wake(tracker: str, environment: MutableMapping[str, str]) -> None:
    """Undo `quiet` for a tracker that was asked for; a user's own value stays."""
    name = TRACKERS.get(tracker)
    if name and environment.get(name) == OFF[name]:
        del environment[name]
