"""Unpack a GGUF student into plain safetensors: python -m tests.gguf_student model.gguf directory.

Needs the package gguf. transformers keeps what it reads from GGUF packed, so the weights are put into an
unquantised model of the same configuration before they are saved.
"""

import sys
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer


def main(source: Path, target: Path) -> None:
    where, name = str(source.parent), source.name
    config = AutoConfig.from_pretrained(where, gguf_file=name)
    packed = AutoModelForCausalLM.from_pretrained(where, gguf_file=name, dtype=torch.float32)
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    missing = plain.load_state_dict(packed.state_dict(), strict=False)
    assert not missing.unexpected_keys, missing
    plain.to(torch.bfloat16).save_pretrained(target)
    AutoTokenizer.from_pretrained(where, gguf_file=name).save_pretrained(target)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
