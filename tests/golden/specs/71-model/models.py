from datetime import date

from pydantic import BaseModel, Field


class Line(BaseModel):
    text: str
    count: int = Field(gt=0)


class Invoice(BaseModel):
    dated: date
    lines: list[Line] = Field(min_length=1)
    note: str = Field(json_schema_extra={"format": "markdown"})
