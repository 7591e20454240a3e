"""Text of a certain form as an option: a pattern for machines, words for whoever has written another one."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

WRONG_FORM = "wrong_form"
"""The type of pydantic's error; its context has `fix`."""


@dataclass(frozen=True, slots=True)
class TextForm:
    """An annotation: `Annotated[str, TextForm(r"^tcp://...$", "an address", "write tcp://host:port")]`.

    pattern: what the whole text matches, also in the JSON Schema, so written as ECMA-262 has it. meaning:
    follows "must be". fix: what to write instead.
    """

    pattern: str
    meaning: str
    fix: str

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._checked, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {**handler(schema), "pattern": self.pattern}

    def _checked(self, text: str) -> str:
        if re.fullmatch(self.pattern, text, re.ASCII) is None:
            raise PydanticCustomError(
                WRONG_FORM, "must be {meaning}", {"meaning": self.meaning, "fix": self.fix}
            )
        return text
