"""What training takes of a device's memory, from the student's sizes alone. Pure: `plan` prints it, and train
before its first step (students/memory.py).

The bytes that a layer keeps for the backward pass are those that torch saved for tiny Qwen3 students under
bf16 autocast, fitted over widths (exact; tests/test_memory.py counts them again). Attention keeps its four
vectors a token and nothing quadratic: variable-length kernels and sdpa's flash kernel both do so. A student
whose own attention is eager (soft caps, sinks) keeps its scores as well, which `plan` does not know of.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pipeline.recipe.cards import ModelSize
from pipeline.recipe.schema import Polish, TopkLoss, Train

# bytes a token and layer that backward needs, a unit of width: hidden, MLP, queries, keys (or values).
# Full fine-tuning keeps the residual stream in fp32 and casts a copy for each of the projections.
# The terms of queries and keys are those of Qwen3, which norms both; Llama keeps about half of these two.
KEPT_BYTES = {"full": (26.0, 8.0, 12.5, 10.25), "lora": (18.0, 8.0, 10.5, 8.25)}
RESIDUAL_BYTES = {"full": 4, "lora": 2}  # the layer's input, all that gradient checkpointing keeps
ADAPTED_MODULES = 7  # linear layers of a block that all-linear adapts; each keeps `rank` values of 16 bits
# bytes for each trained parameter: gradient and AdamW's two moments in fp32
GRADIENT, OPTIMIZER = 4.0, 8.0
# of a weight: full fine-tuning holds fp32 and autocast's copy in 16 bits; NF4 with its quantised constants
WEIGHT_BYTES = {"full": 6.0, "lora": 2.0, "qlora": 0.52}
# looked up, never cast, and 16 bits in qlora; so is a head of its own, which is projected in tiles
EMBEDDING_BYTES = {
    "full": 4.0,
    "lora": 2.0,
    "qlora": 2.0,
}
# TRL's fused head projects so many tokens on so much of the vocabulary at a time, and holds its gradient too
TILE_TOKENS, TILE_VOCABULARY, TILE_BYTES = 4096, 32768, 6.0
# of the loss of sampled tokens, a token and entry of the vocabulary: the log-probabilities, their gradient
# and that of the logits, in fp32
SAMPLED_BYTES = 12.0
SCORE_BYTES = 8.0  # of each score of eager attention: in 16 and 32 bits, with those after the soft cap
CHECKPOINTING, SHARDED = "--gradient-checkpointing", "students/launch/fsdp2.yaml"
SHARING = "--context-parallel"
SHARDS = (2, 4, 8, 16, 32, 64)
RUNTIME_GIB = 1.0  # CUDA's context, kernels and their work space
SLACK = 1.05  # blocks that the allocator holds and cannot use
GIB = 2.0**30


@dataclass(frozen=True, slots=True)
class Load:
    """One process's share of training: its `tokens` of a micro-batch, `shards` processes that share the
    model, `sharers` that share each row, and the `scores` of a token and layer that eager attention keeps."""

    method: str
    rank: int
    tokens: int
    checkpointing: bool = False
    shards: int = 1
    sharers: int = 1
    scores: int = 0


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes at the peak."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    logits: float

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits

    @property
    def device_gib(self) -> float:
        """What a device must have for it."""
        return self.total * SLACK / GIB + RUNTIME_GIB

    def __str__(self) -> str:
        parts = {name: getattr(self, name) / GIB for name in self.__slots__}
        return ", ".join(f"{name} {gib:,.2f}" for name, gib in parts.items())


def need(size: ModelSize, load: Load) -> Need | None:
    """None where the widths of the student are not known."""
    if size.hidden is None or size.mlp is None or size.queries is None or size.vocabulary is None:
        return None
    full = load.method == "full"
    kind = "full" if full else "lora"
    widths = (size.hidden, size.mlp, size.queries, size.kv_values_per_layer / 2)
    layer = sum(each * width for each, width in zip(KEPT_BYTES[kind], widths, strict=True))
    layer += 0 if full else ADAPTED_MODULES * load.rank * 2
    layer += SCORE_BYTES * load.scores
    boundary = RESIDUAL_BYTES[kind] * size.hidden
    # recomputing one layer holds its activations and their gradients, beside the inputs of all
    kept = size.layers * boundary + 1.5 * layer if load.checkpointing else size.layers * layer
    trained = size.parameters if full else adapter_parameters(size, load.rank)
    embedding = size.vocabulary * size.hidden * (1 if is_tied(size) else 2)
    weights = (size.parameters - embedding) * WEIGHT_BYTES[load.method] + embedding * EMBEDDING_BYTES[
        load.method
    ]
    held = weights + (0 if full else 4 * trained)
    tile = min(load.tokens, TILE_TOKENS) * min(size.vocabulary, TILE_VOCABULARY) * TILE_BYTES
    return Need(
        weights=held / load.shards,
        gradients=trained * GRADIENT / load.shards,
        optimizer=trained * OPTIMIZER / load.shards,
        activations=load.tokens
        * (kept + 4 * boundary),  # the last norm, the head's input and their gradients
        logits=tile,
    )


def polish_need(
    size: ModelSize, recipe: Polish, tokens_per_device: int, longest: int, cache: float
) -> Need | None:
    """Of the student in polish on a GPU, without its teacher: while it is updated or, where that is more,
    while it samples with so many bytes of `cache`. `longest`: tokens of a prompt and its response."""
    rows = rows_at_once(recipe.batch_size, tokens_per_device, longest)
    found = need(size, Load(recipe.method, recipe.lora.rank, rows * longest, checkpointing=True))
    if found is None:
        return None
    whole = rows * recipe.max_tokens * (size.vocabulary or 0) * SAMPLED_BYTES
    logits = whole if recipe.divergence == "sampled" else 2 * found.logits  # TRL's tiles, of both models
    sampling = replace(found, gradients=0.0, activations=cache, logits=0.0)
    return max(replace(found, logits=logits), sampling, key=lambda each: each.total)


def rows_at_once(batch_size: int, tokens_per_device: int, longest: int) -> int:
    """Responses of a micro-batch of polish: as many as fit, of which an update of `batch_size` is made."""
    rows = max(1, min(batch_size, tokens_per_device // longest))
    while batch_size % rows:
        rows -= 1
    return rows


def is_tied(size: ModelSize) -> bool:
    """Whether the head is the embedding, by what the layers leave of the parameters; widths are known."""
    hidden, mlp, queries = size.hidden or 0, size.mlp or 0, size.queries or 0
    layer = hidden * (2 * queries + size.kv_values_per_layer + 3 * mlp)
    return size.parameters - size.layers * layer < 1.5 * (size.vocabulary or 0) * hidden


def adapter_parameters(size: ModelSize, rank: int) -> float:
    """Of a LoRA on all linear layers of the blocks: `rank` rows in and out of each."""
    hidden, mlp, queries, keys = (
        size.hidden or 0,
        size.mlp or 0,
        size.queries or 0,
        size.kv_values_per_layer / 2,
    )
    return size.layers * rank * (2 * (hidden + queries) + 2 * (hidden + keys) + 3 * (hidden + mlp))


def load_of(
    recipe: Train, tokens_per_device: int, checkpointing: bool, shards: int = 1, sharers: int = 1
) -> Load:
    """The largest micro-batch that the recipe allows: one of so many tokens, or one example alone, or a run
    of it."""
    longest = max(tokens_per_device, math.ceil(recipe.max_length / sharers))
    tokens = min(longest, math.ceil(recipe.batch_size * recipe.max_length / sharers))
    return Load(recipe.method, recipe.lora.rank, tokens, checkpointing, shards, sharers)


def least_change(
    size: ModelSize, recipe: Train, load: Load, device_gib: float, sharing: Sequence[int] = ()
) -> tuple[str, Load | None]:
    """The least change of how train runs that fits `device_gib`, as its flags, and the load that it makes.

    No flags where it fits as it is; no load where no change fits, and the flags are then words. A micro-batch
    has at least train.max_length tokens, of which each process that shares it has a run; `sharing`: how many
    processes can share one.
    """
    ways = {"": load, CHECKPOINTING: replace(load, checkpointing=True)}
    for shards in (load.shards, *(number for number in SHARDS if number > load.shards)):
        most = max((number for number in sharing if shards % number == 0), default=1)
        for sharers in sorted({load.sharers, max(load.sharers, most)}):
            run = math.ceil(recipe.max_length / sharers)
            words = [f"{shards} processes of {SHARDED},"] if shards > load.shards else []
            words += [CHECKPOINTING]
            words += [f"--tokens-per-device {run}"] if run < load.tokens else []
            words += [f"{SHARING} {sharers}"] if sharers > load.sharers else []
            tokens = min(load.tokens, run)
            ways[" ".join(words)] = replace(
                load, checkpointing=True, tokens=tokens, shards=shards, sharers=sharers
            )
    for flags, changed in ways.items():
        if fits(size, changed, device_gib):
            return flags, changed
    other = "" if load.method != "full" else ", or take method: lora"
    return f"lower train.max_length{other}", None


def sharers_of(size: ModelSize, recipe: Train) -> list[int]:
    """How many processes can share a row, by the student's heads where they are known; a state that a layer
    carries along the row is not seen here."""
    if isinstance(recipe.loss, TopkLoss) or not size.queries:
        return []
    if (keys := size.kv_heads) is None:
        return [*SHARDS]
    heads = size.queries * 2 * keys // size.kv_values_per_layer
    return [number for number in SHARDS if share_out(heads, keys, number)]


def share_out(heads: int, keys: int, number: int) -> bool:
    """Whether `number` processes get as many heads each, and as many that hold keys or one in common."""
    return heads % number == 0 and (keys % number == 0 or number % keys == 0)


def fits(size: ModelSize, load: Load, device_gib: float) -> bool:
    found = need(size, load)
    return found is None or found.device_gib <= device_gib
