"""Conversations that last: trees of messages in one SQLite file, searchable, shared by every front end.

Editing an earlier message makes a sibling; `leaf` names the branch that is shown. Several processes may use the same
file at once: each change is one transaction, and a reply that is being written belongs to its writer's lock. Knows no
engine, no template and no HTTP; edge.database keeps the file.

    with History() as history:
        talk = history.create()
        history.add_question(talk.id, "What is 347 + 85?", parent=None)
"""

import contextlib
import fcntl
import json
import sqlite3
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO, Any

from edge import rows
from edge.config import data_dir
from edge.database import Database
from edge.errors import ReplyRunningError, RevisionError, UnknownConversationError
from edge.messages import (
    FINISH_REASONS,
    N_TITLE_CHARS,
    Attachment,
    Conversation,
    Message,
    Settings,
    Usage,
    shortened,
    snippet,
)

UNDO_S = 600.0  # how long a deleted conversation can be restored
N_TRIGRAM = 3  # letters: shorter words are not in the index


class History:
    """The file and what is done with it. Usable from any thread; raises EdgeError for what is not there."""

    def __init__(
        self, path: Path | None = None, clock: Callable[[], float] = time.time, *, in_memory: bool = False
    ) -> None:
        """Open the history, by default the user's. Never fails: see `saving` and `problem`.

        in_memory: nothing is read and nothing is kept.
        """
        self.path = path or data_dir() / "history.db"
        self._in_memory = in_memory
        self._clock = clock
        self._writer: str | None = None
        self._writer_lock: IO[str] | None = None
        place = None if in_memory else self.path
        self._database = Database(place, rows.STEPS, ("conversation", "message"), prepare=rows.make_searchable)
        if not in_memory:
            self._finish_orphans()
        self.forget_deleted()

    def __enter__(self) -> "History":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._database.close()
        if self._writer_lock is not None:
            Path(self._writer_lock.name).unlink(missing_ok=True)
            self._writer_lock.close()

    @property
    def saving(self) -> bool:
        """False: everything works, but only in memory."""
        return self._database.saving

    @property
    def problem(self) -> str | None:
        """What the user has to know about the file, in one sentence."""
        return self._database.problem

    # ---- conversations

    def find(
        self, query: str = "", *, folder: str | None = None, limit: int = 50, before: float | None = None
    ) -> list[Conversation]:
        """The pinned ones, then the latest `limit` others. With before, only others last used before that time.

        query: words that must all occur in one message, or in the title; parts of words count.
        """
        where, values = ["deleted IS NULL"], {"folder": folder, "before": before, "limit": limit}
        hits, words = "SELECT NULL AS conversation, NULL AS number WHERE 0", query.split()
        if words:
            hits = "SELECT conversation, min(number) AS number FROM message WHERE " + self._contains(words, values)
            hits += " GROUP BY conversation"
            titles = " AND ".join(f"title LIKE :like{i} ESCAPE '\\'" for i in range(len(words)))
            where.append(f"(hit.number IS NOT NULL OR ({titles}))")
        if folder is not None:
            where.append("folder = :folder")
        select = (
            f"WITH hit AS ({hits}) SELECT c.*, hit.number FROM conversation c LEFT JOIN hit ON hit.conversation = c.id"
        )
        order = f"WHERE {' AND '.join(where)} AND pinned = {{}} ORDER BY updated DESC"

        def work(db: sqlite3.Connection) -> list[Conversation]:
            listed = [] if before is not None else db.execute(f"{select} {order.format(1)}", values).fetchall()
            others = order.format("0 AND (:before IS NULL OR updated < :before)")
            listed += db.execute(f"{select} {others} LIMIT :limit", values).fetchall()
            found = []
            for row in listed:
                talk = rows.to_conversation(row)
                if words and row["number"] is not None:
                    (text,) = db.execute("SELECT content FROM message WHERE number = ?", [row["number"]]).fetchone()
                    talk = replace(talk, snippet=snippet(text, words))
                found.append(talk)
            return found

        return self._database.read(work)

    def _contains(self, words: Sequence[str], values: dict[str, Any]) -> str:
        """The condition that a message holds every word; adds what it needs to values."""
        has_index = self._database.read(rows.has_search)
        long = [word for word in words if has_index and len(word) >= N_TRIGRAM]
        conditions = []
        if long:
            values["match"] = " AND ".join('"' + word.replace('"', '""') + '"' for word in long)
            conditions.append("number IN (SELECT rowid FROM search WHERE search MATCH :match)")
        for i, word in enumerate(words):
            values[f"like{i}"] = "%" + word.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_") + "%"
            if word not in long:
                conditions.append(f"content LIKE :like{i} ESCAPE '\\'")
        return " AND ".join(conditions)

    def folders(self) -> list[str]:
        """The names in use, sorted."""
        select = "SELECT DISTINCT folder FROM conversation WHERE folder IS NOT NULL AND deleted IS NULL ORDER BY folder"
        return self._database.read(lambda db: [folder for (folder,) in db.execute(select)])

    def create(self, title: str = "", *, folder: str | None = None, settings: Settings | None = None) -> Conversation:
        self.forget_deleted()
        new, now = _new_id(), self._clock()
        insert = "INSERT INTO conversation(id, title, folder, created, updated, settings) VALUES (?, ?, ?, ?, ?, ?)"
        row = [new, title, folder or None, now, now, rows.settings_json(settings or Settings())]

        def work(db: sqlite3.Connection) -> Conversation:
            db.execute(insert, row)
            return rows.get(db, new)

        return self._database.write(work)

    def get(self, conversation: str) -> Conversation:
        return self._database.read(lambda db: rows.get(db, conversation))

    def update(self, conversation: str, changes: Mapping[str, Any], revision: int | None = None) -> Conversation:
        """Put changes in: title, folder, pinned, leaf, settings. With revision: only if nobody else changed it."""
        changes = dict(changes)
        if "settings" in changes:
            changes["settings"] = rows.settings_json(changes["settings"])
        if "folder" in changes:
            changes["folder"] = changes["folder"] or None

        def work(db: sqlite3.Connection) -> Conversation:
            now = rows.get(db, conversation)
            if revision is not None and revision != now.revision:
                raise RevisionError(now.revision)
            if changes.get("leaf") is not None:
                rows.message_row(db, conversation, changes["leaf"])
            return rows.change(db, conversation, **changes)

        return self._database.write(work)

    def delete(self, conversation: str) -> float:
        """Take it away; returns until when `restore` brings it back."""
        self.forget_deleted()
        now = self._clock()

        def work(db: sqlite3.Connection) -> None:
            rows.get(db, conversation)
            rows.change(db, conversation, deleted=now)

        self._database.write(work)
        return now + UNDO_S

    def restore(self, conversation: str) -> Conversation:
        def work(db: sqlite3.Connection) -> Conversation:
            rows.get(db, conversation, deleted=True)
            return rows.change(db, conversation, deleted=None)

        return self._database.write(work)

    def forget_deleted(self) -> None:
        """Delete for good what was deleted longer ago than UNDO_S."""
        until = self._clock() - UNDO_S
        select = "SELECT id FROM conversation WHERE deleted < ?"
        gone = [row["id"] for row in self._database.read(lambda db: db.execute(select, [until]).fetchall())]

        def work(db: sqlite3.Connection) -> None:
            for conversation in gone:
                db.execute("DELETE FROM message WHERE conversation = ?", [conversation])
                db.execute("DELETE FROM conversation WHERE id = ?", [conversation])

        if gone:
            self._database.write(work)

    def clear(self, conversation: str) -> Conversation:
        """Delete all messages; title, folder and settings stay."""

        def work(db: sqlite3.Connection) -> Conversation:
            rows.get(db, conversation)
            db.execute("DELETE FROM message WHERE conversation = ?", [conversation])
            return rows.change(db, conversation, leaf=None)

        return self._database.write(work)

    # ---- messages

    def messages(self, conversation: str) -> list[Message]:
        """Every node of the tree, oldest first."""

        def work(db: sqlite3.Connection) -> list[Message]:
            rows.get(db, conversation)
            select = "SELECT * FROM message WHERE conversation = ? ORDER BY number"
            return [rows.to_message(row) for row in db.execute(select, [conversation])]

        return self._database.read(work)

    def message(self, conversation: str, message: str) -> Message:
        return self._database.read(lambda db: rows.to_message(rows.message_row(db, conversation, message)))

    def branch(self, conversation: str, leaf: str | None) -> list[Message]:
        """The messages from the first one to leaf."""
        by_id = {message.id: message for message in self.messages(conversation)}
        if leaf is not None and leaf not in by_id:
            raise UnknownConversationError("message", leaf)
        path = []
        while leaf is not None and leaf in by_id:  # import checks for rings
            path.append(by_id[leaf])
            leaf = path[-1].parent
        return path[::-1]

    def add_question(
        self, conversation: str, content: str, *, parent: str | None, attachments: Sequence[Attachment] = ()
    ) -> Message:
        """A message of the user behind parent; it becomes the leaf, and names a conversation without a title."""
        title = shortened(content or (attachments[0].name if attachments else ""), N_TITLE_CHARS)
        message = Message(_new_id(), parent, "user", content, self._clock(), attachments=tuple(attachments))

        def work(db: sqlite3.Connection) -> Message:
            talk = rows.get(db, conversation)
            if parent is not None:
                before = rows.message_row(db, conversation, parent)
                if before["role"] != "assistant":
                    raise UnknownConversationError("reply", parent)
                if before["writer"] is not None:
                    raise ReplyRunningError
            rows.insert(db, conversation, message)
            rows.change(db, conversation, leaf=message.id, updated=message.created, title=talk.title or title)
            return message

        return self._database.write(work)

    def begin_reply(self, conversation: str, question: str) -> Message:
        """An empty reply to a message of the user; it becomes the leaf."""
        reply = Message(_new_id(), question, "assistant", "", self._clock())
        writer = self._own_writer()

        def work(db: sqlite3.Connection) -> Message:
            if rows.message_row(db, conversation, question)["role"] != "user":
                raise UnknownConversationError("question", question)
            rows.insert(db, conversation, reply, writer)
            rows.change(db, conversation, leaf=reply.id, updated=reply.created)
            return reply

        return self._database.write(work)

    def resume_reply(self, conversation: str, reply: str) -> Message:
        """Take up a finished reply again, to write on behind its text."""
        writer, now = self._own_writer(), self._clock()

        def work(db: sqlite3.Connection) -> Message:
            row = rows.message_row(db, conversation, reply)
            if row["role"] != "assistant":
                raise UnknownConversationError("reply", reply)
            if row["writer"] is not None:
                raise ReplyRunningError
            db.execute("UPDATE message SET writer = ?, finish_reason = NULL WHERE id = ?", [writer, reply])
            rows.change(db, conversation, leaf=reply, updated=now)
            return rows.to_message(rows.message_row(db, conversation, reply))

        return self._database.write(work)

    def grow_reply(self, reply: str, content: str, reasoning: str | None) -> None:
        """The text so far; may be lost in a power cut."""
        update = "UPDATE message SET content = ?, reasoning = ? WHERE id = ?"
        self._database.write(lambda db: db.execute(update, [content, reasoning, reply]), lasting=False)

    def finish_reply(
        self, reply: str, content: str, reasoning: str | None, finish_reason: str, usage: Usage | None = None
    ) -> Message | None:
        """The whole reply. None if it was deleted meanwhile."""
        assert finish_reason in FINISH_REASONS, finish_reason
        numbers = None if usage is None else json.dumps(asdict(usage))
        values = [content, reasoning, finish_reason, numbers, reply]
        update = (
            "UPDATE message SET content = ?, reasoning = ?, finish_reason = ?, usage = ?, writer = NULL WHERE id = ?"
        )

        def work(db: sqlite3.Connection) -> Message | None:
            db.execute(update, values)
            row = db.execute("SELECT * FROM message WHERE id = ?", [reply]).fetchone()
            return None if row is None else rows.to_message(row)

        return self._database.write(work)

    def remove_message(self, conversation: str, message: str) -> Conversation:
        """Delete a message and all that follows it. The leaf moves to what is left beside or before it."""
        subtree = """WITH RECURSIVE gone(id) AS
            (SELECT ? UNION SELECT message.id FROM message JOIN gone ON message.parent = gone.id)
            DELETE FROM message WHERE id IN (SELECT id FROM gone)"""

        def work(db: sqlite3.Connection) -> Conversation:
            parent = rows.message_row(db, conversation, message)["parent"]
            db.execute(subtree, [message])
            talk = rows.get(db, conversation)
            left = db.execute("SELECT 1 FROM message WHERE id = ?", [talk.leaf]).fetchone()
            return rows.change(db, conversation, leaf=talk.leaf if left else rows.newest_leaf(db, conversation, parent))

        return self._database.write(work)

    def insert(self, talk: Conversation, messages: Sequence[Message]) -> Conversation:
        """A whole conversation from elsewhere, under the ids it has."""
        values = [talk.id, talk.title, talk.folder, talk.pinned, talk.created, talk.updated, talk.leaf]

        def work(db: sqlite3.Connection) -> Conversation:
            columns = "id, title, folder, pinned, created, updated, leaf, settings"
            db.execute(
                f"INSERT INTO conversation({columns}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                [*values, rows.settings_json(talk.settings)],
            )
            for message in messages:
                rows.insert(db, talk.id, message)
            return rows.get(db, talk.id)

        return self._database.write(work)

    # ---- who writes

    def _own_writer(self) -> str:
        """This history's name as a writer of replies, alive for as long as its lock file is locked."""
        if self._writer is None:
            self._writer = _new_id()
            if self._in_memory:
                return self._writer
            with contextlib.suppress(OSError):  # nothing can be written there: nobody else will see our replies
                self._writer_lock = self._writer_path(self._writer).open("w")
                fcntl.flock(self._writer_lock, fcntl.LOCK_EX)
        return self._writer

    def _writer_path(self, writer: str) -> Path:
        return self.path.with_name(f"{self.path.stem}-{writer}.writing")

    def _finish_orphans(self) -> None:
        """Replies whose writer is dead end as errors, with the text that they have."""
        alive = []
        for path in self.path.parent.glob(f"{self.path.stem}-*.writing"):
            with contextlib.suppress(OSError), path.open() as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink()
                except BlockingIOError:
                    alive.append(path.stem.rpartition("-")[2])
        marks = ",".join("?" * len(alive))
        which = f"writer IS NOT NULL AND writer NOT IN ({marks})"
        if self._database.read(lambda db: db.execute(f"SELECT 1 FROM message WHERE {which}", alive).fetchone()):
            update = f"UPDATE message SET finish_reason = 'error', writer = NULL WHERE {which}"
            self._database.write(lambda db: db.execute(update, alive))


def _new_id() -> str:
    return uuid.uuid4().hex
