"""What a model says of itself: positions, end of turn, thinking tags, dtype, size and licence.

Read from the files of a directory, or of the hub; no weights are loaded and no code of the model is run. A
card's keys that the user does not give are taken from here, and `python -m pipeline card` prints them.
"""

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pipeline.errors import RecipeError, in_one_line
from pipeline.recipe.templates import rendered

Kind = Literal["teacher", "student"]
NONE = "none"  # what a card says of a model that writes no thinking block
# how published models mark thinking
HARMONY = ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>")
TAGS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("<reasoning>", "</reasoning>"),
    HARMONY,
)
DTYPES = ("bfloat16", "float16", "float32")
POSITIONS = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length")
# what configurations call the experts of a layer, and how many of them a token is sent to
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
EXPERTS_PER_TOKEN = (
    "num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_top_k", "moe_k", "top_k_experts",
)  # fmt: skip
# a teacher's cache holds one sequence of this length at least: longer ones are asked for in a card
MAX_MODEL_LEN = 32_768
MARK = "retort-marks-the-answer"
# licences that set no condition on what is trained on a model's outputs
OPEN_LICENCES = ("apache-2.0", "mit", "bsd", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "unlicense")


@dataclass(slots=True)
class Files:
    """The small files of a model: in a directory, or on the hub (in its cache where that cannot be asked)."""

    model: str
    revision: str | None = None
    held: dict[str, str | None] = field(default_factory=dict)

    def text(self, name: str) -> str | None:
        """None where the model has no such file. RecipeError where that cannot be told."""
        if name not in self.held:
            path = self.path(name)
            try:
                self.held[name] = None if path is None else path.read_text(encoding="utf-8")
            except FileNotFoundError:
                self.held[name] = None
            except (OSError, UnicodeDecodeError) as error:
                raise RecipeError(f"{path}: cannot be read ({error}); fetch the whole model") from None
        return self.held[name]

    def path(self, name: str) -> Path | None:
        if os.path.isdir(self.model):  # which is False, no error, for a name that is too long
            return Path(self.model, name)
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

        said: Exception
        try:
            return Path(hf_hub_download(self.model, name, revision=self.revision))
        except LocalEntryNotFoundError as error:
            if name != "config.json":  # the cache of a fetched model holds what the model has
                return None
            said = error
        except EntryNotFoundError:
            return None
        except (HfHubHTTPError, OSError, ValueError) as error:  # the last: no hub id
            said = error
        raise RecipeError(
            f"{self.model}: is no directory here, and its {name} cannot be fetched from the hub "
            f"({in_one_line(said, 160)}). Fetch the model first, or state in a card what would be "
            "read from it (python -m pipeline schema student)"
        )

    def json(self, name: str) -> dict[str, Any]:
        """The object in a file; {} where there is none. RecipeError where it is torn."""
        text = self.text(name)
        try:
            return {} if text is None else dict(json.loads(text))
        except (ValueError, TypeError) as error:
            raise RecipeError(
                f"{self.model}: its {name} is not a JSON object ({error}). Fetch the whole model (a Git LFS "
                "pointer is not enough: git lfs pull)"
            ) from None


@dataclass(frozen=True, slots=True)
class Tokens:
    """What the tokenizer's files say: the template, the special tokens, and every token that was added."""

    template: str | None
    special: dict[str, str]
    added: frozenset[str]

    def write(self, chat: list[dict[str, str]], prompt: bool) -> str:
        return rendered(self.template, chat, prompt, **self.special) if self.template else ""


def read_card(kind: Kind, model: str, revision: str | None = None) -> dict[str, Any]:
    """The keys of a card that the model's files tell, `facts` with where each was read. RecipeError where
    there is no such model."""
    files = Files(model, revision)
    config = files.json("config.json")
    if not config:
        raise RecipeError(
            f"{model}: has no config.json, so it cannot be read as a model. Name the directory that "
            "save_pretrained wrote (a GGUF file is converted first)"
        )
    tokens = tokens_of(files)
    nested = config.get("text_config")  # of a model that sees pictures too
    inner = nested if nested and isinstance(nested, dict) else config
    dtype = config.get("dtype") or config.get("torch_dtype") or inner.get("dtype") or inner.get("torch_dtype")
    dtype = dtype if dtype in DTYPES else "bfloat16"
    positions = next((inner[name] for name in POSITIONS if isinstance(inner.get(name), int)), None)
    licence = licence_of(files)
    card: dict[str, Any] = {"licence": licence or "unknown"}
    facts = {"licence": "README.md of the model" if licence else "stated nowhere in the model's files"}
    if positions is not None:
        name = "engine.max_model_len" if kind == "teacher" else "max_positions"
        facts[name] = positions_said(kind, positions)
    if kind == "teacher":
        card |= teacher_keys(tokens, dtype, positions, licence)
        facts["training_on_outputs"] = "the licence" if licence else "stated nowhere"
    else:
        card |= student_keys(tokens, dtype, positions)
        facts["eos"] = "what ends the template's turn" if card.get("eos") else "found nowhere: state it"
    facts["thinking"] = "the chat template" if tokens.template else "the model has no chat template"
    size = size_of(model, inner)
    if size is not None:
        card["size"] = size
        facts["size"] = "config.json and the headers of the weights"
    return card | {"facts": facts}


def positions_said(kind: Kind, positions: int) -> str:
    found = f"config.json, {positions:,} positions"
    cut = kind == "teacher" and positions > MAX_MODEL_LEN
    return f"{found}, of which {MAX_MODEL_LEN:,} are taken for the cache's sake" if cut else found


def teacher_keys(tokens: Tokens, dtype: str, positions: int | None, licence: str | None) -> dict[str, Any]:
    engine: dict[str, Any] = {"dtype": dtype}
    if positions is not None:
        engine["max_model_len"] = min(positions, MAX_MODEL_LEN)
    free = (licence or "").lower() in OPEN_LICENCES
    return {
        "thinking": thinking_of(tokens) or NONE,
        "engine": engine,
        "training_on_outputs": "allowed" if free else "unstated",
    }


def student_keys(tokens: Tokens, dtype: str, positions: int | None) -> dict[str, Any]:
    """A base without a template gets one of ours; one whose template knows no thinking learns to write it."""
    card: dict[str, Any] = {"dtype": dtype}
    if positions is not None:
        card["max_positions"] = positions
    eos = tokens.special.get("eos_token")
    if tokens.template is not None:
        card["thinking"] = thinking_of(tokens) or tags("<think>", "</think>", False)
        eos = turn_end(tokens) or eos
    else:
        knows_turns = "<|im_end|>" in tokens.added
        card["template"] = "chatml-think.jinja" if knows_turns else "plain-think.jinja"
        card["thinking"] = tags("<think>", "</think>", True)
        eos = "<|im_end|>" if knows_turns else eos
    return card if eos is None else card | {"eos": eos}


def tags(opening: str, closing: str, opened_by_prompt: bool) -> dict[str, Any]:
    return {"open": opening, "close": closing, "opened_by_prompt": opened_by_prompt}


def thinking_of(tokens: Tokens) -> dict[str, Any] | None:
    """How the template marks thinking, and whether its generation prompt opens the block; None where it names
    no tag that we know."""
    template = tokens.template or ""
    for opening, closing in TAGS:
        names = ("<|channel|>analysis",) if opening == HARMONY[0] else (opening, closing)
        if any(name in template for name in names):
            prompt = tokens.write([{"role": "user", "content": "1"}], prompt=True)
            return tags(opening, closing, prompt.rstrip().endswith(opening))
    return None


def turn_end(tokens: Tokens) -> str | None:
    """The added token that the template writes behind an assistant's message."""
    chat = [{"role": "user", "content": "1"}, {"role": "assistant", "content": MARK}]
    after = tokens.write(chat, prompt=False).partition(MARK)[2].lstrip()
    known = {*tokens.added, *tokens.special.values()}
    return max((token for token in known if token and after.startswith(token)), key=len, default=None)


def tokens_of(files: Files) -> Tokens:
    config = files.json("tokenizer_config.json")
    special = {}
    for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
        token = config.get(name)
        text = token.get("content") if isinstance(token, dict) else token
        if isinstance(text, str):
            special[name] = text
    added = [
        *entries(files.json("tokenizer.json").get("added_tokens")),
        *entries(config.get("added_tokens_decoder")),
    ]
    named = [entry.get("content") for entry in added if isinstance(entry, dict)]
    return Tokens(
        template_of(files, config), special, frozenset(text for text in named if isinstance(text, str))
    )


def entries(held: Any) -> list[Any]:
    """Those of a list, or of an object by ids; none of anything else."""
    return [*held.values()] if isinstance(held, dict) else held if isinstance(held, list) else []


def template_of(files: Files, config: dict[str, Any]) -> str | None:
    """A file of its own, or a key of tokenizer_config.json, where several are told apart by name."""
    held = files.text("chat_template.jinja") or config.get("chat_template")
    held = held or files.json("chat_template.json").get("chat_template")
    if isinstance(held, list):
        named = {entry.get("name"): entry.get("template") for entry in held if isinstance(entry, dict)}
        held = named.get("default")
    return held if isinstance(held, str) else None


def licence_of(files: Files) -> str | None:
    """What the front matter of the model's README says."""
    text = files.text("README.md") or ""
    front = text.removeprefix("---").partition("\n---")[0] if text.startswith("---") else ""
    found = re.search(r"^licen[sc]e:[ \t]*[\"']?([\w.+-]+)", front, re.MULTILINE)
    return found[1] if found else None


def size_of(model: str, config: dict[str, Any]) -> dict[str, Any] | None:
    """The keys of `size`, from a directory's own files; None where they do not tell."""
    directory = Path(model)
    try:
        parameters, num_bytes = stored_weights(directory) if os.path.isdir(model) else (0, 0)
    except (ValueError, TypeError, KeyError):  # a torn file: who loads the weights says which
        return None
    counts = {name: count for name, count in config.items() if isinstance(count, int) and count > 0}
    layers, heads, hidden = map(counts.get, ("num_hidden_layers", "num_attention_heads", "hidden_size"))
    if not parameters or layers is None or heads is None or hidden is None:
        return None
    head_dim = counts.get("head_dim", hidden // heads)
    kv_heads = counts.get("num_key_value_heads", heads)
    kv_values, latent = 2 * kv_heads * head_dim, counts.get("kv_lora_rank")
    if latent is not None:  # latent attention keeps one compressed row for all heads
        kv_heads, kv_values = 1, latent + counts.get("qk_rope_head_dim", 0)
    experts, active = experts_of(config)
    idle = expert_weights(directory, experts) * (1 - active / experts) if experts > 1 else 0
    return {
        "parameters": float(parameters),
        "active_parameters": float(parameters - idle),
        "bytes_per_parameter": num_bytes / parameters,
        "layers": layers,
        "kv_values_per_layer": kv_values,
        "kv_heads": kv_heads,
        "hidden": hidden,
        "mlp": counts.get("intermediate_size") if experts == 1 else None,
        "queries": heads * head_dim,
        "vocabulary": counts.get("vocab_size"),
    }


def experts_of(config: Mapping[str, Any]) -> tuple[int, int]:
    """How many experts a layer of a mixture has beside those that all tokens share, and how many of them a
    token is sent to, all where that is not said: no bill is then too low. (1, 1) for a dense model."""

    def first(names: tuple[str, ...], otherwise: int) -> int:
        values = (config.get(name) for name in names)
        most = (max(value, default=None) if isinstance(value, list) else value for value in values)
        return next((value for value in most if isinstance(value, int) and value > 0), otherwise)

    experts = first(EXPERTS, 1)
    return experts, min(first(EXPERTS_PER_TOKEN, experts), experts)


def expert_weights(directory: Path, experts: int) -> int:
    """Parameters of all experts of a mixture's checkpoint, without those that all tokens share: the tensors
    below a module `experts`, and those that hold one matrix for each of them."""
    return sum(
        math.prod(tensor["shape"])
        for name, tensor in stored_tensors(directory)
        if "experts" in name.split(".") or (len(tensor["shape"]) == 3 and tensor["shape"][0] == experts)
    )


def stored_weights(directory: Path) -> tuple[int, int]:
    """Parameters of a checkpoint and the bytes that they take."""
    parameters = num_bytes = 0
    for _, tensor in stored_tensors(directory):
        parameters += math.prod(tensor["shape"])
        num_bytes += tensor["data_offsets"][1] - tensor["data_offsets"][0]
    return parameters, num_bytes


def stored_tensors(directory: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name, shape and place of all tensors of a checkpoint, from the headers of its safetensors files."""
    for path in directory.glob("*.safetensors"):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        yield from ((name, tensor) for name, tensor in header.items() if name != "__metadata__")
