"""`hooks`: which modules are observed, what of them is captured and how it is encoded."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import (
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    WithJsonSchema,
    field_validator,
    model_serializer,
)

from asys_bench.config.plugin_access import Registries
from asys_bench.config.sections.run import (
    Integer,
    Number,
    PluginName,
    Section,
    Text,
    as_list,
)
from asys_bench.contracts.labels import is_label_name
from asys_bench.registry import registry

if TYPE_CHECKING:
    from asys_bench.contracts.preprocessor import KernelOptions, KernelPlugin


class SamplingCoin(StrEnum):
    """Which random number a hook's calls are drawn with (`contracts.coin`)."""

    SHARED = "shared"
    OWN = "own"


class SamplingConfig(Section):
    """`hooks[].sampling`: how often a hook captures. The rate follows the bus (`bus.on_full: sample`)
    and a budget of rows; the control laws are in `capture.sampling`.
    """

    max_rate: Number = Field(
        default=1.0, gt=0, le=1, description="rate at the start and upper limit, as a probability"
    )
    min_rate: Number = Field(
        default=0.01,
        gt=0,
        le=1,
        description="lower limit of the rate, as a probability; only max_rows_per_s may go below it",
    )
    decrease_factor: Number = Field(
        default=0.5,
        gt=0,
        lt=1,
        description="the rate is multiplied by this when the bus refused a packet",
    )
    increase_per_s: Number = Field(
        default=0.05,
        ge=0,
        description="the rate grows by this much per second (1/s) while the bus is empty, by less "
        "the nearer its fill is to low_watermark",
    )
    high_watermark: Number = Field(
        default=0.75,
        gt=0,
        le=1,
        description="bus fill ratio (0..1) at which the rate is a tenth of what it was at "
        "low_watermark; it falls exponentially in between and beyond",
    )
    low_watermark: Number = Field(
        default=0.5,
        ge=0,
        lt=1,
        description="bus fill ratio (0..1) that the rate settles at while readers are too slow; "
        "under it the rate recovers",
    )
    max_rows_per_s: Number | None = Field(
        default=None,
        gt=0,
        description="rows per second that this hook sends on average; the rate is lowered to keep "
        "it (what a row is: `hooks[].rows`). null: as many as the bus takes",
    )
    coin: SamplingCoin = Field(
        default=SamplingCoin.SHARED,
        description="how a call is drawn: with one random number for all hooks of a call, so that of "
        "two hooks the one with the lower rate keeps calls that the other keeps too (`shared`), or "
        "independently of all others (`own`)",
    )


class Capture(StrEnum):
    """What of a module is captured; the names of `contracts.packet.Kind`."""

    ACTIVATION = "activation"
    INPUT = "input"
    GRADIENT = "gradient"
    INPUT_GRADIENT = "input_gradient"
    PARAMETER_GRADIENT = "parameter_gradient"
    PARAMETER = "parameter"
    UPDATE = "update"


class Phase(StrEnum):
    """In which mode of a module (`module.training`) its hook captures."""

    ANY = "any"
    TRAIN = "train"
    EVAL = "eval"


class RowsOf(StrEnum):
    """Which dimension of a captured tensor holds a row (`capture.points.rows`)."""

    AUTO = "auto"
    LAST = "last"
    CHANNELS = "channels"


class Missing(StrEnum):
    """What it means that a glob matches no module of this rank's model."""

    ERROR = "error"
    OK = "ok"


class PreprocessStep(Section):
    """One preprocessor; written as `name` or as `{name: {option: value}}`."""

    name: PluginName = Field(description="preprocessor plugin (entry point group `asys.kernel`)")
    options: dict[str, Any] = Field(default_factory=dict, description="the preprocessor's options")

    @model_serializer(mode="wrap")
    def _short_form(self, handler: SerializerFunctionWrapHandler) -> Any:
        options = handler(self)["options"]
        return {self.name: options} if options else self.name

    def plugin(self, registries: Registries = registry) -> KernelPlugin:
        """The preprocessor plugin. Raises PluginError if it is unknown or does not load."""
        from asys_bench.contracts.preprocessor import KernelPlugin  # imports torch

        return registries("kernel").get(self.name, KernelPlugin)

    def plugin_options(self, registries: Registries = registry) -> KernelOptions:
        """The options as the plugin's own model."""
        return self.plugin(registries).options.model_validate(self.options)


def _from_short_form(value: object) -> object:
    if isinstance(value, PreprocessStep):
        return value
    if isinstance(value, str):
        return {"name": value}
    if isinstance(value, dict) and len(value) == 1:
        ((name, options),) = value.items()
        if options is None or isinstance(options, dict):
            return {"name": name, "options": options or {}}
    raise ValueError("a preprocessor is `name` or `{name: {option: value}}`")


ShortStep = Annotated[
    PreprocessStep,
    BeforeValidator(_from_short_form),
    WithJsonSchema(
        {
            "description": "preprocessor: `name` or `{name: {option: value}}`",
            "anyOf": [
                {"type": "string"},
                {
                    "type": "object",
                    "minProperties": 1,
                    "maxProperties": 1,
                    "additionalProperties": {"type": ["object", "null"]},
                },
            ],
        }
    ),
]


def _refuse_float(value: object) -> object:
    """YAML reads an unquoted `0.10` as a number that has forgotten its zero."""
    if isinstance(value, float):
        raise ValueError(f'a path of indices must be quoted: write "{value}" if that is the path')
    return value


def _one_or_more(value: object) -> object:
    """One element may be written without the brackets of a list."""
    alone = isinstance(value, int | str) and not isinstance(value, bool)
    return [value] if alone else value


class LabelsConfig(Section):
    """`labels`: what the host says of its rows (`observation.label`), as rewards and losses."""

    horizon: Integer = Field(
        default=16384,
        ge=0,
        le=1 << 40,
        description="host steps that a label may come after the forward call that it is of; rows wait "
        "as long for the labels that are still missing",
    )
    columns: Annotated[tuple[Text, ...], BeforeValidator(as_list)] = Field(
        default=(),
        description="names of columns of a batch (of an environment's info in reinforcement learning) "
        "that callbacks send as labels, such as a sample's domain or its number",
    )

    @field_validator("columns")
    @classmethod
    def _are_names(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        wrong = [name for name in value if not is_label_name(name)]
        if wrong:
            raise ValueError(f"{wrong[0]!r} is no name of a label: letters, digits and _ alone")
        return value


class HookConfig(Section):
    """One rule: every module whose name matches is hooked this way; the first matching rule wins."""

    match: Annotated[tuple[Text, ...], BeforeValidator(as_list)] = Field(
        min_length=1,
        description="fnmatch glob over module names, or a list of them; case-sensitive",
    )
    capture: Annotated[tuple[Capture, ...], BeforeValidator(as_list)] = Field(
        default=(Capture.ACTIVATION,),
        min_length=1,
        description="what of the module is captured: its outputs (`activation`), its inputs, the "
        "loss's gradient with respect to its outputs (`gradient`) or inputs (`input_gradient`), or "
        "the accumulated gradients of its parameters, one stream `<module>.<parameter>:grad` each; every "
        "so many steps the parameters themselves (`parameter`, streams `:value`) or what was added to them "
        "since the capture before (`update`, streams `:update`)",
    )
    phase: Phase = Field(
        default=Phase.ANY,
        description="capture always, or only while `module.training` is true (`train`) "
        "or false (`eval`)",
    )
    select: Annotated[Integer | Text | None, BeforeValidator(_refuse_float)] = Field(
        default=None,
        description="which tensor of a tuple, list, dict, dataclass or model output is taken: an "
        'index, a name, or a path of both such as `hidden_states.3` or `"0.1"`; of inputs, the '
        "position or name of an argument. null takes the first tensor found",
    )
    rows: RowsOf = Field(
        default=RowsOf.AUTO,
        description="what a row is: what the last dimension holds (`last`), or the channels at one "
        "place of a tensor that keeps them first, such as an image [B, C, H, W] (`channels`); `auto` "
        "goes by the type of the module and of those in it",
    )
    preprocess: Annotated[tuple[ShortStep, ...], BeforeValidator(as_list)] = Field(
        default=(PreprocessStep(name="identity"),),
        min_length=1,
        description="chain of preprocessors, each `name` or `{name: {option: value}}`",
    )
    ranks: Annotated[tuple[Integer | Text, ...] | None, BeforeValidator(_one_or_more)] = Field(
        default=None,
        min_length=1,
        description="which ranks capture: numbers of ranks of the job, or the name of a device mesh's "
        "dimension (`tp`), along which its first rank does. For modules that give the same on several "
        "ranks. null: every rank",
    )
    missing: Missing = Field(
        default=Missing.ERROR,
        description="a glob that matches no module of the model is an error, or `ok`: other ranks have the "
        "modules (stages of a pipeline)",
    )
    every: Integer = Field(
        default=100,
        ge=1,
        description="host steps from one capture of the parameters (`parameter`) or of their change "
        "(`update`) to the next; more where they do not fit into so many steps of `mib_per_step`",
    )
    mib_per_step: Number = Field(
        default=4.0,
        gt=0,
        le=65536,
        description="most of the parameters that one host step copies, in MiB, and no less than one row: a "
        "capture goes on over as many steps as it takes",
    )
    sampling: SamplingConfig = Field(
        default_factory=SamplingConfig, description="sampling rate and its limits"
    )

    @field_validator("select")
    @classmethod
    def _no_empty_parts(cls, value: int | str | None) -> int | str | None:
        if isinstance(value, str) and "" in value.split("."):
            raise ValueError("a path is indices and names with single dots between them")
        return value

    @field_validator("capture")
    @classmethod
    def _no_repeats(cls, value: tuple[Capture, ...]) -> tuple[Capture, ...]:
        if len(set(value)) != len(value):
            raise ValueError("each kind of capture may be listed once")
        return value
