"""Shape: every integer that fixes tensor sizes, with its parameter and FLOP counts (arXiv 2507.22448, §2)."""

from __future__ import annotations

from math import gcd
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from mup_tune.errors import UserError
from mup_tune.files import FrozenModel, Line, find, read_yaml, validated


def _whole(value: object) -> object:
    """1e9 in a plan is the whole number it means; 64.5 and true stay errors."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


MOST = 2**63 - 1  # of a whole number: what a column of the tables holds
Positive = Annotated[int, BeforeValidator(_whole), Field(ge=1, le=MOST, strict=True)]
NonNegative = Annotated[int, BeforeValidator(_whole), Field(ge=0, le=MOST, strict=True)]
BlockOrder = Literal["SA_M", "SAM", "S_A_M"]


class Shape(FrozenModel):
    """The sizes of one Falcon-H1 model. ``d_ssm = 0`` leaves the Mamba-2 branch out.

    Derived sizes: ``d_attn = n_heads · head_dim``, ``d_kv = n_kv_heads · head_dim``,
    ``n_ssm_heads = d_ssm / ssm_head_dim``, ``d_conv = d_ssm + 2 · n_groups · d_state``.

    ``block_order`` (arXiv 2507.22448, §2): ``SA_M`` adds SSM and attention together, then the MLP; ``SAM``
    all three together; ``S_A_M`` one after the other. *Inferred*, so that parameters and the 35 multipliers
    are comparable: a branch keeps its norm in every order, and in ``S_A_M`` attention gets one of its own.
    Without an SSM branch ``S_A_M`` is ``SA_M``.
    """

    name: Line = ""
    d_model: Positive
    n_layers: Positive
    n_heads: Positive
    n_kv_heads: Positive
    head_dim: Positive
    d_ssm: NonNegative
    ssm_head_dim: Positive
    d_state: Positive
    n_groups: Positive = 1
    d_ff: Positive
    vocab_size: Positive
    conv_kernel: Positive = 4
    gated_norm: bool = False
    block_order: BlockOrder = "SA_M"
    note: str = Field(default="", exclude=True)

    @model_validator(mode="after")
    def _consistent(self) -> Shape:
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"n_heads = {self.n_heads} must be a multiple of n_kv_heads = {self.n_kv_heads}")
        if self.head_dim % 2:
            raise ValueError(f"head_dim = {self.head_dim} must be even: rotary embedding turns pairs")
        if self.d_ssm % self.ssm_head_dim:
            raise ValueError(f"d_ssm = {self.d_ssm} must be a multiple of ssm_head_dim = {self.ssm_head_dim}")
        if self.n_ssm_heads % self.n_groups:
            raise ValueError(f"{self.n_ssm_heads} SSM heads must be a multiple of n_groups = {self.n_groups}")
        return self

    @property
    def size(self) -> str:
        """Width and depth as people say them: ``d512 L4``."""
        return f"d{self.d_model} L{self.n_layers}"

    @property
    def d_attn(self) -> int:
        return self.n_heads * self.head_dim

    @property
    def d_kv(self) -> int:
        return self.n_kv_heads * self.head_dim

    @property
    def n_ssm_heads(self) -> int:
        return self.d_ssm // self.ssm_head_dim

    @property
    def d_conv(self) -> int:
        """Channels of the depthwise convolution, x then B then C; 0 without an SSM branch."""
        return self.d_ssm + 2 * self.n_groups * self.d_state if self.d_ssm else 0

    @property
    def d_in_proj(self) -> int:
        """Rows of the Mamba-2 input projection: z, x, B, C, dt; 0 without an SSM branch."""
        return self.d_ssm + self.d_conv + self.n_ssm_heads

    @property
    def slices(self) -> dict[str, dict[str, int]]:
        """The matrices that hold several projections, and the rows of each, in order."""
        groups = self.n_groups * self.d_state
        return {
            "qkv": {"q": self.d_attn, "k": self.d_kv, "v": self.d_kv},
            "ssm_in_proj": {"z": self.d_ssm, "x": self.d_ssm, "B": groups, "C": groups, "dt": self.n_ssm_heads},
        }

    @property
    def has_attention_norm(self) -> bool:
        """Whether attention reads another stream than the SSM does, and so has a norm of its own."""
        return self.block_order == "S_A_M" and self.d_ssm > 0

    def matmul_parameters(self) -> int:
        """Parameters that every token multiplies: all projections and lm_head, not the embedding look-up."""
        attention = self.d_model * (2 * self.d_attn + 2 * self.d_kv)
        ssm = self.d_model * (self.d_in_proj + self.d_ssm)
        mlp = 3 * self.d_model * self.d_ff
        return self.n_layers * (attention + ssm + mlp) + self.d_model * self.vocab_size

    def parameters(self) -> int:
        """All parameters; embedding and lm_head are untied."""
        vectors = 2 * self.d_model + (self.d_ssm if self.gated_norm else 0)
        vectors += self.d_model if self.has_attention_norm else 0
        vectors += self.d_conv * (self.conv_kernel + 1 if self.d_ssm else 0) + 3 * self.n_ssm_heads
        return self.matmul_parameters() + self.n_layers * vectors + self.d_model * (self.vocab_size + 1)

    def flops_per_token(self, seq_len: int) -> float:
        """Training FLOPs per token (forward + backward = 3 × forward; a multiply-add is 2).

        6 · matmul parameters (incl. lm_head) + attention: per layer QKᵀ and AV over a causal mean of T/2
        keys, 2 · 2 · d_attn · T/2 forward → 6 · d_attn · T + SSD: per layer state update and read-out, 2 · 2
        · d_state · d_ssm forward → 12 · d_state · d_ssm. The chunked algorithm's extra products are an
        implementation's cost, not the model's (arXiv 2405.21060, §6).
        """
        attention = 6 * self.d_attn * seq_len
        ssd = 12 * self.d_state * self.d_ssm
        return float(6 * self.matmul_parameters() + self.n_layers * (attention + ssd))


def load_shape(name_or_file: str) -> Shape:
    """A Shape by the name of a shipped YAML (``falcon-h1-0.5b``, ``cpu-64`` …) or by a file's path."""
    path = find("proxy_models", name_or_file)
    data = read_yaml(path)
    if "name" not in data:
        data["name"] = path.stem
    return validated(Shape, data, path)


RELEASED = ("falcon-h1-0.5b", "falcon-h1-1.5b", "falcon-h1-1.5b-deep", "falcon-h1-3b", "falcon-h1-7b", "falcon-h1-34b")


def width_step(shape: Shape) -> int:
    """The widths of its family are the multiples of this: at any other some count has to be rounded."""
    groups = shape.d_ssm // (shape.ssm_head_dim * shape.n_groups)
    return shape.d_model // gcd(shape.d_model, shape.n_heads, shape.n_kv_heads, groups, shape.d_ff)


def scaled(shape: Shape, width: int, depth: int | None = None) -> Shape:
    """``shape`` at another width (and depth): channel counts in proportion, head dims and d_state kept.

    Raises:
        UserError: a count would have to be rounded, and sizes of one family are compared like with like.
    """
    step = width_step(shape)
    counts = {
        field: getattr(shape, field) * width / shape.d_model for field in ("n_heads", "n_kv_heads", "d_ssm", "d_ff")
    }
    unit = {"d_ssm": shape.ssm_head_dim * shape.n_groups}
    for field, count in counts.items():
        if count % unit.get(field, 1) or (count < 1 and getattr(shape, field)):
            raise UserError(
                f"width {width} would make {field} of {shape.name!r} {count:g}, which has to be rounded",
                fix=f"Its family has the widths {step}, {2 * step}, {3 * step} …",
            )
    sizes = {field: int(count) for field, count in counts.items()}
    name = f"{shape.name}-d{width}" + (f"-L{depth}" if depth else "")
    return shape.model_copy(update={**sizes, "d_model": width, "n_layers": depth or shape.n_layers, "name": name})


def make_proxy(target: Shape, width: int, depth: int, vocab_size: int | None, name: str) -> tuple[Shape, list[str]]:
    """A Shape of ``width`` × ``depth`` with the target's channel ratios, and what had to be rounded.

    Head dims, d_state and groups are kept where the channels hold at least one head (two SSM heads a group),
    else halved until they do; query heads per KV head are kept where the head count allows.

    Raises:
        UserError: a width so small that no head fits.
    """
    if width < 16 or width % 8:
        raise UserError(f"{width} is not allowed: a proxy's width is a multiple of 8, at least 16", field="--width")
    if depth < 1:
        raise UserError(f"{depth} is not allowed: a proxy has at least one layer", field="--depth")
    if vocab_size is not None and vocab_size < 2:
        raise UserError(f"{vocab_size} is not allowed: a vocabulary has at least two tokens", field="--vocab")
    ratio = width / target.d_model
    notes: list[str] = []

    def fit(label: str, wanted: float, unit: int) -> int:
        rounded = max(unit, round(wanted / unit) * unit)
        if rounded != wanted:
            notes.append(f"{label}: {wanted:g} rounded to {rounded} (a multiple of {unit})")
        return rounded

    def unit_for(label: str, unit: int, channels: float, at_least: int) -> int:
        kept = unit
        while kept > 8 and channels < at_least * kept:
            kept //= 2
        if kept != unit:
            notes.append(f"{label}: {unit} halved to {kept}, so that {channels:g} channels hold {at_least} heads")
        return kept

    head_dim = unit_for("head_dim", target.head_dim, target.d_attn * ratio, 2 if target.n_heads > 1 else 1)
    n_heads = fit("d_attn", target.d_attn * ratio, head_dim) // head_dim
    n_kv = max(1, round(n_heads * target.n_kv_heads / target.n_heads))
    while n_heads % n_kv:
        n_kv -= 1
    if n_kv * target.n_heads != n_heads * target.n_kv_heads:
        notes.append(f"query heads per KV head: {target.n_heads / target.n_kv_heads:g} became {n_heads / n_kv:g}")
    ssm_head_dim, n_groups, d_ssm = target.ssm_head_dim, target.n_groups, 0
    if target.d_ssm:
        ssm_head_dim = unit_for("ssm_head_dim", target.ssm_head_dim, target.d_ssm * ratio, 2 * n_groups)
        d_ssm = fit("d_ssm", target.d_ssm * ratio, ssm_head_dim * n_groups)
    shape = Shape(
        name=name,
        d_model=width,
        n_layers=depth,
        n_heads=n_heads,
        n_kv_heads=n_kv,
        head_dim=head_dim,
        d_ssm=d_ssm,
        ssm_head_dim=ssm_head_dim,
        d_state=target.d_state,
        n_groups=n_groups,
        d_ff=fit("d_ff", target.d_ff * ratio, 8),
        vocab_size=vocab_size or target.vocab_size,
        conv_kernel=target.conv_kernel,
        gated_norm=target.gated_norm,
        block_order=target.block_order,
    )
    return shape, notes
