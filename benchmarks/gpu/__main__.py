"""The toolkit's proof on an NVIDIA GPU: `python -m benchmarks.gpu`, about nine minutes; `--cpu` rehearses all of it.

Is CUDA what its wrapper takes it for, does PyTorch compute there what it does on the CPU, do bundles restore what
PyTorch does, how long does a frame take in which way, what do `deploy bench` and INT8 bring, how fast is training? Each
step is a process of its own; none stops another. --out receives gpu.json, gpu.md, a log of every step, and the bundles,
which another call takes again. Exit code 1 where a step or one of its lines failed.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from importlib import import_module
from pathlib import Path

from runtime.durable import write_bytes

from .run import Found, Setting, Step, errors, report, run_steps, well

STEPS = {
    "environment": ("engines", 15),
    "contracts": ("commands", 60),
    "bundles": ("commands", 130),
    "parity": ("engines", 40),
    "engines": ("engines", 40),
    "check": ("commands", 40),
    "int8": ("engines", 50),
    "bench": ("commands", 60),
    "training": ("training", 200),
    "latency": ("engines", 160),
}
"""Step -> module that has it, and its part of the time. What may take long comes last, and gets what others leave."""


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cpu", action="store_true", help="the CPU for the GPU, damp-nano, frames of 64x64")
    parser.add_argument("--model", help="a packaged one, or a checkpoint [damp-small]")
    parser.add_argument("--size", type=int, help="lines and samples of a frame [256]")
    parser.add_argument("--seconds", type=float, default=560.0, help="of all steps together [560]")
    parser.add_argument(
        "--steps", default=",".join(STEPS), help="those to run, what others found before is kept [%(default)s]"
    )
    parser.add_argument("--out", type=Path, default=Path("build/gpu"))
    parser.add_argument("--step", help=argparse.SUPPRESS)
    parser.add_argument("--found", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    model, size = asked.model or ("damp-nano" if asked.cpu else "damp-small"), asked.size or (64 if asked.cpu else 256)
    setting = Setting(asked.out.resolve(), asked.cpu, model, size)
    if asked.step:
        module = import_module(f".{STEPS[asked.step][0]}", __package__)
        getattr(module, asked.step)(setting, Found(asked.found, asked.seconds))
        return 0
    names = asked.steps.split(",")
    if unknown := sorted(set(names) - set(STEPS)):
        parser.error(f"unknown steps: {', '.join(unknown)}; there are {', '.join(STEPS)}")
    if not asked.cpu and not has_gpu():
        print("PyTorch finds no GPU here: nothing is measured; --cpu rehearses the steps")
        return 0
    # A caller's limit must not leave a step behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    setting.out.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-u", "-m", "benchmarks.gpu", "--out", str(setting.out), *(["--cpu"] * asked.cpu)]
    command += ["--model", model, "--size", str(size)]
    steps = [Step(name, [*command, "--step", name], STEPS[name][1]) for name in names]
    file = setting.out / "gpu.json"
    results = json.loads(file.read_bytes()) if file.exists() else {}
    for name, result in run_steps(steps, setting.out, asked.seconds):
        results[name] = result
        write_bytes(file, (json.dumps(results, indent=1) + "\n").encode())
        write_bytes(setting.out / "gpu.md", report(results, asked.cpu).encode())
        told = "; ".join(f"{line}: {result['lines'][line]['error']}" for line in errors(result))
        print(f"{name:<12} {result['state']}, {result['took_s']} s, {len(result['lines'])} lines {told}", flush=True)
    print(f"wrote {setting.out / 'gpu.md'}")
    return 0 if all(well(results[name]) for name in names) else 1


def has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


if __name__ == "__main__":
    sys.exit(main())
