"""Prompts as token ids: the tokenizer's chat template with the generation prompt, the same everywhere.

Token ids and not text go to the engine, so nothing is tokenized twice and no beginning-of-text token doubles.
Training renders its examples with the same template and options.
"""

import asyncio
import contextlib
import json
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from pipeline.errors import RecipeError, StageError, in_one_line
from pipeline.recipe.cards import SampledModel
from pipeline.recipe.prompts import Chat
from pipeline.recipe.reading import Files, template_of
from pipeline.recipe.templates import TEMPLATE_FAULTS, TEMPLATE_SECONDS, ending_within
from pipeline.records import Problem
from pipeline.sampling.job import Job

# what a template that prints the day's date prints (those of Llama 3.2 and later, of gpt-oss): the date that
# Llama's has where it cannot ask, so that a prompt is the same on every day
THE_DAY = datetime(2024, 7, 26)
DATE_OF = "strftime_now"  # what such a template calls


class ChatPrompts:
    """The chat template of `tokenizer`, or the one that the model's card puts in its place."""

    def __init__(self, tokenizer: Any, model: SampledModel) -> None:
        self._tokenizer = tokenizer
        self._model = model.model
        self.stop_token_ids = [] if model.eos is None else [token_id(tokenizer, model.eos, model.model)]
        self._options: dict[str, Any] = dict(model.template_options)
        self._without_thinking = dict(model.without_thinking)
        if model.template is not None:
            self._options["chat_template"] = Path(model.template).read_text(encoding="utf-8")
        template = self._options.get("chat_template") or tokenizer.chat_template
        self.is_dated = DATE_OF in str(template)
        if self.is_dated:
            self._options.setdefault("strftime_now", THE_DAY.strftime)
        self._proven = False

    def ids(self, messages: list[dict[str, str]], thinking: bool = True) -> list[int]:
        """Token ids of the prompt, up to and with what opens the answer; not `thinking`: in the mode that the
        card knows for it, if any."""
        how = {"tokenize": True, "add_generation_prompt": True, "return_dict": False}
        return list(self._apply(messages, thinking, **how))

    def text(
        self, messages: list[dict[str, str]], generation_prompt: bool = True, thinking: bool = True
    ) -> str:
        """The chat as the template writes it, before it becomes ids."""
        return str(self._apply(messages, thinking, tokenize=False, add_generation_prompt=generation_prompt))

    def _apply(self, messages: list[dict[str, str]], thinking: bool, **how: bool) -> Any:
        """RecipeError where the template cannot be read, does not end, or refuses the chat (a role)."""
        from jinja2 import TemplateError

        try:
            with contextlib.nullcontext() if self._proven else ending_within(TEMPLATE_SECONDS):
                options = self._options if thinking else self._options | self._without_thinking
                made = self._tokenizer.apply_chat_template(messages, **how, **options)
            self._proven = True
            return made
        except TimeoutError:
            raise RecipeError(
                f"{self._model}: its chat template has not ended after {TEMPLATE_SECONDS:g} s on a chat of "
                f"{len(messages)} messages: it loops. Correct it, or name another as `template` in the card"
            ) from None
        except (TemplateError, *TEMPLATE_FAULTS) as error:
            roles = ", ".join(message["role"] for message in messages)
            raise RecipeError(
                f"{self._model}: its chat template fails on the roles {roles} ({error}). Correct it, or name "
                "another as `template` in the model's card"
            ) from None

    def encode(self, text: str) -> list[int]:
        """Token ids of a text that stands inside a chat: no special tokens are added around it."""
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def decode(self, ids: Sequence[int]) -> str:
        """Text with special tokens: a model may mark its thinking with them."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=False)


class RendersPrompts:
    """The part of an engine that renders the prompts of its model here, from the files of its tokenizer."""

    _model: SampledModel
    _prompts: ChatPrompts | None = None

    async def prompts(self) -> ChatPrompts | None:
        if self._prompts is None:
            self._prompts = await asyncio.to_thread(load_prompts, self._model)
        return self._prompts

    def prompt(self, messages: Chat) -> list[int]:
        assert self._prompts is not None, "ready() comes first"
        return self._prompts.ids(messages)


def token_id(tokenizer: Any, token: str, model: str, key: str = "eos") -> int:
    """The id of one token. RecipeError where the tokenizer has no such token, which `key` names."""
    found = tokenizer.convert_tokens_to_ids(token)
    if found is None or (found == tokenizer.unk_token_id and token != tokenizer.unk_token):
        named = (
            f"which the student's card names as `{key}`, so no response could end. State the token that ends "
            "the template's turn"
            if key == "eos"
            else f"which {key} names. State tokens that are there, or leave it out"
        )
        raise RecipeError(f"{model}: its tokenizer has no token {token!r}, {named}")
    return int(found)


def is_dated(model: SampledModel) -> bool:
    """Whether the template that the card names, or that lies in the model's directory, prints the day's date;
    told without a tokenizer's library."""
    if model.template is not None:
        return DATE_OF in Path(model.template).read_text(encoding="utf-8")
    if not Path(model.model).is_dir():
        return False
    files = Files(model.model)
    return DATE_OF in (template_of(files, files.json("tokenizer_config.json")) or "")


def load_prompts(model: SampledModel, local_only: bool = False) -> ChatPrompts | None:
    """The prompts of a model whose engine has not started; of its files only the tokenizer's are read.

    None where the tokenizer has no chat template (vLLM knows some models' formats by itself), or where
    `local_only` is set and the files are not on this machine.
    """
    if local_only and not is_here(model):
        return None
    try:
        tokenizer = load_tokenizer(model.model, model.revision, local_only)
    except StageError:
        if local_only and not Path(model.model).is_dir():
            return None  # the hub's cache holds a part of it
        raise
    if tokenizer.chat_template is None and model.template is None:
        return None
    return ChatPrompts(tokenizer, model)


def load_tokenizer(model: str, revision: str | None, local_only: bool = False) -> Any:
    """A tokenizer from its files. StageError, with the torn file if there is one, where it cannot load."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            model, revision=revision, local_files_only=local_only, trust_remote_code=False
        )
    except Exception as error:  # noqa: BLE001  # its readers raise KeyError, TypeError, Exception
        said = f"{type(error).__name__}: {in_one_line(error, 300)}"
        raise StageError(
            f"{torn_file(model) or model}: its tokenizer cannot be loaded ({said}). Fetch the whole "
            "checkpoint, with its tokenizer.json (a Git LFS pointer is not enough: git lfs pull); one that "
            "needs code of its own is never run"
        ) from None


def torn_file(model: str) -> Path | None:
    """The first file of a local model that a tokenizer is read from and that does not hold a JSON object."""
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        path = Path(model) / name
        try:
            if not isinstance(json.loads(path.read_bytes()), dict):
                return path
        except OSError:
            continue
        except ValueError:
            return path
    return None


def is_here(model: SampledModel) -> bool:
    """Whether a tokenizer of the model is on this machine, told without importing its loader."""
    if Path(model.model).is_dir():
        return True
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(model.model, "tokenizer_config.json", revision=model.revision)
    except HFValidationError:  # no hub id: a name that only the server knows
        return False
    return isinstance(found, str)


def check_lengths(job: Job, problems: Iterable[Problem], prompts: ChatPrompts) -> None:
    """RecipeError where a prompt and max_tokens exceed max_model_len, so that the engine would cut the trace.

    A prompt has at most as many tokens as its template and one for each byte of the question, so only the
    few that come near the limit are tokenized.
    """
    room = job.model.max_model_len - job.sampling.max_tokens
    frame = max(len(prompts.ids(job.prompt.messages("", source))) for source in ("", *job.prompt.by_source))
    longest, num_long = 0, 0
    for problem in problems:
        if frame + len(problem.question.encode()) <= room:
            continue
        length = len(prompts.ids(job.prompt.messages(problem.question, problem.source)))
        longest = max(longest, length)
        num_long += length > room
    if num_long:
        raise RecipeError(
            f"sampling.max_tokens: {job.sampling.max_tokens:,} and the longest prompt of {longest:,} tokens "
            f"exceed the max_model_len {job.model.max_model_len:,} of {job.model.name} ({num_long:,} "
            f"problems do). Set max_tokens to at most {max(job.model.max_model_len - longest, 1):,}, or "
            "raise engine.max_model_len in the card as far as the model allows"
        )
