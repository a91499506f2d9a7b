"""One conversation as a file: JSON that comes back whole, Markdown to read. What is imported is trusted in nothing."""

import json
import uuid
from dataclasses import fields, replace
from typing import Any

from edge.config import SAMPLING_RANGES
from edge.errors import OutOfRangeError, TransferError
from edge.messages import FINISH_REASONS, Attachment, Conversation, Message, Settings, Usage, to_json

FORMAT = "edge conversation"
VERSION = 1
N_MESSAGES_MAX = 100_000


def export_json(talk: Conversation, messages: list[Message]) -> str:
    """Everything that is kept of it, every branch and every attached text."""
    body = {
        "format": FORMAT,
        "version": VERSION,
        "conversation": to_json(talk),
        "messages": [to_json(message, texts=True) for message in messages],
    }
    return json.dumps(body, ensure_ascii=False, indent=1)


def export_markdown(talk: Conversation, branch: list[Message]) -> str:
    """One branch to read; thoughts are folded, files named."""
    parts = [f"# {talk.title or 'Conversation'}"]
    if talk.settings.system:
        parts.append("\n".join(f"> {line}" for line in talk.settings.system.splitlines()))
    for message in branch:
        parts.append("## Question" if message.role == "user" else "## Answer")
        parts += [f"*attached: {attachment.name}, {attachment.n_tokens} tokens*" for attachment in message.attachments]
        if message.reasoning:
            parts.append(f"<details><summary>thought</summary>\n\n{message.reasoning}\n\n</details>")
        parts.append(message.content or "*(nothing)*")
        if message.finish_reason not in (None, "stop"):
            parts.append(f"*(ended early: {message.finish_reason})*")
    return "\n\n".join(parts) + "\n"


def import_json(text: str | bytes) -> tuple[Conversation, list[Message]]:
    """What export_json wrote, under new ids, so that importing twice makes two. Raises TransferError."""
    try:
        body = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TransferError("it is not JSON") from error
    if not isinstance(body, dict) or body.get("format") != FORMAT:
        raise TransferError(f'it does not say "format": "{FORMAT}"')
    if body.get("version") != VERSION:
        raise TransferError(f"it has version {str(body.get('version'))[:20]}, this program reads {VERSION}")
    head, nodes = _object(body.get("conversation"), "conversation"), body.get("messages")
    if not isinstance(nodes, list) or len(nodes) > N_MESSAGES_MAX:
        raise TransferError(f"messages is no list of at most {N_MESSAGES_MAX:,}")
    messages = [_message(_object(node, f"message {i}")) for i, node in enumerate(nodes, start=1)]
    new_ids = {message.id: uuid.uuid4().hex for message in messages}
    if len(new_ids) < len(messages):
        raise TransferError("two messages have the same id")
    talk = Conversation(
        id=uuid.uuid4().hex,
        title=_text(head, "title"),
        folder=_text_or_none(head, "folder") or None,
        pinned=head.get("pinned") is True,
        created=_number(head, "created"),
        updated=_number(head, "updated"),
        leaf=new_ids.get(_text_or_none(head, "leaf") or ""),
        settings=settings_from(_object(head.get("settings"), "settings")),
        n_messages=len(messages),
        revision=1,
    )
    return talk, _in_order(messages, new_ids)


def settings_from(values: dict[str, Any]) -> Settings:
    """Settings out of foreign JSON. Raises TransferError for a name or kind that is none of theirs, OutOfRangeError."""
    settings: dict[str, Any] = {}
    for name, value in values.items():
        if name not in {field.name for field in fields(Settings)}:
            raise TransferError(f"there is no setting {str(name)[:40]!r}")
        if value is None or name == "system":
            settings[name] = _text_or_none(values, name)
            continue
        number = _number(values, name)
        low, high = SAMPLING_RANGES.get(name, (0 if name == "thinking_budget_tokens" else 1, 1 << 20))
        if not low <= number <= high:
            raise OutOfRangeError(name, number, low, high)
        if name in ("temperature", "top_p"):
            settings[name] = number
        elif number == int(number):
            settings[name] = int(number)
        else:
            raise TransferError(f"{name} is no whole number")
    return Settings(**settings)


def _in_order(messages: list[Message], new_ids: dict[str, str]) -> list[Message]:
    """The messages under their new ids, if each follows one that stands before it: a tree has no rings."""
    placed: dict[str | None, str] = {None: "assistant"}
    for message in messages:
        if placed.get(message.parent) in (None, message.role):
            raise TransferError("a message does not follow one of the other side that stands before it")
        placed[message.id] = message.role
    return [
        replace(message, id=new_ids[message.id], parent=None if message.parent is None else new_ids[message.parent])
        for message in messages
    ]


def _message(node: dict[str, Any]) -> Message:
    role, reason = node.get("role"), node.get("finish_reason")
    if role not in ("user", "assistant"):
        raise TransferError("a message has no role of user or assistant")
    if role == "assistant" and reason not in FINISH_REASONS:
        reason = "error"  # it was being written when it was exported
    attachments = node.get("attachments") or []
    if not isinstance(attachments, list):
        raise TransferError("attachments is no list")
    files = [_object(attachment, "an attachment") for attachment in attachments]
    return Message(
        id=_text(node, "id"),
        parent=_text_or_none(node, "parent"),
        role=role,
        content=_text(node, "content"),
        created=_number(node, "created"),
        reasoning=_text_or_none(node, "reasoning"),
        finish_reason=reason if role == "assistant" else None,
        usage=_usage(node["usage"]) if node.get("usage") is not None else None,
        attachments=tuple(Attachment(_text(f, "name"), _text(f, "text"), int(_number(f, "n_tokens"))) for f in files),
    )


def _usage(node: Any) -> Usage:
    values = _object(node, "usage")
    counts = ("prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens")
    n_prompt, n_cached, n_completion, n_reasoning = (int(_number(values, name)) for name in counts)
    times = _number(values, "seconds_to_first_token"), _number(values, "tokens_per_second")
    return Usage(n_prompt, n_cached, n_completion, n_reasoning, *times)


def _object(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TransferError(f"{name} is no object")
    return value


def _text(node: dict[str, Any], name: str) -> str:
    value = node.get(name)
    if not isinstance(value, str):
        raise TransferError(f"{name} is missing or no text")
    return value.encode("utf-8", "replace").decode()  # a lone surrogate cannot be stored


def _text_or_none(node: dict[str, Any], name: str) -> str | None:
    return None if node.get(name) is None else _text(node, name)


def _number(node: dict[str, Any], name: str) -> float:
    """A JSON number that is finite and of sane size."""
    value = node.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 2**53:  # NaN too
        raise TransferError(f"{name} is missing or no number")
    return value
