"""Serve a teacher on loopback: `vllm serve` with the settings of its card, until Ctrl-C.

Reads teachers/cards/<name>.yaml, writes nothing. The generate stage uses it with --engine server.

    python -m pipeline serve-teacher --teacher embedded-moe --port 8000
    python -m pipeline serve-teacher --teacher qwen3-30b-a3b-thinking-2507 --replicas 8     # one GPU each
"""

import logging
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request

from pipeline.errors import EngineError, RecipeError
from pipeline.flags import EngineFlags
from pipeline.recipe.cards import called, sampled_teacher, teacher_card
from pipeline.run.lifetime import Guard
from pipeline.run.provenance import gpus
from pipeline.sampling.engines.serving import num_devices, serve_command

log = logging.getLogger(__name__)

HOST = "127.0.0.1"
POLL_SECONDS = 0.5
BINDING = "VLLM_CPU_OMP_THREADS_BIND"  # to cores, of vLLM's CPU build
WAIT_SECONDS = 3600.0  # weights of hundreds of gigabytes are read first


def run(teacher: str, port: int, flags: EngineFlags, replicas: int = 1) -> None:
    """Start the servers, say when they answer, and stay. EngineError where all end by themselves.

    Replica i listens on `port` + i, with devices of its own.
    """
    ports = [port + number for number in range(replicas)]
    for each in ports:
        check_port(each)
    shares = device_shares(replicas, devices_of_one(teacher, flags), dict(os.environ))
    guard = Guard()  # it ends the servers where this process is killed before it can
    servers = [
        subprocess.Popen(command(teacher, each, flags), env=os.environ | guard.mark | share)
        for each, share in zip(ports, shares, strict=True)
    ]
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does: with the servers stopped
    try:
        for server, each in zip(servers, ports, strict=True):
            wait_until_ready(server, each)
        urls = " ".join(f"--url http://{HOST}:{each}/v1" for each in ports)
        log.info(
            "%s answers: python -m pipeline generate --engine server %s (Ctrl-C stops it)", teacher, urls
        )
        code = wait_for_all(dict(zip(ports, servers, strict=True)))
    finally:
        for server in servers:
            stop(server)
        guard.dismiss()
    raise EngineError(f"vllm serve ended by itself with exit code {code}; its own message is above")


def wait_for_all(servers: dict[int, "subprocess.Popen[bytes]"]) -> int:
    """The exit code of the last server to end; of one that ends before, clients use the others."""
    while True:
        for port, server in list(servers.items()):
            code = server.poll()
            if code is None:
                continue
            del servers[port]
            if not servers:
                return code
            log.warning("port %d: vllm serve ended with exit code %d; %d go on", port, code, len(servers))
        time.sleep(POLL_SECONDS)


def devices_of_one(teacher: str, flags: EngineFlags) -> int:
    """GPUs that one copy of the teacher takes."""
    return num_devices(teacher_card(teacher).engine, flags)


def device_shares(replicas: int, each: int, environment: dict[str, str]) -> list[dict[str, str]]:
    """The environment that gives each replica devices of its own: GPUs, or cores where there is none.

    RecipeError where there are fewer than all replicas need.
    """
    if replicas == 1:
        return [{}]
    devices = visible_gpus(environment)
    if not devices and BINDING in environment:  # the user has said which cores
        return [{}] * replicas
    held = devices or [str(core) for core in sorted(os.sched_getaffinity(0))]
    each = each if devices else len(held) // replicas
    if not each or replicas * each > len(held):
        kind = "GPUs" if devices else "cores"
        raise RecipeError(
            f"--replicas {replicas}: needs {replicas * max(each, 1)} {kind}, this machine has {len(held)}; "
            "start fewer, or the others on another machine"
        )
    shares = [held[number * each : (number + 1) * each] for number in range(replicas)]
    name = "CUDA_VISIBLE_DEVICES" if devices else BINDING
    return [{name: ",".join(share)} for share in shares]


def visible_gpus(environment: dict[str, str]) -> list[str]:
    """The GPUs that CUDA would show to a process, by its own names for them."""
    if "CUDA_VISIBLE_DEVICES" in environment:
        return [name for name in environment["CUDA_VISIBLE_DEVICES"].split(",") if name.strip()]
    return [str(number) for number in range(len(gpus()))]


def check_port(port: int) -> None:
    """RecipeError where nothing can listen there, or another server does and would answer for ours."""
    if not 0 < port < 65536:
        raise RecipeError(f"--port {port}: ports are 1 to 65535")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise RecipeError(
                f"--port {port}: {HOST}:{port} is not free ({error.strerror}); stop what listens there, or "
                "name another port"
            ) from None


def command(teacher: str, port: int, flags: EngineFlags) -> list[str]:
    """The command line of `vllm serve` for a card, by its name or its path."""
    card, name = teacher_card(teacher), called(teacher)
    model = sampled_teacher(name, card)
    return serve_command(
        model,
        flags,
        host=HOST,
        port=port,
        served_model_name=name,
        reasoning_parser=card.engine.reasoning_parser,
        chat_template=model.template,
    )


def wait_until_ready(server: "subprocess.Popen[bytes]", port: int) -> None:
    """Return when /health answers. EngineError where the server ends before, or never answers."""
    end = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < end:
        if server.poll() is not None:
            raise EngineError(
                f"vllm serve ended with exit code {server.returncode} before it answered; see above"
            )
        try:
            with urllib.request.urlopen(f"http://{HOST}:{port}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise EngineError(f"vllm serve has not answered on port {port} for {WAIT_SECONDS:.0f} s; stopped it")


def stop(server: "subprocess.Popen[bytes]") -> None:
    """End the server and what it started; nothing stays on the port."""
    from pipeline.sampling.engines.processes import kill, with_children

    processes = with_children(server.pid)
    server.terminate()
    try:
        server.wait(timeout=10)
    except subprocess.TimeoutExpired:
        log.info("vllm serve does not end by itself; killing it")
    kill(processes)
    server.wait()
