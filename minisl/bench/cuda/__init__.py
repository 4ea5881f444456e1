"""`python -m minisl.bench --device cuda`: an SLTrain layer, a training step and every rung on a GPU, beside cuBLAS, cuSPARSE and
PyTorch, in one run.

One file a question, as on the CPU; `gpu.py` says how it is measured. What cannot be measured is said where its time would stand,
and the rest goes on. After each question bench.json and bench.md are written, so a run that is stopped leaves what it has.
"""

import json
import time

from minisl.bench.cuda import ladders, layer, step
from minisl.bench.cuda.gpu import Gpu
from minisl.files import write_text

QUESTIONS = {"layer": layer.bench, "step": step.bench, "ops": ladders.bench}


def report(cupy, sections, out, seconds, versions, say):
    """Ask the questions, in about `seconds`. out: a folder for bench.json and bench.md, or None. Returns 0, or 1 where something
    failed."""
    lines = []

    def told(line=""):
        lines.append(line)
        say(line)

    def save():
        if out:
            write_text(out / "bench.json", json.dumps(found, indent=1) + "\n")
            write_text(out / "bench.md", "\n".join(lines) + "\n")

    gpu = Gpu(cupy, seconds)
    about, started = gpu.about(), time.strftime("%Y-%m-%d %H:%M")
    only = f" --only {' '.join(sections)}" if len(sections) < len(QUESTIONS) else ""
    command = f"python -m minisl.bench --device cuda{only}"
    told(f"`{command}`, {started}: {about['gpu']}, driver {about['driver']} (for CUDA {about['driver_cuda']}), "
         f"CUDA {about['cuda']}, CuPy {about['cupy']}, PyTorch {about['torch']}, Python {versions['python']}, "
         f"NumPy {versions['numpy']}, minisl {versions['minisl']}.")
    machine = gpu.ceilings()
    products = ", ".join(f"{machine[p] / 1e12:.1f} TFLOP/s {p}" for p in machine if p != "copy")
    told(f"Ceilings, measured now: {machine['copy'] / 1e9:,.0f} GB/s for a copy within its memory, read and write counted; "
         f"cuBLAS {products}.")
    told()
    told("Times are the GPU's own, in milliseconds, medians; before each call a large array is written, so that no operand is in "
         "the L2 cache, and launches are queued meanwhile. `~`: measured with fewer tokens and multiplied. A training step is "
         "timed by the clock on the wall.")
    found = {"command": command, "date": started.split()[0], **about, "versions": versions, "machine": machine}
    for name in sections:
        found[name] = QUESTIONS[name](gpu, machine, told)
        gpu.free()
        save()
    failed = [row["failed"] for name in sections for row in found[name] if row.get("failed", "").startswith("failed")]
    if out:
        say(f"\n{out} holds bench.json and bench.md")
    if failed:
        say(f"{len(failed)} measurements failed, the first: {failed[0]}")
    return 1 if failed else 0
