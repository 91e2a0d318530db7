"""What the older services' dialects share: checked fields, and answers read back out of OpenAI's shapes."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec
import msgspec.inspect

from deployments.contracts.errors import AtelierError, InvalidRequest
from serve_app.ingress.errors import STATUS

Fields = TypeVar("Fields", bound=msgspec.Struct)


def checked(body: dict[str, Any], fields: type[Fields]) -> Fields:
    """The fields of a body; null counts as absent where the field may be absent.

    Raises:
        InvalidRequest: a field has the wrong type or is out of range; `param` names it.
    """
    try:
        return msgspec.convert({name: value for name, value in body.items() if value is not None}, fields)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `$")
        param = where.strip(".`")
        if "required field `" in what:
            absent = what.split("field `")[1].split("`")[0]
            param, what = f"{param}.{absent}".strip("."), "is missing"
        elif what.startswith("Invalid enum value"):
            what = f"must be one of {', '.join(_choices(fields, param))}"
        else:
            what = what.replace("Expected", "must be", 1).replace(", got", ", not")
        raise InvalidRequest(f"'{param}' {what}.", param=param, code="invalid_value") from None


def _choices(fields: type[msgspec.Struct], param: str) -> list[str]:
    """The values of a field that has a fixed set of them; `history[...].role` is one of a list's items."""
    kind: Any = msgspec.inspect.type_info(fields)
    for name in re.sub(r"\[.*?\]", "", param).split("."):
        kind = getattr(kind, "item_type", kind)
        kind = next(field.type for field in kind.fields if field.name == name)
    return [str(value) for value in kind.values]


def missing(param: str, way_out: str) -> InvalidRequest:
    """The error for a field that has to be there."""
    return InvalidRequest(
        f"'{param}' is missing or empty: {way_out}.", param=param, code="missing_required_parameter"
    )


def numbered(error: AtelierError, codes: Mapping[str, tuple[int, int]], other: int) -> tuple[int, int]:
    """An error's number and HTTP status in a service that numbers its errors.

    Args:
        error: any.
        codes: number and status by the error's code, its field, or its kind: the first that is there.
        other: the number of an error that is in none of them.
    """
    for key in (error.code, error.param, error.kind):
        if key is not None and key in codes:
            return codes[key]
    return other, STATUS[error.kind][0]


class _Message(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    message: _Message | None = None
    delta: _Message | None = None
    finish_reason: str | None = None


class Usage(msgspec.Struct):
    """Tokens."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0


class _Completion(msgspec.Struct):
    choices: list[_Choice] = []
    usage: Usage | None = None


_decode = msgspec.json.Decoder(_Completion).decode


@dataclass
class Answer:
    """What a model said so far."""

    text: str = ""
    usage: Usage = field(default_factory=Usage)
    cut: bool = False
    """It ended at the request's limit of tokens."""

    def add(self, event: bytes) -> str:
        """Take in a whole chat completion, or a chunk of a streamed one; returns what it adds to the text."""
        completion = _decode(event)
        self.usage = completion.usage or self.usage
        added = ""
        for choice in completion.choices:
            said = choice.message or choice.delta
            added += (said and said.content) or ""
            self.cut = self.cut or choice.finish_reason == "length"
        self.text += added
        return added


async def retold(
    events: AsyncGenerator[list[bytes], None],
    part: Callable[[str], dict[str, Any]],
    end: Callable[[Answer], dict[str, Any]],
) -> AsyncGenerator[list[bytes], None]:
    """A stream of chat completion chunks in another service's events.

    Args:
        events: the chunks, as JSON.
        part: the event for more text.
        end: the last event, from the whole answer.
    """
    answer = Answer()
    async with aclosing(events):
        async for chunks in events:
            if text := "".join([answer.add(chunk) for chunk in chunks]):
                yield [msgspec.json.encode(part(text))]
    yield [msgspec.json.encode(end(answer))]
