#!/usr/bin/env python3
"""Tokens per second: Hugging Face transformers with hooks on every router, against `switchyard bench`, in one run.

The same checkpoint, windows, device and number of threads. --precision bf16: each as it does best with a bf16 checkpoint; on a CPU without AMX and AVX512-BF16
that is f32 for switchyard. Needs torch and transformers:
  python3 -m venv venv && venv/bin/pip install torch transformers
  venv/bin/python tests/bench/compare_transformers.py MODEL [--context 256] [--batch 16] [--threads 2]
"""

import argparse
import pathlib
import re
import subprocess
import time

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("model")
parser.add_argument("--context", type=int, default=256)
parser.add_argument("--batch", type=int, default=16, help="windows of a step")
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--device", choices=["cpu", "gpu"], default="cpu")
parser.add_argument("--precision", choices=["bf16", "f32"], default="bf16")
parser.add_argument("--steps", type=int, default=5)
parser.add_argument("--rounds", type=int, default=3, help="the two programs take turns")
parser.add_argument("--experts", nargs="+", default=["eager", "grouped_mm", "batched_mm"], help="expert implementations of transformers to try")
parser.add_argument("--grouped-matmul", nargs="+", default=["default"], metavar="KIND", help="what multiplies switchyard's experts on a GPU, to try; default: its own choice")
parser.add_argument("--switchyard", default=str(pathlib.Path(__file__).resolve().parents[2] / "build" / "switchyard"))
options = parser.parse_args()

import torch  # noqa: E402 (after the options: --help needs no torch)
import transformers  # noqa: E402

torch.set_num_threads(options.threads)
tokens = options.context * options.batch
device = {"cpu": "cpu", "gpu": "cuda"}[options.device]


def load(experts):
    model = transformers.AutoModelForCausalLM.from_pretrained(options.model, dtype={"bf16": torch.bfloat16, "f32": torch.float32}[options.precision], experts_implementation=experts)
    model.to(device).eval()
    seen = []
    for name, module in model.named_modules():
        if name.endswith(("mlp.gate", "block_sparse_moe.gate")):
            module.register_forward_hook(lambda _module, _inputs, output: seen.append(output[-1] if isinstance(output, tuple) else output))
    return model, seen


def transformers_rate(model, seen):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, model.config.vocab_size, (options.batch, options.context), generator=generator).to(device)
    times = []
    with torch.inference_mode():
        for step in range(options.steps + 1):
            seen.clear()
            start = time.perf_counter()
            logits = model(ids).logits
            torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())
            logits.argmax(-1)
            if device == "cuda":
                torch.cuda.synchronize()
            if step > 0:  # the first one warms up
                times.append(time.perf_counter() - start)
    assert seen, "no router was hooked"
    return tokens / sorted(times)[len(times) // 2]


def switchyard_rate(grouped_matmul):
    words = [options.switchyard, "bench", "--model", options.model, "--device", options.device, "--context", str(options.context), "--batch-tokens", str(tokens),
             "--threads", str(options.threads), "--repetitions", str(options.steps)]
    if options.precision == "f32":
        words += ["--precision", "f32"]
    if grouped_matmul != "default":
        words += ["--grouped-matmul", grouped_matmul]
    text = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    return float(re.search(r"record tokens .*?([\d,]+) tokens/s", text).group(1).replace(",", ""))


models = {}
for name in options.experts:
    try:
        models[name] = load(name)
    except Exception as error:  # an implementation that this version does not know
        print(f"transformers experts={name}: {error}")
where = torch.cuda.get_device_name() if device == "cuda" else f"{options.threads} threads"
print(f"torch {torch.__version__}, transformers {transformers.__version__}, {where}, context {options.context}, batch {options.batch}, {options.precision}")
best = 0.0
ours = {name: [] for name in options.grouped_matmul}
for round_number in range(options.rounds):
    for name, (model, seen) in models.items():
        try:
            rate = transformers_rate(model, seen)
        except Exception as error:
            print(f"transformers experts={name}: {error}")
            continue
        best = max(best, rate)
        print(f"round {round_number}: transformers experts={name}: {rate:,.0f} tokens/s")
    for name, rates in ours.items():
        try:
            rates.append(switchyard_rate(name))
        except subprocess.CalledProcessError as error:  # a kind that this GPU or build lacks
            print(f"switchyard experts={name}: {error.stderr.strip()}")
            continue
        print(f"round {round_number}: switchyard experts={name}, recording tokens: {rates[-1]:,.0f} tokens/s")
for name, rates in ours.items():
    if rates:
        print(f"switchyard's median over transformers' best, experts={name}: {sorted(rates)[len(rates) // 2] / best:.2f}")
