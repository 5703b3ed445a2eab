"""The sections `phases`, `optimizer`, `training` and `merge`."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from mmbert.recipe.languages import LANGUAGE_SETS
from mmbert.recipe.schema.base import Name, PositiveTokens, Section, Share, Tokens, VariantName


class RopeTheta(Section):
    global_attention: float = Field(gt=0)
    local_attention: float = Field(gt=0)


class Schedule(Section):
    """Learning rate over tokens: linear warm-up, stable, then a decay to `final_fraction` of the peak."""

    warmup_tokens: Tokens = 0
    decay_tokens: Tokens = 0
    decay_shape: Literal["one_minus_sqrt", "linear"] = "one_minus_sqrt"
    final_fraction: Share = 0.0


class Batch(Section):
    """Batch sizes in rows of `max_seq_len` tokens."""

    global_batch_size: int = Field(gt=0)
    microbatch_size: int = Field(gt=0, description="rows a process computes at once")
    warmup_from: int | None = Field(None, gt=0, description="global batch size at the start of the batch warm-up")
    warmup_tokens: Tokens = 0

    @model_validator(mode="after")
    def _warmup(self) -> Self:
        if (self.warmup_from is None) != (self.warmup_tokens == 0):
            raise ValueError("warmup_from and warmup_tokens go together; set both or neither")
        if self.warmup_from is not None and self.warmup_from > self.global_batch_size:
            raise ValueError(
                f"warmup_from {self.warmup_from} is larger than global_batch_size {self.global_batch_size}"
            )
        return self


LanguageList = str | tuple[str, ...]


class Draw(Section):
    """Which languages a phase or a decay variant draws from, and the shares that are fixed by hand."""

    languages: LanguageList = Field(
        description=f"a list of codes like deu_Latn, a set of `language_sets`, or one of {', '.join(LANGUAGE_SETS)}"
    )
    source_shares: dict[str, Share] = Field(
        default_factory=dict, description="share of the tokens of each source; without, sources share by size"
    )
    language_shares: dict[str, Share] = Field(
        default_factory=dict, description="languages with a fixed share of the tokens"
    )

    @model_validator(mode="after")
    def _shares(self) -> Self:
        total = sum(self.source_shares.values())
        if self.source_shares and abs(total - 1) > 0.005:
            raise ValueError(f"source_shares add up to {total:.4f}; they must add up to 1")
        fixed = sum(self.language_shares.values())
        if fixed > 1:
            raise ValueError(f"language_shares add up to {fixed:.4f}; they must not exceed 1")
        return self


class Sampling(Section):
    temperature: float = Field(gt=0, le=1, description="p ~ size^temperature over languages")
    max_epochs: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="how often a language's text may repeat at most"
    )


class Mixture(Draw, Sampling):
    """All that decides what a phase or a decay variant draws."""


class PhaseTraining(Sampling):
    tokens: PositiveTokens = Field(description="tokens trained for, padding not counted")
    published_tokens: Tokens | None = Field(
        None, description="the token count of the published data card, where it differs"
    )
    max_seq_len: int = Field(gt=1)
    mask_probability: float = Field(gt=0, lt=1)
    rope_theta: RopeTheta
    learning_rate: float = Field(gt=0)
    weight_decay: float = Field(ge=0)
    schedule: Schedule
    batch: Batch

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for name in ("warmup_tokens", "decay_tokens"):
            length = getattr(self.schedule, name)
            if length > self.tokens:
                raise ValueError(
                    f"schedule.{name} {length:,} is longer than the phase's {self.tokens:,} tokens; set it, too"
                )
        if self.schedule.warmup_tokens + self.schedule.decay_tokens > self.tokens:
            raise ValueError(
                f"schedule.warmup_tokens {self.schedule.warmup_tokens:,} and decay_tokens "
                f"{self.schedule.decay_tokens:,} do not both fit into the phase's {self.tokens:,} tokens"
            )
        if self.batch.warmup_tokens > self.tokens:
            raise ValueError(
                f"batch.warmup_tokens {self.batch.warmup_tokens:,} is longer than the phase's {self.tokens:,} tokens; "
                "set it, too"
            )
        return self


class Phase(PhaseTraining, Draw):
    """A phase of one branch: pretrain or extend."""


class DecayPhase(PhaseTraining):
    """The last phase: a branch a variant, all from the extended model, with the same schedule and temperature."""

    variants: dict[VariantName, Draw] = Field(min_length=1)


class Phases(Section):
    pretrain: Phase
    extend: Phase
    decay: DecayPhase

    @model_validator(mode="after")
    def _context_grows(self) -> Self:
        for before, after in (("pretrain", "extend"), ("extend", "decay")):
            a, b = getattr(self, before).max_seq_len, getattr(self, after).max_seq_len
            if b < a:
                raise ValueError(
                    f"{after}.max_seq_len {b} is shorter than {before}.max_seq_len {a}; "
                    "a phase may not shrink its context"
                )
        return self


class Optimizer(Section):
    name: Literal["stableadamw"] = "stableadamw"
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = Field(1e-8, gt=0)


class BadBatches(Section):
    """What happens to a batch whose update would spoil the weights: `stop` before it, or `skip` it.

    A skipped batch changes neither weights nor optimiser; the schedule's clock goes on.
    """

    nan: Literal["stop", "skip"] = Field("stop", description="where the loss or the gradient norm is no finite number")
    spike: Literal["ignore", "stop", "skip"] = Field(
        "ignore",
        description="where the loss or the gradient norm is spike_sigmas standard deviations above its mean of the "
        "last spike_window batches",
    )
    spike_sigmas: float = Field(6.0, gt=0, allow_inf_nan=False)
    spike_window: int = Field(128, gt=1, description="batches; before so many were seen, nothing is a spike")
    max_skipped: int = Field(8, gt=0, description="batches skipped in a row at most; one more stops the phase")


class Training(Section):
    lanes: int = Field(
        gt=0,
        description="logical streams of rows, shared by processes and workers; results do not depend on who owns which",
    )
    shuffle_tokens: PositiveTokens = Field(
        131_072, description="how far a lane spreads the documents of a row, in tokens"
    )
    workers: int = Field(1, ge=0, description="loader processes a training process")
    cache_gb: float = Field(
        500, gt=0, allow_inf_nan=False, description="decompressed shards that a node keeps on its disk, in 10^9 bytes"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: cuda where there is a GPU, else cpu")
    precision: Literal["fp32", "bf16"] = Field(
        "bf16", description="of matrix products on a GPU, by autocast; a CPU always computes in fp32"
    )
    attention: Literal["auto", "varlen", "flash", "flex", "sdpa"] = Field(
        "auto", description="the attention's back end; auto: the first of these that can run (docs/performance.md)"
    )
    compile: Literal["auto"] | bool = Field(
        "auto", description="whether encoder and head are compiled; auto: on a GPU, unless attention is sdpa"
    )
    bad_batches: BadBatches = BadBatches()
    checkpoint_tokens: PositiveTokens = Field(10 * 10**9, description="tokens between two resume checkpoints")
    keep_checkpoints: int = Field(10, gt=0, description="resume checkpoints kept, the newest ones")
    permanent_checkpoint_tokens: PositiveTokens | None = Field(
        None, description="tokens between two checkpoints that are kept for good; without, none are"
    )
    log_every: int = Field(10, gt=0, description="steps between two logged points")


class Merge(Section):
    method: Literal["ties", "linear", "ema"] = "ties"
    density: float = Field(0.5, gt=0, le=1, description="ties: share of each variant's changes that is kept")
    weights: dict[Name, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(
        default_factory=dict, description="weight of each variant; without, equal"
    )
    ema_decay: float = Field(
        0.5, gt=0, lt=1, description="ema: weight of the running average against the next checkpoint"
    )
    variants: tuple[Name, ...] = Field((), description="variants that are merged; without, all")
    snapshots: int = Field(1, gt=0, description="ema: evenly spaced weights of the decay phase that are averaged")
