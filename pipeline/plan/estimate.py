"""What sampling and training will cost, from budget, model configuration and stated assumptions. Pure.

Every assumption is a field of `Assumed` (--assume name=value), so that `plan` can print it beside its figure.
"""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import RecipeError
from pipeline.recipe.cards import ModelSize, StudentCard, TeacherCard, model_location
from pipeline.recipe.reading import size_of as size_in
from pipeline.recipe.schema import Samples

KV_BYTES = 2  # of a value of the cache, where the card states no kv_cache_dtype
# values of vLLM's kv_cache_dtype that begin so take a byte; narrower ones are counted as 16 bits, which
# promises less room than there is
BYTE_DTYPES = ("fp8", "int8")
USABLE_SHARE = 0.9  # of a device's memory: the rest is activations and the runtime
EFFICIENCY = 0.5  # of the memory bandwidth, which serving reaches when it is busy
STEP_MS = 3.0  # assumed: what a step takes beside its reading (scheduler, kernels); small models wait for it
MIN_SEQUENCES = 8  # fewer at a time are no layout
# FLOPs for a parameter and a token: 2 forward, 2 for the gradient of the activations, 2 for that of the
# weights, which frozen ones do not need. Kaplan et al. 2020, arXiv 2001.08361, section 2.1; no attention.
FLOPS_TRAINED = {"full": 6, "lora": 4, "qlora": 4}
FLOPS_SCORED = 2  # a forward pass alone
# microseconds that a row takes of a stage's own process and of its workers together: make bench-problems and
# bench-filter, ARGS=--only-workers, on two cores of an AMD EPYC
ROW_US = {"problems": (231.0, 46.0), "filter": (41.2, 115.0)}


def within(low: float, high: float, default: float, said: str) -> Any:
    """A field of `Assumed` with its bounds and what it is."""
    return field(default=default, metadata={"bounds": (low, high), "said": said})


@dataclass(frozen=True, slots=True)
class Assumed:
    """What is assumed where nothing has been measured: a pilot knows pass_rate and tokens_share better, and
    the figures of a device are those of an H100."""

    pass_rate: float = within(0, 1, 0.6, "share of the samples that are right")
    tokens_share: float = within(0, 1, 0.4, "length of a trace, as a share of max_tokens")
    prompt_tokens: int = within(0, 1e7, 200, "tokens of a prompt")
    devices: int = within(1, 1e6, 8, "how many devices work")
    memory: float = within(1e-3, 1e5, 80.0, "GiB of a device")
    bandwidth: float = within(1e-3, 1e6, 3350.0, "GB/s of a device's memory")
    tflops: float = within(1e-6, 1e6, 989.0, "of a device, dense in bfloat16")
    # 0.12 to 0.16 for students of 0.6B and 1.7B, 8k tokens at a time, on an H200 with busy neighbours (make
    # check-gpu)
    mfu: float = within(1e-3, 1, 0.15, "share of them that training reaches")
    price: float = within(0, 1e6, 2.5, "money for a device-hour")
    concurrency: int = within(MIN_SEQUENCES, 1e6, 256, "sequences at a time of a replica")
    unverifiable_share: float = within(0, 1, 0.05, "of the traces that a judge is a second opinion on")
    judge_tokens: float = within(1, 1e6, 100.0, "tokens of a judge's reply")
    cores: int = within(1, 1e6, 64, "cores, each with a worker, of the machine without a device")
    problems: int = within(0, 1e12, 0, "how many there are; 0 is as the problems stage or the recipe says")


@dataclass(frozen=True, slots=True)
class Layout:
    """`replicas` copies of the model, each on `tensor_parallel` devices; `sequences` that fit at a time."""

    replicas: int
    tensor_parallel: int
    sequences: int
    tokens_per_second: float


def expected_tries(pass_rate: float, samples: Samples) -> float:
    """Mean samples of a problem that each sample solves with `pass_rate`: keep correct ones, at most max.

    The n-th sample is taken while the n - 1 before hold fewer than `keep` correct ones (binomial).
    """
    return sum(
        sum(_binomial(taken, correct, pass_rate) for correct in range(samples.keep))
        for taken in range(samples.max)
    )


def solved_share(pass_rate: float, samples: Samples) -> float:
    """Share of problems with `keep` correct among `max` samples."""
    return 1 - sum(_binomial(samples.max, correct, pass_rate) for correct in range(samples.keep))


def kept_per_problem(pass_rate: float, samples: Samples, per_problem: int) -> float:
    """Mean number of correct traces of a problem, which stops at `keep`; `per_problem` of them at most."""
    most = min(samples.keep, per_problem)
    return sum(min(hits, most) * _binomial(samples.max, hits, pass_rate) for hits in range(samples.max + 1))


def row_hours(stage: str, rows: float, cores: int) -> float:
    """Hours of a stage without a model over `rows`: its own process reads and writes, `cores` workers
    compute, and the slower of the two sets the pace."""
    own, workers = ROW_US[stage]
    return rows * max(own, workers / cores) / 1e6 / 3600


def _binomial(count: int, hits: int, rate: float) -> float:
    return math.comb(count, hits) * rate**hits * (1 - rate) ** (count - hits) if hits <= count else 0.0


def size_of(card: TeacherCard | StudentCard) -> tuple[ModelSize, str]:
    """The model's size and where it was read: its own configuration, else the card."""
    directory = Path(model_location(card.model))
    if (directory / "config.json").is_file():
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        found = size_in(str(directory), config.get("text_config") or config)
        if found is None and card.size is None:
            raise RecipeError(
                f"{directory}: no weights in *.safetensors, or a config.json without layers and heads; "
                "train or save_pretrained writes both, or state a `size:` in the card"
            )
        if found is not None:
            return ModelSize(**found), f"{card.model}/config.json"
    if card.size is None:
        raise RecipeError(f"{card.model}: neither its config.json nor a `size:` in its card is at hand")
    return card.size, "the card's size, see its facts"


def digits(value: float) -> str:
    """Two decimals from 1 on and two digits below, so that nothing that costs something is called 0.00."""
    if value >= 1 or value <= 0:
        return f"{value:,.2f}" if value else "0"
    return f"{value:.{1 - math.floor(math.log10(value))}f}"


def weights_gib(size: ModelSize) -> float:
    return size.parameters * size.bytes_per_parameter / 2**30


def kv_bytes(card: TeacherCard | StudentCard) -> int:
    """Bytes of a value of the cache, by the engine's arguments in the card."""
    arguments = card.engine.arguments if isinstance(card, TeacherCard) else {}
    return 1 if str(arguments.get("kv_cache_dtype", "auto")).startswith(BYTE_DTYPES) else KV_BYTES


def cache_bytes_per_token(size: ModelSize, value_bytes: int = KV_BYTES) -> float:
    """Of the cache that a replica holds once."""
    return float(size.layers * size.kv_values_per_layer * value_bytes)


def cache_copies(size: ModelSize, parallel: int) -> float:
    """How often a replica on `parallel` devices holds its cache: each device has one head for keys and values
    at least (get_num_kv_heads in vllm/config/model.py). Once where the heads are not known."""
    return max(1.0, parallel / size.kv_heads) if size.kv_heads else 1.0


def layout_for(
    size: ModelSize,
    tokens: float,
    assumed: Assumed,
    value_bytes: int = KV_BYTES,
    name: str = "the model",
    way_out: str = "more devices (--assume devices=N)",
) -> Layout:
    """The tensor-parallel size, a power of two, and the replicas of it that give the most tokens a second.

    `tokens` is the mean length of a sequence. RecipeError where weights and the cache of 8 sequences do not
    fit on all devices together.
    """
    sizes = [2**i for i in range(assumed.devices.bit_length()) if 2**i <= assumed.devices]
    layouts = [replicate(size, tokens, parallel, assumed, value_bytes) for parallel in sizes]
    fitting = [layout for layout in layouts if layout.sequences >= MIN_SEQUENCES]
    if not fitting:
        raise RecipeError(
            f"{name}: {assumed.devices} device{'s' * (assumed.devices > 1)} of {assumed.memory:g} GiB cannot "
            f"hold {weights_gib(size):,.1f} GiB of weights and the cache of {MIN_SEQUENCES} sequences; "
            f"{way_out}, a quantised model or a smaller one are needed (python -m pipeline "
            "cards lists sizes)"
        )
    return max(fitting, key=lambda layout: (layout.tokens_per_second, -layout.tensor_parallel))


def replicate(
    size: ModelSize, tokens: float, parallel: int, assumed: Assumed, value_bytes: int = KV_BYTES
) -> Layout:
    """Replicas of a tensor-parallel size; 0 sequences where the model does not fit.

    Decoding is bound by memory: each step reads the weights (a large batch touches all experts) and the
    cache, in which a sequence is half grown on average; a step of a small model is bound by STEP_MS.
    """
    weights = weights_gib(size) * 2**30
    sequence = cache_bytes_per_token(size, value_bytes) * cache_copies(size, parallel) * tokens
    room = parallel * assumed.memory * 2**30 * USABLE_SHARE - weights
    sequences = max(min(int(room / max(sequence, 1.0)), assumed.concurrency), 0)
    step_bytes = weights + sequences * sequence / 2
    steps = 1 / (step_bytes / (parallel * assumed.bandwidth * 1e9 * EFFICIENCY) + STEP_MS / 1000)
    replicas = assumed.devices // parallel
    return Layout(replicas, parallel, sequences, replicas * sequences * steps)


def scoring_hours(size: ModelSize, tokens: float, assumed: Assumed) -> float:
    """Hours that all devices together need for one forward pass over `tokens`, as a prefill is one."""
    operations = FLOPS_SCORED * size.active_parameters * tokens
    return operations / (assumed.devices * assumed.tflops * 1e12 * assumed.mfu) / 3600


def training_hours(size: ModelSize, tokens: float, method: str, assumed: Assumed) -> float:
    """Hours that all devices together need to train on `tokens`, prompts and padding counted."""
    operations = FLOPS_TRAINED[method] * size.active_parameters * tokens
    return operations / (assumed.devices * assumed.tflops * 1e12 * assumed.mfu) / 3600
