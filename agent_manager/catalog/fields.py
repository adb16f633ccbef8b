"""What fields of models.yaml are made of: types with their JSON schema, and the base of every mapping."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, PlainValidator, WithJsonSchema, model_validator

from agent_manager.catalog import values

if TYPE_CHECKING:
    from pydantic.config import JsonDict

EngineName = Literal["vllm", "vllm-cpu", "simulated"]
RuntimeName = Literal["docker", "process"]
KvCacheDtype = Literal["auto", "float16", "bfloat16", "fp8", "fp8_e4m3", "fp8_e5m2"]

_TEXTS = (str, str | None)
CLOSED: JsonDict = {"additionalProperties": False}


def _text(pattern: str) -> WithJsonSchema:
    return WithJsonSchema({"type": "string", "pattern": f"^({pattern})$"})


def _number_or(schema: dict[str, object], pattern: str) -> WithJsonSchema:
    return WithJsonSchema({"anyOf": [schema, {"type": "string", "pattern": f"^({pattern})$"}]})


Name = Annotated[str, PlainValidator(values.parse_name), _text(values.NAME)]
AgentName = Annotated[str, PlainValidator(values.parse_agent_name), _text(values.AGENT_NAME)]
Variable = Annotated[str, PlainValidator(values.parse_variable), _text(values.VARIABLE)]
Image = Annotated[
    str,
    PlainValidator(values.parse_image),
    WithJsonSchema({"type": "string", "pattern": "[:@]", "not": {"pattern": ":latest$"}}),
]
Command = list[Annotated[str, PlainValidator(values.parse_program), WithJsonSchema({"type": "string"})]]
Size = Annotated[int, PlainValidator(values.parse_size), _number_or({"const": 0}, values.SIZE)]
WholeGib = Annotated[int, PlainValidator(values.parse_whole_gib), _text(values.SIZE)]
Context = Annotated[
    int,
    PlainValidator(values.parse_context),
    _number_or({"type": "integer", "minimum": 1, "maximum": values.MAX_CONTEXT}, values.CONTEXT),
]
Duration = Annotated[
    float,
    PlainValidator(values.parse_duration),
    _number_or({"type": "number", "exclusiveMinimum": 0}, values.DURATION),
]
KeepAlive = Annotated[
    float,
    PlainValidator(values.parse_keep_alive),
    _number_or({"type": "number", "minimum": -1}, values.DURATION),
]
Alias = Annotated[str, PlainValidator(values.parse_alias), _text(values.ALIAS)]
Host = Annotated[str, PlainValidator(values.parse_host), WithJsonSchema({"type": "string"})]
Origin = Annotated[str, PlainValidator(values.parse_origin), _text(values.ORIGIN)]
KeyVariable = Annotated[str, PlainValidator(values.parse_key_variable), _text(values.VARIABLE)]
Utilization = Annotated[
    float | None,
    PlainValidator(values.parse_utilization),
    _number_or({"type": "number", "exclusiveMinimum": 0, "maximum": 1}, "auto"),
]
Repo = Annotated[str, PlainValidator(values.parse_repo), _text(r"[\w.-]+/[\w.-]+")]
Commit = Annotated[str, PlainValidator(values.parse_commit), _text(values.COMMIT)]
Folder = Annotated[str, PlainValidator(values.parse_path), WithJsonSchema({"type": "string"})]
ParserName = Annotated[str, PlainValidator(values.parse_parser_name), _text(values.PARSER_NAME)]
Text = Annotated[str, AfterValidator(str)]  # a plain str, also from the environment
ExtraArg = Annotated[str, PlainValidator(values.parse_extra_arg), WithJsonSchema({"type": "string"})]
Faults = Annotated[str, PlainValidator(values.parse_faults), _text(f"({values.FAULT})(, ?({values.FAULT}))*")]


class Section(BaseModel):
    """A mapping with known keys; anything else in it is a problem."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, defer_build=True)

    @model_validator(mode="before")
    @classmethod
    def _resolve(cls, data: object) -> object:
        """Read values from the environment as their fields need them: text stays text, an empty one is absent."""
        if not isinstance(data, dict):
            return data
        read: dict[str, object] = {}
        for key, value in data.items():
            if isinstance(value, values.Interpolated):
                field = cls.model_fields.get(key)
                found = value if field and field.annotation in _TEXTS else values.resolved(value)
                if found not in {"", None}:
                    read[key] = found
            else:
                read[key] = value
        return read
