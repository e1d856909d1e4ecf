"""Halpern iterations beside the authors': python benchmarks/peers/variance_reduced_halpern.py CLONE

CLONE is a clone of github.com/zephyr-cai/Finite-Sum-Halpern-Iteration. Its scripts draw their random numbers from
NumPy; here NumPy's two functions give them the draws of ours instead. Compared in float64 are

  estimates     all iterates of the recursive estimate on the game of matrix_game.py, with its step size: the loop of
                the script, cut from it and run as it is
  resolvents    inner iterations of every length up to ``INNER`` on the problem of quadratic_programming.py, before
                the snapshot is first refreshed

Two differences are on purpose. A refresh sets the authors' snapshot to the outer iterate, that of the method is the
inner one: ``refreshed`` is how far both are from the resolvent itself after a long inner iteration. And the inner
step of matrix_game.py subtracts v − w₋ from the second player's direction, where quadratic_programming.py and the
method add it: so the resolvents of the game are not compared.
"""

from __future__ import annotations

import math
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from clones import Differences, Peer, draw, git
from torch import Tensor

from assay.optim.halpern import FiniteSum, halpern_page, resolve
from assay.optim.halpern.problems import matrix_game

N, STEPS, INNER, LONG = 40, 300, 60, 8000
ABSENT = ("matplotlib", "matplotlib.pyplot")


class Draws:
    """NumPy with the draws of a torch generator, in its own order, which is also ours."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.random = SimpleNamespace(binomial=self.binomial, choice=self.choice)

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)

    def binomial(self, count: int, p: float, size: int = 1) -> np.ndarray:
        return (torch.rand(size, generator=self.generator) < p).numpy().astype(int)

    def choice(self, n: int, size: int, replace: bool) -> np.ndarray:
        if replace:
            return torch.randint(n, (size,), generator=self.generator).numpy()
        return torch.randperm(n, generator=self.generator)[:size].numpy()


def main() -> None:
    peer = Peer(__doc__, "github.com/zephyr-cai/Finite-Sum-Halpern-Iteration", "matrix_game.py", absent=ABSENT)
    found = Differences()
    estimates(peer, peer.module.policeman_and_burglar_matrix(N, seed=1), found)
    refreshed = resolvents(Peer(__doc__, peer.repository, "quadratic_programming.py", absent=ABSENT), found)
    found.write(peer, __file__, n=N, steps=STEPS, inner=INNER, dtype="float64", refreshed=refreshed)


def estimates(peer: Peer, matrix: np.ndarray, found: Differences) -> None:
    average = np.linalg.norm(matrix, ord="fro")
    problem, _ = matrix_game(torch.from_numpy(matrix))
    start = torch.full((2 * N,), 1 / N, dtype=torch.float64)
    visited: list[Tensor] = []

    def noting(u: Tensor, c: float) -> Tensor:
        if c != 1.0:
            visited.append(problem.resolvent(u, c))
            return visited[-1]
        return problem.resolvent(u, c)

    watched = type(problem)(N, problem.mean, noting)
    halpern_page(watched, start, step_size=5 / average, tolerance=0, max_calls=STEPS * N, seed=3)

    source = git(Path(sys.argv[1]), "show", f"HEAD:{peer.file}")
    loop = source[source.index("    # Algorithm 1 in our paper") : source.index("    # Algorithm 2 in our paper")]
    theirs: list[Tensor] = []
    update = peer.module.Halpern_mini_update

    def watching(*arguments: Any) -> Any:
        result = update(*(a.copy() if isinstance(a, np.ndarray) else a for a in arguments))
        theirs.append(torch.from_numpy(np.concatenate(result[:2])))
        return result

    scope = vars(peer.module) | {"A": matrix, "n": N, "m": N, "l2_norm": average, "np": Draws(3)}
    scope |= {"Halpern_mini_update": watching, "print": lambda *values: None}
    peer.module.np = scope["np"]
    exec(textwrap.dedent(loop).replace("N = 5000 * n", f"N = {STEPS * N}"), scope)
    for ours, other in zip(visited, theirs, strict=False):
        found.add("iterate of the recursive estimate", ours, other)
    print(f"{len(visited)} iterates of ours, {len(theirs)} of theirs")


def quadratic_programme(n: int) -> tuple[dict[str, np.ndarray], FiniteSum]:
    """That of the script: F = (Hx − h − Aᵀy, Ax − b), whose terms have a column of H and of A and a row of A each."""
    a = np.fliplr(np.eye(n) - np.eye(n, k=1)) / 4
    data = {"A": a, "H": 2 * a.T @ a, "b": np.ones(n) / 4, "h": np.eye(n)[-1] / 4}
    hessian, matrix, b, h = (torch.from_numpy(data[name].copy()) for name in "HAbh")

    def mean(u: Tensor, terms: Tensor | None) -> Tensor:
        chosen = torch.arange(n) if terms is None else terms
        scale = n / len(chosen)
        x, y = u[:n][chosen], u[n:][chosen]
        ahead = scale * (hessian[:, chosen] @ x - y @ matrix[chosen]) - h
        return torch.cat([ahead, scale * (matrix[:, chosen] @ x) - b])

    return data, FiniteSum(n, mean)


def resolvents(peer: Peer, found: Differences) -> dict[str, float]:
    data, problem = quadratic_programme(N)
    vars(peer.module).update(data)
    u = draw(2 * N, seed=0)
    x, y = u.view(2, N).numpy()
    columns = np.linalg.norm(np.concatenate([data["H"], data["A"]]), axis=0).max()
    lipschitz = math.sqrt(2 * N) * max(columns, np.linalg.norm(data["A"], axis=1).max())
    p, eta = 1 / N, math.sqrt(N) / lipschitz
    gamma = math.sqrt(p * (1 - p)) / (math.sqrt(N) + 1)

    def both(steps: int, seed: int) -> tuple[Tensor, Tensor, bool]:
        generator = torch.Generator().manual_seed(seed)
        ours, calls = resolve(problem, u, problem.mean(u, None), eta=eta, steps=steps, generator=generator)
        peer.module.np = Draws(seed)
        vx, vy, _ = peer.module.subsolver_FoRB(data["A"], x, y, steps, eta, 0, p, 1 - p, gamma)
        return ours, torch.from_numpy(np.concatenate([vx, vy])), calls > 2 * steps

    for steps in range(1, INNER + 1):
        for seed in range(5):
            ours, theirs, refreshes = both(steps, seed)
            if not refreshes:
                found.add("inner iterate before a refresh", ours, theirs)
    ours, theirs, _ = both(LONG, 0)
    zero = torch.zeros_like(u)
    offset = problem.mean(zero, None)
    jacobian = torch.stack([problem.mean(one, None) - offset for one in torch.eye(2 * N, dtype=u.dtype)], dim=1)
    exact = torch.linalg.solve(torch.eye(2 * N, dtype=u.dtype) + eta * jacobian, u - eta * offset)
    distances = {name: (v - exact).norm().item() for name, v in (("ours", ours), ("theirs", theirs))}
    print(f"distance from the resolvent after {LONG} inner steps: {distances}")
    return distances


if __name__ == "__main__":
    main()
