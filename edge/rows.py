"""The tables of the history, and their rows: conversations and messages in, the same out.

Every function works inside of its caller's transaction. Knows no file and no lock; edge.history says when what is done.
"""

import contextlib
import json
import sqlite3
from dataclasses import asdict
from typing import Any

from edge.errors import UnknownConversationError
from edge.messages import Attachment, Conversation, Message, Settings, Usage

STEPS = (
    (
        """CREATE TABLE conversation (
            id TEXT PRIMARY KEY, title TEXT NOT NULL, folder TEXT, pinned INTEGER NOT NULL DEFAULT 0,
            created REAL NOT NULL, updated REAL NOT NULL, leaf TEXT, settings TEXT NOT NULL DEFAULT '{}',
            revision INTEGER NOT NULL DEFAULT 1, deleted REAL, n_messages INTEGER NOT NULL DEFAULT 0)""",
        "CREATE INDEX conversation_by_time ON conversation(updated)",
        # writer: who writes a reply that is not finished; its lock file tells whether it lives
        """CREATE TABLE message (
            number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, conversation TEXT NOT NULL, parent TEXT,
            role TEXT NOT NULL, created REAL NOT NULL, finish_reason TEXT, writer TEXT, usage TEXT,
            attachments TEXT NOT NULL DEFAULT '[]', content TEXT NOT NULL, reasoning TEXT)""",
        "CREATE INDEX message_of_conversation ON message(conversation)",
        "CREATE INDEX message_behind ON message(parent)",
        "CREATE INDEX message_being_written ON message(writer) WHERE writer IS NOT NULL",
        """CREATE TRIGGER message_comes AFTER INSERT ON message BEGIN
            UPDATE conversation SET n_messages = n_messages + 1 WHERE id = new.conversation; END""",
        """CREATE TRIGGER message_goes AFTER DELETE ON message BEGIN
            UPDATE conversation SET n_messages = n_messages - 1 WHERE id = old.conversation; END""",
    ),
)
# Three letters at a time, so that a word is found inside of Chinese text; a reply joins when it is whole.
SEARCH = (
    "CREATE VIRTUAL TABLE search USING fts5(content, content='message', content_rowid='number', tokenize='trigram')",
    """CREATE TRIGGER search_comes AFTER INSERT ON message WHEN new.writer IS NULL BEGIN
        INSERT INTO search(rowid, content) VALUES (new.number, new.content); END""",
    """CREATE TRIGGER search_goes AFTER DELETE ON message WHEN old.writer IS NULL BEGIN
        INSERT INTO search(search, rowid, content) VALUES ('delete', old.number, old.content); END""",
    """CREATE TRIGGER search_leaves AFTER UPDATE OF content, writer ON message WHEN old.writer IS NULL BEGIN
        INSERT INTO search(search, rowid, content) VALUES ('delete', old.number, old.content); END""",
    """CREATE TRIGGER search_joins AFTER UPDATE OF content, writer ON message WHEN new.writer IS NULL BEGIN
        INSERT INTO search(rowid, content) VALUES (new.number, new.content); END""",
    "INSERT INTO search(search) VALUES ('rebuild')",
)


def make_searchable(db: sqlite3.Connection) -> None:
    """Full-text search where this SQLite has it; else every search reads all messages."""
    if not has_search(db):
        with contextlib.suppress(sqlite3.OperationalError):
            for statement in SEARCH:
                db.execute(statement)


def has_search(db: sqlite3.Connection) -> bool:
    return db.execute("SELECT 1 FROM sqlite_master WHERE name = 'search'").fetchone() is not None


def get(db: sqlite3.Connection, conversation: str, *, deleted: bool = False) -> Conversation:
    row = db.execute("SELECT * FROM conversation WHERE id = ?", [conversation]).fetchone()
    if row is None or (row["deleted"] is not None) != deleted:
        raise UnknownConversationError("conversation", conversation)
    return to_conversation(row)


def message_row(db: sqlite3.Connection, conversation: str, message: str) -> sqlite3.Row:
    get(db, conversation)
    select = "SELECT * FROM message WHERE conversation = ? AND id = ?"
    row: sqlite3.Row | None = db.execute(select, [conversation, message]).fetchone()
    if row is None:
        raise UnknownConversationError("message", message)
    return row


def change(db: sqlite3.Connection, conversation: str, **values: Any) -> Conversation:
    columns = "".join(f"{name} = ?, " for name in values)
    db.execute(
        f"UPDATE conversation SET {columns} revision = revision + 1 WHERE id = ?",
        [*values.values(), conversation],
    )
    return to_conversation(db.execute("SELECT * FROM conversation WHERE id = ?", [conversation]).fetchone())


def insert(db: sqlite3.Connection, conversation: str, message: Message, writer: str | None = None) -> None:
    usage = None if message.usage is None else json.dumps(asdict(message.usage))
    attachments = json.dumps([asdict(attachment) for attachment in message.attachments], ensure_ascii=False)
    db.execute(
        "INSERT INTO message(id, conversation, parent, role, created, finish_reason, writer, usage, attachments,"
        " content, reasoning) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [
            message.id,
            conversation,
            message.parent,
            message.role,
            message.created,
            message.finish_reason,
            writer,
            usage,
            attachments,
            message.content,
            message.reasoning,
        ],
    )


def newest_leaf(db: sqlite3.Connection, conversation: str, start: str | None) -> str | None:
    """From start (None: before the first message) always the newest next message, to the end."""
    select = "SELECT id FROM message WHERE conversation = ? AND parent IS ? ORDER BY number DESC LIMIT 1"
    while (row := db.execute(select, [conversation, start]).fetchone()) is not None:
        start = row["id"]
    return start


def to_conversation(row: sqlite3.Row) -> Conversation:
    fields = {name: row[name] for name in ("id", "title", "folder", "created", "updated", "leaf", "revision")}
    settings = Settings(**json.loads(row["settings"]))
    return Conversation(**fields, pinned=bool(row["pinned"]), settings=settings, n_messages=row["n_messages"])


def to_message(row: sqlite3.Row) -> Message:
    fields = {name: row[name] for name in ("id", "parent", "role", "content", "created", "reasoning", "finish_reason")}
    usage = None if row["usage"] is None else Usage(**json.loads(row["usage"]))
    attachments = tuple(Attachment(**attachment) for attachment in json.loads(row["attachments"]))
    return Message(**fields, usage=usage, attachments=attachments)


def settings_json(settings: Settings) -> str:
    return json.dumps({name: value for name, value in asdict(settings).items() if value is not None})
