"""Whether the vLLM that is installed here can answer with a student, asked before it is trained.

Of an architecture that the tests have seen answer in the card's dtype, nothing is asked. Any other is started
in a process of its own, with random weights in place of the student's, and has to give one token: some load
and then lack a kernel, which only a start tells. A class that reads pictures too is refused unasked.
"""

import contextlib
import copy
import dataclasses
import logging
import os
import re
import signal
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from pipeline.errors import StageError, in_one_line
from pipeline.flags import EngineFlags
from pipeline.recipe.cards import SampledModel
from pipeline.run.lifetime import die_with_parent
from pipeline.run.secrets import API_KEY, hidden
from pipeline.sampling.engines.vllm import TURNED_RIGHT

log = logging.getLogger(__name__)

# transformers' classes that tests/test_architectures.py trains, exports and asks in vLLM
ANSWERING = TURNED_RIGHT | {"Lfm2ForCausalLM"}
# linear attention, which vLLM computes on a CPU in bf16 alone
IN_BF16 = frozenset({"Qwen3NextForCausalLM"})
SECONDS_TO_END = 30  # of a process that has answered
SHARE = 0.9  # of the memory that is free on a GPU
# the core in the same process, whose error then is the cause and not a hint at a log
ALONE = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
LOG = "VLLM_LOGGING_LEVEL"
# what torch, the system and vLLM say where memory is what lacks; an illegal access to it is another fault
LACKS_MEMORY = re.compile(
    r"MemoryError|out of memory|allocate memory|No available memory for the cache|available KV cache memory"
    r"|Free memory on device",
    re.IGNORECASE,
)
KILLED = "its process was killed, as the system does where it runs out of memory"


def check_answers(model: SampledModel, student: PreTrainedModel, prompt: list[int]) -> None:
    """StageError, with vLLM's reason, where it does not answer. Nothing is asked where there is no vLLM.

    What is asked is what would be exported: the class of the student, with its configuration.
    """
    name = type(student).__name__
    if known_to_answer(name, model.dtype) or find_spec("vllm") is None:
        return
    log.info("asking vLLM whether it can answer with a %s in %s", name, model.dtype)
    free, total = torch.cuda.mem_get_info() if torch.cuda.is_available() else (1, 1)
    flags = EngineFlags(concurrency=1, kv_cache_gib=1, gpu_memory_share=SHARE * free / total)
    with tempfile.TemporaryDirectory() as directory:
        write_config(student, Path(directory))
        # and no longer than it must be: the cache of all positions may be more than is free
        longest = min(model.max_model_len, len(prompt) + 1)
        shape = dataclasses.replace(model, model=directory, revision=None, max_model_len=longest)
        with hidden(API_KEY, os.environ):
            fault = asked_apart(fault_of, shape, flags, prompt)
    if fault is None:
        return
    if LACKS_MEMORY.search(fault):
        log.warning("vLLM could not be asked whether it answers with a %s: %s", name, fault)
        return
    other = ", state dtype: bfloat16 in its card" if model.dtype != "bfloat16" else ""
    raise StageError(
        f"the vLLM here cannot answer with a {name} in {model.dtype}, so eval could not ask the student "
        f"({fault}; {LOG}=ERROR shows its log). Choose another student{other}, or train this one all the "
        "same: make train ARGS=--without-vllm"
    )


def known_to_answer(name: str, dtype: str) -> bool:
    """Whether the tests have seen that class answer, and nothing is known against the dtype: in
    float16 some are refused (Gemma)."""
    return name in ANSWERING and (dtype == "bfloat16" or (dtype == "float32" and name not in IN_BF16))


def asked_apart(ask: Callable[..., str | None], *arguments: Any) -> str | None:
    """What `ask` answers in a process of its own; where that ends without an answer, how it ended."""
    context = get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(sender, os.getpid(), ask, arguments))
    process.start()
    sender.close()
    try:
        wait([receiver, process.sentinel])  # the process tells its end where one of its own outlives it
        with contextlib.suppress(EOFError):
            if receiver.poll():
                answer: str | None = receiver.recv()
                process.join(SECONDS_TO_END)
                return answer
        process.join()
        return ending(process.exitcode or 0)
    finally:
        process.kill()
        process.join()


def ending(code: int) -> str:
    """In words: killed by the system is memory, any other signal is a fault of the program."""
    if code == -signal.SIGKILL:
        return KILLED
    if code < 0:
        known = {number.value: number.name for number in signal.Signals}
        return f"its process was ended by {known.get(-code, f'signal {-code}')}"
    return f"its process ended with exit code {code} and no answer"


def _answer(
    sender: "Connection[Any, Any]", parent: int, ask: Callable[..., str | None], arguments: tuple[Any, ...]
) -> None:
    die_with_parent(parent)
    sender.send(ask(*arguments))


def write_config(student: PreTrainedModel, directory: Path) -> None:
    """Write config.json as `save_pretrained` would of the student in full precision."""
    config = copy.deepcopy(student.config)
    config.architectures = [type(student).__name__]
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.save_pretrained(directory)


def fault_of(model: SampledModel, flags: EngineFlags, prompt: list[int]) -> str | None:
    """What keeps vLLM from giving one token with a model of this configuration; it takes over the process."""
    from pipeline.sampling.engines.vllm import engine_arguments, engine_environment

    try:
        with engine_environment(offline=True, mark=ALONE | {LOG: os.environ.get(LOG, "CRITICAL")}):
            from vllm import LLM, SamplingParams
            from vllm.inputs import TokensPrompt

            # no weights, no tokenizer, and no graphs: they take longer to capture than the token
            sparing = {"load_format": "dummy", "skip_tokenizer_init": True, "enforce_eager": True}
            engine = LLM(**engine_arguments(model, flags) | sparing)
            greedy = SamplingParams(temperature=0.0, max_tokens=1, detokenize=False)
            engine.generate(TokensPrompt(prompt_token_ids=prompt), greedy, use_tqdm=False)
    except Exception as error:  # noqa: BLE001  # of any kind: each architecture is code of its own
        return f"{type(error).__name__}: {in_one_line(error, 300)}"
    return None
