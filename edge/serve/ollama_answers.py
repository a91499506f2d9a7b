"""What Ollama's routes answer, as models for the OpenAPI document. The answers themselves are plain dicts."""

from typing import Any

from pydantic import BaseModel


class ProblemAnswer(BaseModel):
    """An error in Ollama's form; code is ours and stays the same."""

    error: str
    code: str


class Version(BaseModel):
    version: str


class Details(BaseModel):
    parent_model: str
    format: str
    family: str
    families: list[str]
    parameter_size: str
    quantization_level: str


class Card(BaseModel):
    name: str
    model: str
    modified_at: str
    size: int
    digest: str
    details: Details


class Cards(BaseModel):
    models: list[Card]


class RunningCard(Card):
    expires_at: str
    size_vram: int
    context_length: int


class RunningCards(BaseModel):
    models: list[RunningCard]


class Shown(BaseModel):
    modified_at: str
    license: str
    modelfile: str
    parameters: str
    template: str
    details: Details
    model_info: dict[str, Any]
    capabilities: list[str]


class Answer(BaseModel):
    model: str
    created_at: str
    done: bool
    done_reason: str
    total_duration: int
    load_duration: int
    prompt_eval_count: int
    prompt_eval_duration: int
    eval_count: int
    eval_duration: int
    logprobs: list[dict[str, Any]] | None = None


class ChatAnswer(Answer):
    message: dict[str, Any]


class GenerateAnswer(Answer):
    response: str
    thinking: str | None = None
