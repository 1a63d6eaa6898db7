"""ray.data.llm on the work of bench_peers, in its own environment: WORK.json in, ANSWERS.json out.

    ENVIRONMENT/bin/python ask_ray.py WORK.json ANSWERS.json

Its stages and their settings are the defaults: chat template, tokens, engine. One row is one sample, for of a
request's samples its engine stage hands on the first alone. The engine starts inside the run, so the seconds are
taken from the engine's own clock: from the first request that is queued to the last token of all.
"""

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import ray
from ray.data.llm import build_processor, vLLMEngineProcessorConfig

CHANGES = [
    "log_engine_metrics=False: the exporter of engine metrics is for another vLLM",
    "placement_group_config of one CPU: by default the engine waits for a GPU",
    "detokenize_stage=False: it drops special tokens, and the engine has written the text by then",
    "disable_log_stats=False: the times of requests are wanted",
    "RAY_worker_niceness=0: by default its engine has a lower priority than everything else on the machine",
]


def main(work: dict[str, Any]) -> dict[str, Any]:
    engine = work["engine"] | {"disable_log_stats": False}
    sampling = {name: work[name] for name in ("temperature", "top_p", "max_tokens")}
    sampling |= {"skip_special_tokens": False}
    config = vLLMEngineProcessorConfig(
        model_source=engine.pop("model"),
        engine_kwargs=engine,
        concurrency=1,
        batch_size=32,
        log_engine_metrics=False,
        placement_group_config={"bundles": [{"CPU": 1}]},
        detokenize_stage=False,
    )
    processor = build_processor(
        config,
        preprocess=lambda row: {"messages": row["messages"], "sampling_params": sampling},
    )
    rows = [
        {"problem": problem, "messages": chat}
        for problem, chat in enumerate(work["chats"])
        for _ in range(work["samples"])
    ]
    answers = processor(ray.data.from_items(rows)).take_all()
    texts: list[list[str]] = [[] for _ in work["chats"]]
    prompts: list[list[int]] = [[] for _ in work["chats"]]
    for answer in answers:
        texts[answer["problem"]].append(answer["generated_text"])
        prompts[answer["problem"]] = [int(token) for token in answer["prompt_token_ids"]]
    queued = min(answer["metrics"]["queued_ts"] for answer in answers)
    last = max(answer["metrics"]["last_token_ts"] for answer in answers)
    return {
        "seconds": last - queued,
        "texts": texts,
        "output_tokens": sum(int(answer["num_generated_tokens"]) for answer in answers),
        "prompts": prompts,
        "changes": CHANGES,
    }


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="ray") as directory:
        # the stages take a place of a CPU each, whatever they use of it
        ray.init(address="local", num_cpus=8, include_dashboard=False, _temp_dir=directory,
                 object_store_memory=2**28, logging_level="ERROR")  # fmt: skip
        # build_processor asks for Ray once more, and may find another cluster of this machine
        os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
        found = main(json.loads(Path(sys.argv[1]).read_text()))
        Path(sys.argv[2]).write_text(json.dumps(found))
        ray.shutdown()
