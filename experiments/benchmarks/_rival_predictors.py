"""Accuracy predictors that the guided sampler could have used: what its own is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch

from search_spaces import Genotypes
from search_spaces.space import Choice

Floats = npt.NDArray[np.float64]


def one_hot(choices: Sequence[Choice], genotypes: Genotypes) -> Floats:
    """Return a column per value of every searched choice, shape (n, columns)."""
    columns = [
        np.eye(len(choice.values))[genotypes[:, gene]]
        for gene, choice in enumerate(choices)
        if len(choice.values) > 1
    ]
    return np.concatenate(columns, axis=1)


class Ridge:
    """Bayesian ridge regression on one-hot choices; precisions by MacKay's fixed point (1992, section 4)."""

    def __init__(self, choices: Sequence[Choice], genotypes: Genotypes, aps: Floats) -> None:
        self.choices, self.mean, self.scale = choices, aps.mean(), aps.std() or 1.0
        x, y = one_hot(choices, genotypes), (aps - aps.mean()) / (aps.std() or 1.0)
        values, vectors = np.linalg.eigh(x.T @ x)
        values, towards = np.maximum(values, 0.0), vectors.T @ (x.T @ y)
        weights, noise = 1.0, 100.0  # precisions
        for _ in range(30):
            spread = noise * values + weights
            turned = noise * towards / spread
            known = float((noise * values / spread).sum())
            left = float(((y - x @ (vectors @ turned)) ** 2).sum())
            weights = min(known / max(float(turned @ turned), 1e-9), 1e6)
            noise = min(max(len(y) - known, 1e-3) / max(left, 1e-9), 1e6)
        self.coefficients = vectors @ turned
        self.covariance = (vectors / (noise * values + weights)) @ vectors.T

    def predict(self, genotypes: Genotypes) -> tuple[Floats, Floats]:
        """Return expectation and standard deviation, shape (n,) each."""
        x = one_hot(self.choices, genotypes)
        deviation = np.sqrt(np.maximum(((x @ self.covariance) * x).sum(axis=1), 0.0))
        return self.mean + self.scale * (x @ self.coefficients), self.scale * deviation


class Ensemble:
    """Ten small neural networks on one-hot choices, each trained on a bootstrap sample by AdamW."""

    MEMBERS, WIDTH, STEPS = 10, 32, 300

    def __init__(self, choices: Sequence[Choice], genotypes: Genotypes, aps: Floats) -> None:
        self.choices, self.mean, self.scale = choices, float(aps.mean()), float(aps.std()) or 1.0
        rng = np.random.default_rng(0)
        chosen = rng.integers(len(aps), size=(self.MEMBERS, len(aps)))
        x = torch.from_numpy(one_hot(choices, genotypes)[chosen]).float()
        y = torch.from_numpy(((aps - self.mean) / self.scale)[chosen]).float()[..., None]
        sizes = (x.shape[2], self.WIDTH, self.WIDTH, 1)
        self.layers = []
        for fan_in, fan_out in pairwise(sizes):
            drawn = rng.standard_normal((self.MEMBERS, fan_in, fan_out)) * np.sqrt(2.0 / fan_in)
            weight = torch.from_numpy(drawn).float().requires_grad_()
            self.layers.append((weight, torch.zeros(self.MEMBERS, 1, fan_out, requires_grad=True)))
        parameters = [parameter for layer in self.layers for parameter in layer]
        optimiser = torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.01)
        for _ in range(self.STEPS):
            optimiser.zero_grad()
            ((self._forward(x) - y) ** 2).mean().backward()
            optimiser.step()

    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        for place, (weight, bias) in enumerate(self.layers):
            x = torch.baddbmm(bias, x, weight)
            x = torch.nn.functional.silu(x) if place < len(self.layers) - 1 else x
        return x

    @torch.no_grad()
    def predict(self, genotypes: Genotypes) -> tuple[Floats, Floats]:
        """Return mean and standard deviation over the members, shape (n,) each."""
        x = torch.from_numpy(one_hot(self.choices, genotypes)).float()
        found = self._forward(x.expand(self.MEMBERS, *x.shape))[..., 0].double().numpy()
        return self.mean + self.scale * found.mean(axis=0), self.scale * found.std(axis=0)
