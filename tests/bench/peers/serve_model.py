"""In the environment of Ray Serve LLM: one replica of a model at a port, until standard input is closed.

    python serve_model.py '{"port": 8131, "name": "embedded-moe", "model": "students/embedded", "arguments": {"max_num_seqs": 256}}'

Says `ready` when it answers. The bundle has two cores more than the engine needs: the server's own actor lies in
it, and the task that looks for the model's files waits for ever beside a bundle of one.
"""

import json
import sys

import ray
from ray import serve
from ray.serve.llm import LLMConfig, build_openai_app


def main() -> None:
    asked = json.loads(sys.argv[1])
    ray.init(num_cpus=6, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": asked["port"]})
    config = LLMConfig(
        model_loading_config={"model_id": asked["name"], "model_source": asked["model"]},
        log_engine_metrics=False,
        accelerator_config={"kind": "cpu"},
        deployment_config={"num_replicas": 1, "max_ongoing_requests": 1024},
        placement_group_config={"bundles": [{"CPU": 3}]},
        engine_kwargs=asked["arguments"],
    )
    serve.run(build_openai_app({"llm_configs": [config]}), blocking=False)
    print("ready", flush=True)
    sys.stdin.read()
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
