"""How things run: every flag of the command line, declared once. None is in a recipe or a fingerprint.

A field is a flag: its name, type, default and help; the command line is made from these classes
(pipeline/__main__.py), and the functions behind the commands are given them. `names` are the flag's own words
where they are not the field's name.
"""

import os
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pipeline.errors import RecipeError
from pipeline.recipe.engine_arguments import read_flags

Device = Literal["auto", "cpu", "cuda"]


def flag(help: str, default: Any = None, *names: str) -> Any:
    """A field of one of the classes below."""
    return field(default=default, metadata={"help": help, "names": names})


def num_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0))


def at_least_one(**values: int | None) -> None:
    """RecipeError for a flag below 1; None is left to a default."""
    for name, value in values.items():
        if value is not None and value < 1:
            raise RecipeError(f"--{name.replace('_', '-')} {value}: must be at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFlags:
    """Which recipe, and where its run is."""

    recipe: Path = field(metadata={"help": "The recipe file, recipes/*.yaml.", "names": ("--recipe", "-r")})
    runs: Path = flag("The directory that holds one directory per run.", Path("runs"))
    override: tuple[str, ...] = flag("section.key=value; changes the fingerprint.", (), "--set")


@dataclass(frozen=True, slots=True, kw_only=True)
class StageFlags(RunFlags):
    """What every stage is given."""

    force: bool = flag("Move a directory that blocks aside, then run.", False, "--force")


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerFlags:
    workers: int | None = flag("Worker processes; else one for each core.")

    def __post_init__(self) -> None:
        at_least_one(workers=self.workers)

    @property
    def num_workers(self) -> int:
        return self.workers or num_cores()


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingFlags:
    """How a model runs that is sampled from, wherever it is. Sizes that are None are the card's."""

    concurrency: int = flag("Requests in flight at most (and vLLM's max_num_seqs).", 256)
    tensor_parallel: int | None = flag("Devices that share one model; else the card's.")
    data_parallel: int | None = flag("Copies of the model; else the card's.")
    gpu_memory_share: float = flag("The share of a GPU's memory that vLLM may use.", 0.92)
    kv_cache_gib: int = flag("GiB of key-value cache of vLLM's CPU build, at most.", 2)
    max_restarts: int = flag("Restarts of an engine that died, before giving up.", 3)
    request_timeout_seconds: float | None = flag("Time for one request to a server; else by max_tokens.")
    outage_seconds: float = flag("Give up when no server has answered for so long.", 600.0)
    engine_arguments: tuple[str, ...] = flag(
        "name=value for vLLM's engine, of those that say how it runs; may be repeated.", (), "--engine-arg"
    )

    def __post_init__(self) -> None:
        if self.concurrency < 1:
            raise RecipeError(f"--concurrency {self.concurrency}: at least 1 request must be in flight")
        for name, size in (("tensor", self.tensor_parallel), ("data", self.data_parallel)):
            if size is not None and size < 1:
                raise RecipeError(f"--{name}-parallel {size}: at least 1 device; leave it out for the card's")
        if not 0 < self.gpu_memory_share <= 1:
            raise RecipeError(f"--gpu-memory-share {self.gpu_memory_share}: a share is above 0 and at most 1")
        at_least_one(kv_cache_gib=self.kv_cache_gib)
        read_flags(self.engine_arguments)
        for name in ("max_restarts", "outage_seconds", "request_timeout_seconds"):
            value = getattr(self, name)
            if value is not None and not value >= 0:  # nor is NaN
                raise RecipeError(f"--{name.replace('_', '-')} {value}: must not be below 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFlags(SamplingFlags):
    """The same with where it runs: in this process, behind `urls`, or on a Ray cluster."""

    engine: Literal["vllm", "server", "ray"] = flag(
        "vLLM in this process, OpenAI-compatible servers, or vLLM on a Ray cluster.", "vllm"
    )
    urls: tuple[str, ...] = flag("A server, as http://host:8000/v1; may be repeated.", (), "--url")
    served_name: str | None = flag("The model's name at the servers, where it has another.")
    replicas: int | None = flag("Copies of the model on the Ray cluster, one unless given.")
    ray_address: str | None = flag("The Ray cluster, as host:6379 or auto; else one of this machine alone.")

    def __post_init__(self) -> None:
        SamplingFlags.__post_init__(self)
        if self.engine == "server" and not self.urls:
            raise RecipeError(
                "--engine server: give at least one --url, for example http://127.0.0.1:8000/v1"
            )
        if self.engine == "server" and self.engine_arguments:
            raise RecipeError(
                "--engine-arg is for vLLM here; whoever starts the server gives it to the server"
            )
        if any("@" in url for url in self.urls):
            raise RecipeError("--url: no user or password in a URL, it would be recorded; use RETORT_API_KEY")
        if self.engine != "server" and self.urls:
            raise RecipeError("--url is for --engine server; vLLM in this process or on a cluster takes none")
        if self.engine != "ray" and (self.replicas is not None or self.ray_address is not None):
            raise RecipeError(
                "--replicas and --ray-address are for --engine ray; for servers give a --url for each "
                "(serve-teacher --replicas N prints them)"
            )
        at_least_one(replicas=self.replicas)
        for url in self.urls:
            check_url(url)
        if len({url.rstrip("/") for url in self.urls}) < len(self.urls):
            raise RecipeError(f"--url: one server stands twice in {', '.join(self.urls)}; name each once")


def in_this_process(flags: SamplingFlags) -> EngineFlags:
    """vLLM of this process, running as `flags` say."""
    return EngineFlags(**{item.name: getattr(flags, item.name) for item in fields(SamplingFlags)})


@dataclass(frozen=True, slots=True, kw_only=True)
class AdoptFlags:
    adopt: tuple[str, ...] = flag("The name of a run whose traces of equal key are taken.", (), "--adopt")


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardFlags:
    shard: str | None = flag("Only this part of the problems, as 3/16 (of 0/16 to 15/16), on its own.")
    merge: bool = flag("Put the finished shards together as the stage's result.", False, "--merge")

    def __post_init__(self) -> None:
        if self.shard and self.merge:
            raise RecipeError("--merge puts all shards together: leave --shard out")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFlags:
    """Which of the models that eval compares are served, and by whom; engine flags go for all of them."""

    model_urls: tuple[str, ...] = flag("A model that is served: teacher=http://host:8000/v1.", (), "--url")
    model_names: tuple[str, ...] = flag("Its name at the server: student=demo.", (), "--served-name")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainFlags:
    """`rank`, `processes` and `sharded` are what a launcher said, not flags of the command line."""

    device: Device = flag("Where the student runs.", "auto")
    tokens_per_device: int = flag("Tokens of one micro-batch.", 8192)
    gradient_checkpointing: bool | None = flag("Less memory, a third slower; else where a GPU needs it.")
    context_parallel: int | None = flag(
        "Processes that share each row, for long examples; else as the memory of GPUs asks."
    )
    liger: bool = flag("Liger's kernels; needs liger-kernel.", False, "--liger")
    without_vllm: bool = flag(
        "Train a student that the vLLM here cannot answer with.", False, "--without-vllm"
    )
    save_every: int | None = flag("Steps between checkpoints to resume from; else ten times a run.")
    log_every: int = flag("Steps between rows of metrics.jsonl.", 10)
    tracker: Literal["none", "trackio", "tensorboard", "wandb"] = flag("Also log there.", "none")
    rank: int = 0
    processes: int = 1
    sharded: bool = False

    def __post_init__(self) -> None:
        at_least_one(
            tokens_per_device=self.tokens_per_device,
            log_every=self.log_every,
            save_every=self.save_every,
            context_parallel=self.context_parallel,
        )


def launched(flags: TrainFlags, environment: dict[str, str]) -> TrainFlags:
    """The flags with the place of this process among those that one launcher started, and whether they share
    out the model: by accelerate's FSDP, or DeepSpeed's ZeRO-3."""
    rank, processes = (from_launcher(environment, *pair) for pair in (("RANK", 0), ("WORLD_SIZE", 1)))
    zero = environment.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true"
    sharded = environment.get("ACCELERATE_USE_FSDP", "").lower() == "true"
    sharded = sharded or (zero and environment.get("ACCELERATE_DEEPSPEED_ZERO_STAGE") == "3")
    return replace(flags, rank=rank, processes=processes, sharded=sharded)


def from_launcher(environment: dict[str, str], name: str, lowest: int) -> int:
    """A number that a launcher set. RecipeError where it is not one."""
    text = environment.get(name, str(lowest))
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) >= lowest):
        raise RecipeError(f"{name}={text[:40]}: a launcher sets it to a number from {lowest}; unset it")
    return int(text)


def check_url(url: str) -> None:
    """RecipeError where no request can be sent to `url`."""
    try:
        parts = urlsplit(url)
        fits = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        fits = fits and not parts.query and not parts.fragment  # nor would a key in it stay unrecorded
    except ValueError:  # a port that is not a number, an open bracket
        fits = False
    if not fits or any(character.isspace() for character in url):
        raise RecipeError(
            f"--url {url}: is not the http:// or https:// address of a server; give one with its host, for "
            "example http://127.0.0.1:8000/v1"
        )
