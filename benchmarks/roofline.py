"""Latency of decoders by the roofline and by the clock.

The machine is measured first; then decoders of drawn sizes answer a prompt of so many tokens and generate more. What
is predicted uses nothing of the measured latencies.
"""

from __future__ import annotations

from typing import Any

from support import options
from support.figures import print_table, write_figures


def measure(arguments: Any) -> dict[str, Any]:
    from scipy.stats import spearmanr

    from assay.analysis.roofline import Shape, Workload, latency, measure_latency, measure_machine
    from assay.analysis.roofline.design import draw, name_of
    from assay.models import ModelConfig

    seconds = 0.002 if arguments.quick else arguments.seconds
    width, depth, count = (64, 3, 4) if arguments.quick else (arguments.width, arguments.depth, arguments.count)
    sizes = {"depth": depth, "hidden_size": width, "head_dim": width // 16, "vocab_size": 257, "max_length": 1}
    machine = measure_machine(seconds=seconds)
    work = Workload(prompt=arguments.prompt, new=arguments.new)
    rows = []
    for model in draw(ModelConfig.parse(sizes), count, seed=0):
        said, took = latency(Shape.of(model), machine, work), measure_latency(model, work, seconds=seconds)
        rows.append({"network": name_of(model), "predicted": said, "measured": took})
    ranks = {
        part: spearmanr(*[[getattr(row[side], part) for row in rows] for side in ("predicted", "measured")]).statistic
        for part in ("prefill", "decode")
    }
    return {"machine": machine, "workload": work, "networks": rows, "rank_correlation": ranks}


def main() -> None:
    parser = options.parser(__doc__)
    parser.add_argument("--count", type=int, default=20, help="decoders")
    parser.add_argument("--depth", type=int, default=12, help="of the largest")
    parser.add_argument("--width", type=int, default=512, help="of the largest")
    parser.add_argument("--prompt", type=int, default=128, help="tokens")
    parser.add_argument("--new", type=int, default=8, help="tokens")
    parser.add_argument("--seconds", type=float, default=0.3, help="spent on each measurement")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    options.use_threads(arguments.threads)
    figures = measure(arguments)
    machine = figures["machine"]
    speeds = ", ".join(f"{speed / 1e9:.1f} at {size / 2**20:g} MiB" for size, speed in machine.bandwidth)
    print(f"{machine.flops / 1e9:.1f} GFLOP/s; GB/s: {speeds}")
    print(f"{machine.layer * 1e6:.0f} µs for a layer and {machine.step * 1e6:.0f} µs for a pass besides")
    print_table(
        f"Prompt of {arguments.prompt} and {arguments.new} new tokens, milliseconds",
        ["network", "prefill", "measured", "decode", "measured"],
        [
            [row["network"]]
            + [
                f"{getattr(row[side], part) * 1e3:.2f}"
                for part in ("prefill", "decode")
                for side in ("predicted", "measured")
            ]
            for row in figures["networks"]
        ],
    )
    for part, rank in figures["rank_correlation"].items():
        print(f"{part}: rank correlation {rank:.3f}")
    write_figures(arguments.json, "roofline", quick=arguments.quick, **figures)


if __name__ == "__main__":
    main()
