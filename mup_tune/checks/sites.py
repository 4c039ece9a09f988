"""Where the coordinate check looks, what it predicts there, and how it measures it.

Predicted width exponents follow from the role table (docs/method.md): a product of n weight matrices whose
width factors are parked elsewhere grows as d^n on purpose. The feature-learning part of µP (arXiv 2203.03466,
App. D.1) asks the same exponent of a site's change since step 0.

Shape suffixes: P members, B rows, T tokens, H query heads, h key heads, K head_dim, R = K/2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mup_tune.model import attention
from mup_tune.model.falcon_h1 import Population
from mup_tune.model.layers import linear, linear_nll
from mup_tune.trial import IGNORED_TARGET

GRADIENT = "residual gradient"


@dataclass(frozen=True)
class Site:
    """One place in the model.

    ``width`` is the predicted exponent of its RMS in d at steps ≥ 2, ``start`` the one at step 0.
    ``only_growth``: judged only by not growing faster than predicted (arXiv 2203.03466, App. D: logits may
    shrink). ``depth``: the exponent in L under CompleteP, where each branch carries a factor 1/L (arXiv
    2505.01618). ``reads_norm``: a branch's input, computed from a normalised stream: depth must not show
    whatever the depth rule. dt is none: after softplus its RMS depends on how alike a layer's tokens are, and
    they grow alike with depth.
    """

    name: str
    width: float
    start: float
    only_growth: bool = False
    reads_norm: bool = False
    depth: float = 0


SITES: tuple[Site, ...] = (
    Site("embedding", 0, 0),
    Site("z", 0, 0, reads_norm=True),
    Site("x", 0, 0, reads_norm=True),
    Site("B", 0, 0, reads_norm=True),
    Site("C", 0, 0, reads_norm=True),
    Site("dt", 0, 0),
    Site("SSM decay", 0, 0),
    Site("SSM state output", 0, 0),
    Site("SSM output", 0, 0),
    Site("SSM branch", 0, 0, depth=-1),
    Site("q", 1, 1, reads_norm=True),
    Site("k", -1, -1, reads_norm=True),
    Site("attention logits", 0, 0),
    Site("attention output", 1, 1),
    Site("attention branch", 0, 0, depth=-1),
    Site("gate", 0, 0, reads_norm=True),
    Site("up", 1, 1, reads_norm=True),
    Site("MLP branch", 0, 0, depth=-1),
    Site("residual", 0, 0),
    Site("logits", 0, -0.5, only_growth=True, reads_norm=True),
    Site(GRADIENT, -1, -1),
)
SITE_BY_NAME = {site.name: site for site in SITES}


class Recorder:
    """A tap that keeps every site's values of one forward pass, layer after layer, members in front."""

    def __init__(self, population: Population) -> None:
        self.population, self.shape = population, population.shape
        self.values: dict[str, list[Tensor]] = {}
        self.streams: list[Tensor] = []
        self.conv_x: list[Tensor] = []

    def __call__(self, name: str, value: Tensor) -> None:
        handler: Callable[[Tensor], None] | None = getattr(self, f"_{name}", None)
        if handler:
            handler(value)
        else:
            self._keep({"ssm_branch": "SSM branch", "attention_branch": "attention branch"}.get(name, name), value)

    def _keep(self, name: str, value: Tensor) -> None:
        self.values.setdefault(name, []).append(value.detach())

    def _keep_heads(self, name: str, value_PBTHx: Tensor) -> None:
        """Head by head: dt differs between heads by two decades, and the RMS of few such heads is biased."""
        self.values.setdefault(name, []).extend(value_PBTHx.detach().unbind(3))

    def _stream(self, name: str, value: Tensor) -> None:
        self._keep(name, value)
        value.retain_grad()
        self.streams.append(value)

    def _embedding(self, value: Tensor) -> None:
        self._stream("embedding", value)

    def _residual(self, value: Tensor) -> None:
        self._stream("residual", value)

    def _ssm_projected(self, value: Tensor) -> None:
        shape = self.shape
        groups = shape.n_groups * shape.d_state
        parts = torch.split(value, [shape.d_ssm, shape.d_ssm, groups, groups], -1)
        for name, part in zip(("z", "x", "B", "C"), parts, strict=True):
            self._keep(name, part)

    def _ssm_x(self, value_PBTHK: Tensor) -> None:
        self.conv_x.append(value_PBTHK.detach())

    def _dt(self, value_PBTH: Tensor) -> None:
        self._keep_heads("dt", value_PBTH)
        decay_PH = self._parameter("A_log").exp()
        self._keep_heads("SSM decay", value_PBTH.detach() * decay_PH[:, None, None])

    def _parameter(self, name: str) -> Tensor:
        """Of the layer whose SSM is being recorded; its convolution's output came first."""
        return self.population.get_parameter(f"layers.{len(self.conv_x) - 1}.{name}").detach()

    def _ssm_heads(self, value_PBTHK: Tensor) -> None:
        skip_PH = self._parameter("D")
        self._keep("SSM output", value_PBTHK)
        skipped = self.conv_x[-1] * skip_PH[:, None, None, :, None]
        self._keep_heads("SSM state output", value_PBTHK.detach() - skipped)

    def _qkv(self, value: Tensor) -> None:
        """q and k as they leave the projection, and the softmax's argument where the mask keeps it."""
        shape = self.shape
        heads = torch.unflatten(value.detach(), -1, (shape.n_heads + 2 * shape.n_kv_heads, -1))
        self._keep("q", heads[..., : shape.n_heads, :])
        self._keep("k", heads[..., shape.n_heads : shape.n_heads + shape.n_kv_heads, :])
        rope = attention.rope_table(self.population.rope_inverse_frequencies, value.shape[2], value.dtype)
        rotated = attention.rotate(heads[..., : shape.n_heads + shape.n_kv_heads, :], rope)
        q, k = torch.split(rotated, [shape.n_heads, shape.n_kv_heads], 3)
        k = k.repeat_interleave(shape.n_heads // shape.n_kv_heads, 3)
        scores = torch.einsum("pbthk,pbshk->pbhts", q, k) * shape.head_dim**-0.5
        below = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        self._keep("attention logits", scores[..., below])

    def _attention_heads(self, value: Tensor) -> None:
        self._keep("attention output", value)

    def _mlp_branch(self, value: Tensor) -> None:
        self._keep("MLP branch", value)


@dataclass(frozen=True)
class Snapshot:
    """Values of every site on the probe batch: a list over layers (or heads) of [P, …]; ``loss`` is [P]."""

    values: dict[str, list[Tensor]]
    loss: Tensor


def snapshot(population: Population, tokens_BT: Tensor, targets_BT: Tensor) -> Snapshot:
    """One forward and backward pass with every site recorded; it leaves the population without gradients."""
    recorder = Recorder(population)
    hidden = population.hidden(tokens_BT, tap=recorder)
    recorder._keep("logits", linear(hidden, population.lm_head_weight).detach())
    nll_P = linear_nll(hidden, population.lm_head_weight, targets_BT).sum(1)
    count = int((targets_BT != IGNORED_TARGET).sum())
    (nll_P / count).sum().backward()  # type: ignore[no-untyped-call]
    gradients = [stream.grad for stream in recorder.streams]
    recorder.values[GRADIENT] = [gradient.detach() for gradient in gradients if gradient is not None]
    population.zero_grad(set_to_none=True)
    return Snapshot(recorder.values, (nll_P / count).detach())


def measure(now: Snapshot, first: Snapshot | None, n_layers: int, across_depth: bool) -> dict[str, list[float]]:
    """RMS [P] of every site, or of its change since ``first``.

    Over widths: the logarithm is averaged over layers, and over heads where sites are kept head by head. Over
    depths: the layer in the middle alone, which half of the branches' sum reaches at every depth. The stream
    counts at its end.
    """
    found = {}
    for name, values in now.values.items():
        taken = values if first is None else [a - b for a, b in zip(values, first.values[name], strict=True)]
        if name == "residual":
            taken = taken[-1:]
        elif across_depth and len(taken) >= n_layers:
            # The heads of a layer, or 1; the stream's gradient has one more, at the embedding.
            each = len(taken) // n_layers
            taken = taken[each * (n_layers // 2) : each * (n_layers // 2 + 1)]
        squares = torch.stack([value.double().flatten(1).square().mean(1) for value in taken])
        pooled = squares.mean(0) if across_depth else torch.exp2(squares.log2().mean(0))
        found[name] = [float(x) for x in pooled.sqrt()]
    return found
