"""The table of rows: a name, where its function is, and after how many seconds it is ended.

The most telling come first. The limits together are no plan: the whole is to take under ten minutes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from tests.gpu.setting import Setting


@dataclass(frozen=True, slots=True)
class Row:
    """`home` is module:function, or module:function:argument where the function makes the row's function.

    `alone`: in a process of its own, because it starts engines or programs that want the whole device.
    `needs`: modules without which it is not begun; `on_gpu`: nor is it on a CPU.
    """

    name: str
    home: str
    seconds: int = 45
    alone: bool = False
    needs: tuple[str, ...] = ()
    on_gpu: bool = False

    def lacks(self, device: str) -> str:
        """Why it is not begun here; empty where nothing is missing that can be told without importing it."""
        missing = [module for module in self.needs if find_spec(module) is None]
        if missing:
            return f"not installed: {', '.join(missing)}"
        return "needs a GPU" if self.on_gpu and device == "cpu" else ""

    def run(self, setting: Setting) -> dict[str, Any]:
        module, function, *argument = self.home.split(":")
        made: Callable[..., Any] = getattr(import_module(f"tests.gpu.{module}"), function)
        return made(*argument)(setting) if argument else made(setting)


ROWS = [
    Row("machine", "machine:machine"),
    Row("attention: variable length", "kernels:variable_length", on_gpu=True),
    Row("train: full, bf16, checkpoint", "training:full", 90),
    Row("train: LoRA", "training:lora", 60),
    Row("train: QLoRA", "training:qlora", 60, needs=("bitsandbytes",), on_gpu=True),
    Row("train: stopped and resumed", "training:resumed"),
    Row("memory: 0.6B full, 8k", "training:sized:0.6B full, 8k"),
    Row("train: Liger", "training:liger", 60, needs=("liger_kernel",), on_gpu=True),
    Row("polish: sampler", "engines:sampler"),
    Row("memory: 0.6B full, 8k, checkpointed", "training:sized:0.6B full, 8k, checkpointed"),
    Row("memory: 1.7B LoRA, 8k", "training:sized:1.7B LoRA, 8k"),
    Row("memory: 1.7B LoRA, 16k, checkpointed, 24 GiB", "training:fits_24_gib", on_gpu=True),
    Row("attention: FlashAttention", "kernels:flash_attention", needs=("flash_attn",), on_gpu=True),
    Row("FSDP2, one process", "processes:fsdp2:1", 90, alone=True, on_gpu=True),
    Row("train: other architectures", "training:architectures", 240),
    Row("vLLM: embedded teacher, seeds", "engines:in_process", 150, alone=True, needs=("vllm",)),
    Row("train: vLLM is asked", "engines:tried", 90, alone=True, needs=("vllm",)),
    Row("demo", "processes:recipe:demo", 240, alone=True, needs=("vllm",), on_gpu=True),
    Row("FSDP2, two GPUs share rows", "processes:fsdp2:2", 180, alone=True, on_gpu=True),
    Row("vLLM: two GPUs", "engines:two_gpus", 150, alone=True, needs=("vllm",), on_gpu=True),
    Row("demo-lora", "processes:recipe:demo-lora", 200, alone=True, needs=("vllm",), on_gpu=True),
    Row("demo-polish", "processes:recipe:demo-polish", 200, alone=True, needs=("vllm",), on_gpu=True),
    Row("lock", "machine:lock", 90, alone=True, on_gpu=True),
]
