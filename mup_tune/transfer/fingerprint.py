"""Does a model compute what an export says? A narrow copy of it against ours, on the same weights.

Full sizes do not fit, and multipliers that are 1 hide their absence. So the copy has the target's kinds of
heads, groups and norms at a few channels, and all 14 forward factors differ from 1 and from each other. Where
logits differ, our own model is tried with factors left out or applied twice: what gives their logits is what
is wrong with theirs.

Shape suffixes: P members, each with faults of its own; B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, product
from math import inf
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mup_tune.errors import UserError
from mup_tune.files import read_json, read_yaml, validated
from mup_tune.model import hf
from mup_tune.model.falcon_h1 import Population
from mup_tune.multipliers import FORWARD
from mup_tune.roles import RoleTable, role_table
from mup_tune.settings import load_settings
from mup_tune.shape import Shape
from mup_tune.transfer.torch_model import named_parameters

# Relative norms of differences. Two right models in float32 are 1e-6 apart, gradients 1e-5; the least visible
# fault moves logits by more than 1e-2.
TOLERANCE = 1e-3
ROWS, TOKENS = 2, 37  # no multiple of any chunk
LISTS = dict.fromkeys(each.config_field for each in FORWARD.values() if each.config_index is not None)
MEMBERS = 128  # of our model, tried side by side

Factory = Callable[[dict[str, Any]], nn.Module]
Kind = Literal["missing", "doubled"]
POWERS: dict[Kind, int] = {"missing": 0, "doubled": 2}


@dataclass(frozen=True)
class Fault:
    """A forward factor that the model leaves out or applies twice. ``field`` is its place in config.json."""

    multiplier: str
    kind: Kind

    @property
    def field(self) -> str:
        return FORWARD[self.multiplier].config_path

    def __str__(self) -> str:
        return f"{self.multiplier} is {self.kind}: {self.field}, {FORWARD[self.multiplier].about}"


@dataclass(frozen=True)
class Fingerprint:
    """How far a model is from ours, in relative norms. ``gradient_errors`` are by our names of parameters.

    ``faults`` are those that explain the difference of the logits within ``TOLERANCE``, in config.json's
    order. They are empty where nothing has to be explained and where nothing explains it.
    """

    logits_error: float
    gradient_errors: dict[str, float]
    faults: tuple[Fault, ...] = ()

    @property
    def same_logits(self) -> bool:
        return self.logits_error <= TOLERANCE

    @property
    def wrong_gradients(self) -> tuple[str, ...]:
        return tuple(name for name, error in self.gradient_errors.items() if not error <= TOLERANCE)

    @property
    def passed(self) -> bool:
        return self.same_logits and not self.wrong_gradients


def narrow(target: Shape) -> Shape:
    """Two layers of a few channels with the target's ratio of heads, groups, gated norm and kernel."""
    kv_heads = min(target.n_kv_heads, 2)
    return Shape(
        name=f"{target.name}-narrow",
        d_model=48,
        n_layers=2,
        n_heads=kv_heads * (target.n_heads // target.n_kv_heads),
        n_kv_heads=kv_heads,
        head_dim=16,
        d_ssm=32 * target.n_groups,
        ssm_head_dim=16,
        d_state=8,
        n_groups=target.n_groups,
        d_ff=80,
        vocab_size=64,
        conv_kernel=target.conv_kernel,
        gated_norm=target.gated_norm,
        block_order=target.block_order,
    )


class Probe:
    """The narrow copy of an export's target: config, weights, tokens, and what ours makes of them.

    Raises:
        UserError: ``export`` is no export, or of a Shape that config.json cannot express.
    """

    def __init__(self, export: Path) -> None:
        path = export / "shape.yaml"
        shape = narrow(validated(Shape, read_yaml(path), path))
        table = role_table(shape, load_settings(str(export / "settings.yaml"), None))
        # 2^±(0.35 … 1), the sign in turn: none near 1, no two alike.
        forward = {name: 2 ** ((0.35 + 0.05 * index) * (-1) ** index) for index, name in enumerate(table.forward)}
        self.table: RoleTable = dataclasses.replace(table, forward=forward)
        self.config = {**read_json(export / "config.json"), **hf.hf_config(self.table)}
        generator = torch.Generator().manual_seed(0)
        self.tokens_BT, self.targets_BT = torch.randint(shape.vocab_size, (2, ROWS, TOKENS), generator=generator)
        self._ours = self._population([()])
        with torch.no_grad():
            for name, weight in hf.state_dict(self._ours, 0).items():
                _randomise_(weight, name, generator)

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        """By ``transformers`` names."""
        return hf.state_dict(self._ours, 0)

    def reference(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Our logits [B, T, V], and gradients by ``transformers`` names."""
        self._ours.zero_grad()
        logits_BTV = self._ours.logits(self.tokens_BT)[0]
        self.loss(logits_BTV).backward()  # type: ignore[no-untyped-call]
        return logits_BTV.detach(), hf.gradients(self._ours, 0)

    def loss(self, logits_BTV: Tensor) -> Tensor:
        """Whose gradients are compared: mean nats/token on random targets."""
        return F.cross_entropy(logits_BTV.flatten(0, 1), self.targets_BT.flatten())

    def explained(self, logits_BTV: Tensor) -> tuple[Fault, ...]:
        """The first of :meth:`_suspicions` with which our model gives these logits; else none."""
        for tried in self._suspicions():
            errors: list[float] = []
            for start in range(0, len(tried), MEMBERS):
                errors += self._errors(tried[start : start + MEMBERS], logits_BTV)
            best = min(range(len(tried)), key=errors.__getitem__)
            if errors[best] <= TOLERANCE:
                return tried[best]
        return ()

    @torch.no_grad()
    def _errors(self, faults_P: Sequence[tuple[Fault, ...]], logits_BTV: Tensor) -> list[float]:
        """How far from these logits our model is with each list of faults."""
        population = self._population(faults_P)
        for member in range(len(faults_P)):
            hf.load_state_dict_(population, member, self.weights)
        return [_error(ours_BTV, logits_BTV) for ours_BTV in population.logits(self.tokens_BT)]

    def _suspicions(self) -> Iterator[list[tuple[Fault, ...]]]:
        """What to try, simplest first: one multiplier; all of a config field, or all there are; two."""
        names = list(self.table.forward)
        fields = [[name for name in names if FORWARD[name].config_field == field] for field in LISTS]
        yield [(Fault(name, kind),) for name in names for kind in POWERS]
        yield [tuple(Fault(name, kind) for name in some) for some in (*fields, names) for kind in POWERS]
        yield [
            tuple(Fault(*each) for each in zip(two, kinds, strict=True))
            for two in combinations(names, 2)
            for kinds in product(POWERS, repeat=2)
        ]

    def _population(self, faults_P: Sequence[tuple[Fault, ...]]) -> Population:
        """Our model, a member for each list of faults, without weights yet."""
        tables = []
        for faults in faults_P:
            wrong = {each.multiplier: self.table.forward[each.multiplier] ** POWERS[each.kind] for each in faults}
            tables.append(dataclasses.replace(self.table, forward={**self.table.forward, **wrong}))
        population = Population(self.table.shape, len(tables))
        population.set_roles(tables)
        return population


def fingerprint(export: Path, factory: Factory) -> Fingerprint:
    """Compare what ``factory`` builds with our model of the same narrow config and weights.

    Args:
        export: a folder that ``mup-tune transfer`` wrote.
        factory: takes the parsed config.json of the narrow copy. What it returns has float32 parameters with
            the names and shapes of ``transformers``; called on int64 token ids [B, T] it returns logits
            [B, T, V], or an object whose ``logits`` they are.

    Raises:
        UserError: no export, or a model that does not keep this contract.
    """
    probe = Probe(export)
    ours_BTV, exact = probe.reference()
    model = factory(dict(probe.config))
    if not isinstance(model, nn.Module):
        raise UserError(f"the factory returned a {type(model).__name__}, not a torch.nn.Module", field="--model")
    parameters = named_parameters(model)
    _fill_(parameters, probe.weights)
    device = next(iter(parameters.values())).device
    out = model(probe.tokens_BT.to(device))
    logits_BTV = getattr(out, "logits", out)
    if not isinstance(logits_BTV, Tensor) or logits_BTV.shape != ours_BTV.shape:
        what = tuple(logits_BTV.shape) if isinstance(logits_BTV, Tensor) else type(logits_BTV).__name__
        raise UserError(f"the model returned {what}, not logits of {tuple(ours_BTV.shape)}", field="--model")
    logits_BTV = logits_BTV.cpu().float()
    if logits_BTV.requires_grad:  # else no parameter takes part, and all of them fail
        probe.loss(logits_BTV).backward()  # type: ignore[no-untyped-call]
    found = {name: parameter.grad for name, parameter in parameters.items()}
    error = _error(logits_BTV.detach(), ours_BTV)
    faults = () if error <= TOLERANCE else probe.explained(logits_BTV.detach())
    return Fingerprint(error, _gradient_errors(probe.table.shape, found, exact), faults)


def _fill_(parameters: Mapping[str, nn.Parameter], weights: Mapping[str, Tensor]) -> None:
    for name in sorted(parameters.keys() ^ weights.keys()):
        problem = "is missing" if name in weights else "is not one of transformers' names"
        raise UserError(f"the parameter {name!r} {problem}", field="--model", fix="Rename it in the factory")
    for name, parameter in parameters.items():
        if parameter.shape != weights[name].shape:
            got, wanted = tuple(parameter.shape), tuple(weights[name].shape)
            raise UserError(f"the parameter {name!r} has the shape {got}, not {wanted}", field="--model")
        with torch.no_grad():
            parameter.copy_(weights[name])


def _gradient_errors(shape: Shape, found: Mapping[str, Tensor | None], exact: Mapping[str, Tensor]) -> dict[str, float]:
    """By our name of a parameter, over all layers; infinite where a parameter took no part."""
    names: dict[str, list[str]] = {}
    for entry in hf.hf_parameters(shape):
        names.setdefault(entry.ours.rpartition(".")[2], []).append(entry.hf)
    errors = {}
    for ours, theirs in names.items():
        gradients = [gradient.cpu().float() for name in theirs if (gradient := found[name]) is not None]
        complete = len(gradients) == len(theirs)
        errors[ours] = _error(_flat(gradients), _flat([exact[name] for name in theirs])) if complete else inf
    return errors


def _flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


def _error(found: Tensor, exact: Tensor) -> float:
    """Norm of the difference over the norm of ``exact``; infinite where something is not finite."""
    error = float((found - exact).norm() / exact.norm())
    return error if error < inf else inf


def _randomise_(weight: Tensor, name: str, generator: torch.Generator) -> None:
    """Weights at which every factor shows: an init's small dt would hide the SSM's B and C."""
    is_matrix = weight.ndim == 2
    weight.normal_(0, weight.shape[-1] ** -0.5 if is_matrix else 0.5, generator=generator)
    if "norm" in name or name.endswith(".D"):
        weight.add_(1)
    if "embed_tokens" in name:
        weight.mul_(weight.shape[-1] ** 0.5)
