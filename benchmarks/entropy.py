"""How much the online entropy costs beyond the head's matrix products, and what full logits cost.

    OMP_NUM_THREADS=1 python benchmarks/entropy.py [--rows 512] [--width 896] [--vocabulary 151936] [--repeats 7] [--json FILE]

One process, contenders alternated A B C A B C, one warm-up, medians, CPU seconds beside wall seconds. Quote the ratios (CPU
time, median over the rounds); quote a time only from a run that does not print "contended".
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import threading
import time
from collections.abc import Callable

import torch
from torch import Tensor

from edgewise.signals.forward import head_entropies
from edgewise.signals.head import OutputHead


def resident() -> int:
    """Bytes of this process in memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak_of(run: Callable[[], object]) -> int:
    """Resident bytes that `run` adds at its peak, sampled every millisecond."""
    before, highest, done = resident(), 0, threading.Event()

    def watch() -> None:
        nonlocal highest
        while not done.wait(0.001):
            highest = max(highest, resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    run()
    done.set()
    watcher.join()
    return max(0, highest - before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("rows", 512), ("width", 896), ("vocabulary", 151_936), ("tile", 1024), ("repeats", 7)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--json", help="also write the figures to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows, width, size, tile = options.rows, options.width, options.vocabulary, options.tile
    hidden = torch.randn(rows, width)
    weight = torch.randn(size, width) * (3.0 / width**0.5)  # logits of standard deviation 3
    head = OutputHead.of_weight(weight)

    def tiled_product() -> None:
        for start in range(0, size, tile):
            hidden @ weight[start : start + tile].T

    def online() -> Tensor:
        return head_entropies(hidden, head, temperature=1.0, rows=rows, tile=tile)

    def full_logits() -> Tensor:
        log_p = (hidden @ weight.T).log_softmax(dim=-1)
        return -(log_p.exp() * log_p).sum(dim=-1)

    with torch.no_grad():
        contenders: dict[str, Callable[[], object]] = {
            "tiled product": tiled_product,
            "online": online,
            "full logits": full_logits,
        }
        exact = torch.cat(
            [-(lp.exp() * lp).sum(-1) for lp in ((h.double() @ weight.double().T).log_softmax(-1) for h in hidden.split(64))]
        )
        error = float((online().double() - exact).abs().max())
        error_full = float((full_logits().double() - exact).abs().max())
        memory = {name: peak_of(run) for name, run in contenders.items()}
        wall: dict[str, list[float]] = {name: [] for name in contenders}
        cpu: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(options.repeats):
            for name, run in contenders.items():
                c, w = time.process_time(), time.perf_counter()
                run()
                wall[name].append(time.perf_counter() - w)
                cpu[name].append(time.process_time() - c)
    contended = any(sum(wall[n]) > 1.2 * sum(cpu[n]) for n in contenders) or os.getloadavg()[0] > (os.cpu_count() or 1)
    figures = {
        name: {
            "cpu_ms": 1e3 * statistics.median(cpu[name]),
            "wall_ms": 1e3 * statistics.median(wall[name]),
            "wall_min_ms": 1e3 * min(wall[name]),
            "wall_max_ms": 1e3 * max(wall[name]),
            "cpu_ratio": statistics.median(a / b for a, b in zip(cpu[name], cpu["tiled product"], strict=True)),
            "extra_mb": memory[name] / 1e6,
        }
        for name in contenders
    }
    print(f"T = {rows}, d = {width}, V = {size:,}, float32, tile {tile}; 1 thread, {options.repeats} repeats, alternated")
    print(f"{'':14}{'CPU ms':>9}{'wall ms':>9}{'min':>8}{'max':>8}{'ratio':>8}{'extra MB':>10}")
    for name, f in figures.items():
        print(f"{name:14}{f['cpu_ms']:9.0f}{f['wall_ms']:9.0f}{f['wall_min_ms']:8.0f}{f['wall_max_ms']:8.0f}", end="")
        print(f"{f['cpu_ratio']:8.2f}{f['extra_mb']:10.0f}")
    print(f"largest |error| of an entropy against float64: online {error:.1e} nats, full logits {error_full:.1e} nats")
    print(
        f"{platform.machine()}, torch {torch.__version__}, load {os.getloadavg()[0]:.1f}"
        + (", CONTENDED: quote ratios only" if contended else "")
    )
    result = {"setting": vars(options), "torch": torch.__version__, "contended": contended, "figures": figures}
    result |= {"max_error_online": error, "max_error_full_logits": error_full}
    if options.json:
        with open(options.json, "w") as file:
            json.dump(result, file, indent=1)
    else:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
