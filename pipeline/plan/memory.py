"""What training takes of a device's memory, from the student's sizes alone. Pure: `plan` prints it, and train
before its first step (students/memory.py).

The bytes that a layer keeps for the backward pass are those that torch saved for tiny Qwen3 students under
bf16 autocast, fitted over widths (exact; tests/test_memory.py counts them again). Attention keeps its four
vectors a token and nothing quadratic: variable-length kernels and sdpa's flash kernel both do so.
"""

from dataclasses import dataclass, replace

from pipeline.recipe.cards import ModelSize
from pipeline.recipe.schema import Train

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
EMBEDDING_BYTES = {
    "full": 4.0,
    "lora": 2.0,
    "qlora": 2.0,
}  # looked up, never cast; qlora leaves it in 16 bits
# TRL's fused head projects so many tokens on so much of the vocabulary at a time, and holds its gradient too
TILE_TOKENS, TILE_VOCABULARY, TILE_BYTES = 4096, 32768, 6.0
CHECKPOINTING, SHARDED = "--gradient-checkpointing", "students/launch/fsdp2.yaml"
SHARDS = (2, 4, 8, 16, 32, 64)
RUNTIME_GIB = 1.0  # CUDA's context, kernels and their work space
SLACK = 1.05  # blocks that the allocator holds and cannot use
GIB = 2.0**30


@dataclass(frozen=True, slots=True)
class Load:
    """One process's share of training: a micro-batch of `tokens`, `shards` processes that share the model."""

    method: str
    rank: int
    tokens: int
    checkpointing: bool = False
    shards: int = 1


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
    boundary = RESIDUAL_BYTES[kind] * size.hidden
    # recomputing one layer holds its activations and their gradients, beside the inputs of all
    kept = size.layers * boundary + 1.5 * layer if load.checkpointing else size.layers * layer
    trained = size.parameters if full else adapter_parameters(size, load.rank)
    embedding = size.vocabulary * size.hidden
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


def adapter_parameters(size: ModelSize, rank: int) -> float:
    """Of a LoRA on all linear layers of the blocks: `rank` rows in and out of each."""
    hidden, mlp, queries, keys = (
        size.hidden or 0,
        size.mlp or 0,
        size.queries or 0,
        size.kv_values_per_layer / 2,
    )
    return size.layers * rank * (2 * (hidden + queries) + 2 * (hidden + keys) + 3 * (hidden + mlp))


def load_of(recipe: Train, tokens_per_device: int, checkpointing: bool, shards: int = 1) -> Load:
    """The largest micro-batch that the recipe allows: one of so many tokens, or one example alone."""
    longest = max(tokens_per_device, recipe.max_length)
    tokens = min(longest, recipe.batch_size * recipe.max_length)
    return Load(recipe.method, recipe.lora.rank, tokens, checkpointing, shards)


def least_change(size: ModelSize, recipe: Train, load: Load, device_gib: float) -> tuple[str, Load | None]:
    """The least change of how train runs that fits `device_gib`, as its flags, and the load that it makes.

    No flags where it fits as it is; no load where no change fits, and the flags are then words. An example is
    never cut, so a micro-batch has at least train.max_length tokens.
    """
    smallest = replace(load, checkpointing=True, tokens=min(load.tokens, recipe.max_length))
    ways = {
        "": load,
        CHECKPOINTING: replace(load, checkpointing=True),
        f"{CHECKPOINTING} --tokens-per-device {recipe.max_length}": smallest,
        **{f"{n} processes of {SHARDED}, {CHECKPOINTING}": replace(smallest, shards=n) for n in SHARDS},
    }
    for flags, changed in ways.items():
        if fits(size, changed, device_gib):
            return flags, changed
    other = "" if load.method != "full" else ", or take method: lora"
    return f"lower train.max_length{other}", None


def fits(size: ModelSize, load: Load, device_gib: float) -> bool:
    found = need(size, load)
    return found is None or found.device_gib <= device_gib
