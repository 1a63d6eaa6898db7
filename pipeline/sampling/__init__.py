"""Engines, loop and trace store, shared by generate and eval: teacher, base and student are alike to them.

    job = Job(model, prompt, sampling, samples=Samples(keep=4, max=4), seed=0)
    async with start_engine(job.model, EngineFlags()) as engine:        # once per model
        with VerifierPool() as pool, Store(directory, "chain_sum.base.samples") as store:
            tally = await collect(job, problems, engine, store, pool)
    for trace in store.traces(): ...                                    # streamed
    outputs = store.outputs()                                           # {file: rows} for StageRun.finish

The engine starts with the first sample that must be bought: a collection that is complete, or whose traces
are adopted, starts none.
"""

from pipeline.sampling.adopt import adopted
from pipeline.sampling.engines.base import Completion, Engine, Request, RequestFailed, start_engine
from pipeline.sampling.job import Job, request_fingerprint
from pipeline.sampling.loop import Options, Tally, collect
from pipeline.sampling.store import Store

__all__ = [
    "Completion",
    "Engine",
    "Job",
    "Options",
    "Request",
    "RequestFailed",
    "Store",
    "Tally",
    "adopted",
    "collect",
    "request_fingerprint",
    "start_engine",
]
