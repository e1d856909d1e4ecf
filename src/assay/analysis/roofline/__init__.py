"""Hardware co-design by roofline: the network of least loss that is fast enough on a machine.

    T = Σ max(F / π, Q / β) + l · t_layer + t_step   over the operators of the prompt's pass and of each new token's
    L = a₀ + Σᵢ aᵢ xᵢ + Σᵢ≤ⱼ bᵢⱼ xᵢ xⱼ,   x = log of (l, d, d_m, r), standardised
    minimise L over l, d, d_m, r   subject to   T ≤ T_lat,  memory ≤ M

F are operations and Q bytes moved, π and β what the machine sustains of both; l is depth, d width, d_m the width of
the keys, r that of the MLP over d. The paper's own form of L and its list of operators are not public: the quadratic
in logarithms, with a ridge chosen by leaving out runs, and the list in ``latency`` are ours. So are the dependence of
β on how much is in use, which caches need, and the two constants that an eager framework needs.

Sun, Jiang, Ding, Li, Song, Zhang, Ying, Ren, Zhan, Chen, Xie, Deng, 2026, arXiv:2602.10377.
"""

from assay.analysis.roofline.design import Confirmation, Design, confirm, design, train_grid, write_config
from assay.analysis.roofline.latency import Latency, Machine, Operator, Shape, Workload, latency, memory, operators
from assay.analysis.roofline.law import LossLaw
from assay.analysis.roofline.machine import measure_latency, measure_machine
from assay.analysis.roofline.search import Candidate, candidates, pareto, read_runs

__all__ = [
    "Candidate",
    "Confirmation",
    "Design",
    "Latency",
    "LossLaw",
    "Machine",
    "Operator",
    "Shape",
    "Workload",
    "candidates",
    "confirm",
    "design",
    "latency",
    "measure_latency",
    "measure_machine",
    "memory",
    "operators",
    "pareto",
    "read_runs",
    "train_grid",
    "write_config",
]
