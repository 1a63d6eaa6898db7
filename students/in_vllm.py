"""Whether the vLLM that is installed here can answer with a student, asked before it is trained.

Of an architecture that the tests have seen answer, nothing is asked. Any other is started in a process of its
own, with random weights in place of the student's, and has to give one token: some load and then lack a
kernel, which only a start tells.
"""

import copy
import dataclasses
import logging
import os
import tempfile
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path

import torch
from transformers import PreTrainedModel

from pipeline.errors import StageError
from pipeline.flags import EngineFlags
from pipeline.recipe.cards import SampledModel
from pipeline.run.lifetime import die_with_parent
from pipeline.run.secrets import API_KEY, hidden

log = logging.getLogger(__name__)

# transformers' classes that tests/test_architectures.py trains, exports and asks in vLLM
ANSWERING = frozenset(
    f"{name}ForCausalLM"
    for name in (
        *("Qwen2", "Qwen3", "Qwen3Moe", "Qwen3Next", "Llama", "Mistral", "Gemma2", "Gemma3", "Gemma4"),
        *("SmolLM3", "Lfm2", "Olmo3", "Phi3", "GptOss", "GraniteMoeHybrid", "FalconH1"),
    )
)
SHARE = 0.9  # of the memory that is free on a GPU
# the core in the same process, whose error then is the cause and not a hint at a log
ALONE = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
LOG = "VLLM_LOGGING_LEVEL"


def check_answers(model: SampledModel, student: PreTrainedModel, prompt: list[int]) -> None:
    """StageError, with vLLM's reason, where it does not answer. Nothing is asked where there is no vLLM.

    What is asked is what would be exported: the class of the student, with its configuration.
    """
    name = type(student).__name__
    if name in ANSWERING or find_spec("vllm") is None:
        return
    log.info("asking vLLM whether it can answer with a %s", name)
    free, total = torch.cuda.mem_get_info() if torch.cuda.is_available() else (1, 1)
    flags = EngineFlags(concurrency=1, kv_cache_gib=1, gpu_memory_share=SHARE * free / total)
    with tempfile.TemporaryDirectory() as directory:
        write_config(student, Path(directory))
        # and no longer than it must be: the cache of all positions may be more than is free
        longest = min(model.max_model_len, len(prompt) + 1)
        shape = dataclasses.replace(model, model=directory, revision=None, max_model_len=longest)
        own = get_context("spawn"), die_with_parent, (os.getpid(),)
        try:
            with hidden(API_KEY, os.environ), ProcessPoolExecutor(1, *own) as child:
                fault = child.submit(fault_of, shape, flags, prompt).result()
        except BrokenProcessPool:
            fault = "its process was killed, as for lack of memory"
    if fault is None:
        return
    if "memory" in fault:
        log.warning("vLLM could not be asked whether it answers with a %s: %s", name, fault)
        return
    raise StageError(
        f"the vLLM here cannot answer with a {name}, so eval could not ask the student ({fault}; {LOG}=ERROR "
        "shows its log). Choose another student, or train this one all the same: make train "
        "ARGS=--without-vllm"
    )


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
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return None
