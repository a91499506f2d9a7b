"""What is known of one HTTP request, for the log: a line for people, or JSON for machines. Never what was asked."""

import contextvars
import json
import time
from dataclasses import asdict, dataclass, field


@dataclass
class Entry:
    """Filled while the request is answered. Times in seconds, null where a request never came that far."""

    method: str = ""
    path: str = ""
    route: str = ""  # the path as the route is written, with {names}; "" if there is none
    client: str = ""
    id: str = ""
    model: str = ""
    status: int = 0
    code: str = ""  # of the error
    n_prompt_tokens: int = 0
    n_cached_tokens: int = 0
    n_thought_tokens: int = 0
    n_answer_tokens: int = 0
    finish_reason: str = ""
    queue_time_s: float | None = None
    time_to_first_token_s: float | None = None
    total_time_s: float = 0.0
    prompt: str = ""  # only where the operator asked for it
    started_s: float = field(default_factory=time.perf_counter, repr=False)

    def line(self, *, as_json: bool) -> str:
        if as_json:
            facts = {name: value for name, value in asdict(self).items() if name != "started_s" and value != ""}
            facts = {name: round(value, 4) if isinstance(value, float) else value for name, value in facts.items()}
            return json.dumps({"time": round(time.time(), 3), **facts}, ensure_ascii=False)
        words = [f"{self.status} {self.method} {self.path}", self.client, f"{self.total_time_s:.3f} s"]
        if self.n_prompt_tokens:
            words.append(f"{self.n_prompt_tokens} prompt ({self.n_cached_tokens} cached)")
            words.append(f"{self.n_thought_tokens} thought, {self.n_answer_tokens} answer tokens")
        if self.time_to_first_token_s is not None:
            words.append(f"first after {self.time_to_first_token_s:.3f} s")
        words += [word for word in (self.finish_reason, self.code, self.id) if word]
        if self.prompt:
            words.append(repr(self.prompt))
        return ", ".join(words)


CURRENT: contextvars.ContextVar[Entry] = contextvars.ContextVar("entry")


def entry() -> Entry:
    """The entry of the request that is being answered; outside of one, an entry that nobody reads."""
    return CURRENT.get(None) or Entry()
