"""vLLM's own engine arguments: which of them stand in a card, which on the command line, which nowhere.

    engine: {arguments: {kv_cache_dtype: fp8}}       a card: all but those of OURS and NOT_TAKEN
    --engine-arg enforce_eager=true                  the command line: those of HOW_IT_RUNS alone

An argument bears identity, so that its value is in the fingerprint of every trace, unless HOW_IT_RUNS names
it. Names are vLLM's, with underscores, and are held to its own list where an engine starts.
"""

import difflib
import re
from collections.abc import Iterable, Iterator
from typing import Any

from pipeline.errors import RecipeError

# speed, memory and placement: the same model says the same, but for rounding, and no fingerprint holds these
HOW_IT_RUNS = frozenset({
    # drafts that the model itself accepts or refuses, by a rule that keeps its distribution
    "speculative_config", "spec_method", "spec_model", "spec_tokens",
    # compilation and kernels
    "enforce_eager", "compilation_config", "cudagraph_capture_sizes", "max_cudagraph_capture_size",
    "optimization_level", "performance_mode", "kernel_config", "enable_flashinfer_autotune", "moe_backend",
    "linear_backend", "attention_backend", "attention_config", "mamba_backend", "gdn_prefill_backend",
    "kda_prefill_backend", "kda_decode_backend", "sparse_indexer_topk_backend",
    # the schedule and the cache
    "max_num_batched_tokens", "max_num_scheduled_tokens", "max_num_active_seqs", "enable_chunked_prefill",
    "long_prefill_token_threshold", "enable_prefix_caching", "prefix_caching_hash_algo", "block_size",
    "num_gpu_blocks_override", "async_scheduling", "scheduling_policy", "stream_interval", "max_logprobs",
    "disable_hybrid_kv_cache_manager", "mamba_block_size", "mamba_cache_mode", "cpu_offload_gb",
    "cpu_offload_params", "offload_backend", "kv_offloading_size", "kv_offloading_backend",
    # parallelism and nodes
    "pipeline_parallel_size", "prefill_context_parallel_size", "decode_context_parallel_size",
    "distributed_executor_backend", "nnodes", "node_rank", "master_addr", "master_port",
    "distributed_timeout_seconds", "data_parallel_rank", "data_parallel_start_rank",
    "data_parallel_size_local", "data_parallel_address", "data_parallel_rpc_port", "data_parallel_backend",
    "data_parallel_hybrid_lb", "data_parallel_external_lb", "all2all_backend", "enable_eplb", "eplb_config",
    "expert_placement_strategy", "enable_dbo", "disable_custom_all_reduce", "max_parallel_loading_workers",
    "numa_bind", "numa_bind_nodes", "numa_bind_cpus", "device_ids",
    # loading, logs, and the parts of a model that a text does not reach
    "download_dir", "safetensors_load_strategy", "language_model_only", "limit_mm_per_prompt",
    "skip_mm_profiling", "enable_log_requests", "log_level", "shutdown_timeout",
})  # fmt: skip

# what this project sets by itself, and the key or flag that it is taken from
OURS = {
    "model": "the card's `model`",
    "served_model_name": "the card's name",
    "revision": "the card's `revision`",
    "tokenizer_revision": "the card's `revision`",
    "tokenizer": "the card's `model`: a model is asked with its own tokenizer",
    "dtype": "the card's `engine.dtype`",
    "quantization": "the card's `engine.quantisation`",
    "max_model_len": "the card's `engine.max_model_len`",
    "enable_expert_parallel": "the card's `engine.expert_parallel`",
    "reasoning_parser": "the card's `engine.reasoning_parser`",
    "tensor_parallel_size": "the card's `engine.tensor_parallel` or --tensor-parallel",
    "data_parallel_size": "the card's `engine.data_parallel` or --data-parallel",
    "max_num_seqs": "--concurrency",
    "gpu_memory_utilization": "--gpu-memory-share",
    "kv_cache_memory_bytes": "--kv-cache-gib on the CPU, --gpu-memory-share on GPUs",
    "seed": "the recipe's `seed`, from which each sample has its own",
    "structured_outputs_config": "a judge's reply, which is held to JSON",
    "skip_tokenizer_init": "how a prompt is made: as token ids of the model's own template",
    "disable_log_stats": "what each stage reports by itself",
    "use_tqdm_on_load": "what each stage reports by itself",
}  # fmt: skip

_CODE = (
    "lets a model bring Python code that runs here with your rights. If you trust it, run it as a server, "
    "apart from this project: vllm serve MODEL --trust-remote-code in a container, then --engine server --url"
)
_MODULE = "names code to import, and a card is data; run a server that has it, then --engine server --url"
NOT_TAKEN = {
    "trust_remote_code": _CODE,
    "code_revision": _CODE,
    "hf_token": "is a secret, and a card is published: put it into the environment variable HF_TOKEN",
} | dict.fromkeys(
    (
        "worker_cls",
        "worker_extension_cls",
        "scheduler_cls",
        "model_class_overrides",
        "logits_processors",
        "reasoning_parser_plugin",
        "io_processor_plugin",
        "kv_transfer_config",
        "ec_transfer_config",
        "ec_manager_config",
        "log_config_file",
        "logging_config",
    ),
    _MODULE,
)
WRITTEN_OUT = ("compilation_config", "speculative_config")  # where vLLM reads JSON too, unseen here
EXECUTORS = ("ray", "mp", "uni", "external_launcher")
DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")  # what vLLM would import; a file's path has a slash
# how drafts are accepted that keeps the model's distribution
KEEPS_THE_MODEL = ("standard", "block")


def fault_of(name: str) -> str | None:
    """What is wrong with an argument wherever it is stated; None for one that vLLM may know."""
    if name in NOT_TAKEN:
        return f"{name} is not taken: it {NOT_TAKEN[name]}"
    if name in OURS:
        return f"{name} is set from {OURS[name]}; state it there"
    if not name.isidentifier():
        return f"{name!r} is no argument of vLLM's engine; write it as vLLM's Python does: max_num_seqs"
    return None


def fault_in(name: str, value: Any) -> str | None:
    """What is wrong with the value of an argument that may be stated; None for one that vLLM may know."""
    parts = list(_parts(value))
    if name in WRITTEN_OUT and isinstance(value, str):
        return f"{name}: write it as a mapping (name: value), and not as the text of one"
    if name == "distributed_executor_backend" and value not in (*EXECUTORS, None):
        return f"{name}: {value} is not taken, only {', '.join(EXECUTORS)}: another {_MODULE}"
    if name == "compilation_config" and (found := [each for _, each in parts if DOTTED.fullmatch(str(each))]):
        return f"{name}: {found[0]} is not taken: it {_MODULE}"
    if name in ("speculative_config", "spec_method", "spec_model"):
        held = [value, *(each for key, each in parts if key in ("method", "model"))]
        # a model with dots and no slash is a class of the user's for vLLM, whatever the method
        if found := [each for each in held if each == "custom_class" or DOTTED.fullmatch(str(each))]:
            return f"{name}: {found[0]} is not taken: it {_MODULE}"
        accepts = [each for key, each in parts if key == "rejection_sample_method"]
        if changing := [each for each in accepts if each not in KEEPS_THE_MODEL]:
            return (
                f"{name}: rejection_sample_method {changing[0]} is not taken: it changes what the model "
                f"says, and no fingerprint holds it; take {' or '.join(KEEPS_THE_MODEL)}"
            )
    return None


def _parts(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every value inside a value, with the key that it stands under."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _parts(inner, str(name))
    elif isinstance(value, list):
        for inner in value:
            yield from _parts(inner, key)
    else:
        yield key, value


def check_card(arguments: dict[str, Any]) -> dict[str, Any]:
    """ValueError, as pydantic wants it, for what no card may state."""
    for name, value in arguments.items():
        if fault := fault_of(name) or fault_in(name, value):
            raise ValueError(fault)
    return arguments


def identity_of(arguments: dict[str, Any]) -> dict[str, Any]:
    """Those of a card's arguments that can change a response."""
    return {name: value for name, value in sorted(arguments.items()) if name not in HOW_IT_RUNS}


def read_flags(pairs: Iterable[str]) -> dict[str, Any]:
    """The values of --engine-arg, each name=value, the value YAML. RecipeError for what is no such flag."""
    given: dict[str, Any] = {}
    for pair in pairs:
        from pipeline.recipe.strict_yaml import parse  # only here: the command line's help loads no pydantic

        name, stated, text = pair.partition("=")
        if not stated:
            raise RecipeError(f"--engine-arg {pair}: expected name=value, as in enforce_eager=true")
        if fault := fault_of(name):
            raise RecipeError(f"--engine-arg {pair}: {fault}")
        if name in given:
            raise RecipeError(f"--engine-arg {name}: stands twice; state it once")
        if name not in HOW_IT_RUNS:
            raise RecipeError(f"--engine-arg {pair}: {_not_a_flag(name)}")
        given[name] = parse(text, f"--engine-arg {name}")
        if fault := fault_in(name, given[name]):
            raise RecipeError(f"--engine-arg {pair}: {fault}")
    return given


def num_parts(arguments: dict[str, Any], where: str) -> int | None:
    """Into how many parts the layers are cut, each on devices of its own; None where that is not stated."""
    if "pipeline_parallel_size" not in arguments:
        return None
    parts = arguments["pipeline_parallel_size"]
    if not isinstance(parts, int) or isinstance(parts, bool) or parts < 1:
        raise RecipeError(
            f"{where}: pipeline_parallel_size: expected a whole number from 1 (the parts that the layers are "
            f"cut into), found {parts!r}; write 2 for two parts, or leave it out"
        )
    return parts


def _not_a_flag(name: str) -> str:
    return (
        f"{name} is not among those that say how a model runs (speed, memory, devices)"
        f"{_near(name, HOW_IT_RUNS)}; one that can change what it says belongs into the card, under "
        "engine.arguments, and so into the fingerprint of its traces"
    )


def check_known(arguments: Iterable[str], known: set[str], where: str) -> None:
    """RecipeError for an argument that this vLLM does not have, with the nearest that it has."""
    for name in arguments:
        if name not in known:
            raise RecipeError(
                f"{where}: the vLLM here has no engine argument {name!r}{_near(name, known)} "
                "(vllm serve --help=all lists them)"
            )


def _near(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
    return f", did you mean {close[0]!r}?" if close else ""
