"""distilabel's vLLM class on the work of bench_peers, in distilabel's own environment: WORK.json in, ANSWERS.json out.

    ENVIRONMENT/bin/python ask_distilabel.py WORK.json ANSWERS.json

The class is called as its Task calls it, batch after batch, without the pipeline's processes around it.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import vllm
from distilabel.models.llms import vLLM

CHANGES = [
    "disable_cuda_device_placement=True: its own setting, without which it wants pynvml",
    "vllm.SamplingParams without logits_processors, which this vLLM no longer has (distilabel passes an empty list)",
]


def let_go_of_processors() -> None:
    """Once vLLM is loaded: its own modules want the class under that name."""
    made_as_before = vllm.SamplingParams

    def without_processors(*, logits_processors: list[Any], **arguments: Any) -> Any:
        assert not logits_processors
        return made_as_before(**arguments)

    vllm.SamplingParams = without_processors


def main(work: dict[str, Any]) -> dict[str, Any]:
    engine = dict(work["engine"])
    own = {name: engine.pop(name) for name in ("model", "revision", "tokenizer_revision", "dtype", "seed")}
    llm = vLLM(
        **own,
        quantization=engine.pop("quantization"),
        disable_cuda_device_placement=True,
        extra_kwargs=engine,
    )
    llm.load()
    let_go_of_processors()
    begun, answers = time.perf_counter(), []
    for first in range(0, len(work["chats"]), work["batch"]):
        answers += llm.generate_outputs(
            inputs=work["chats"][first : first + work["batch"]],
            num_generations=work["samples"],
            max_new_tokens=work["max_tokens"],
            temperature=work["temperature"],
            top_p=work["top_p"],
            skip_special_tokens=False,
        )
    seconds = time.perf_counter() - begun
    # what the engine makes of a text that distilabel prepares: asked afterwards, for distilabel does not tell
    once = vllm.SamplingParams(max_tokens=1, logits_processors=[])
    asked = llm._model.generate([llm.prepare_input(chat) for chat in work["chats"]], once, use_tqdm=False)
    return {
        "seconds": seconds,
        "texts": [answer["generations"] for answer in answers],
        "output_tokens": sum(sum(answer["statistics"]["output_tokens"]) for answer in answers),
        "prompts": [list(output.prompt_token_ids) for output in asked],
        "changes": CHANGES,
    }


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(main(json.loads(Path(sys.argv[1]).read_text()))))
