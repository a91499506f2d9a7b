"""The process that renders a chat template: JSON lines in, text in segments out. Started by edge.model.template.

It imports nothing of edge and holds no secret, for the template it runs may be hostile. Around Jinja's immutable
sandbox the kernel keeps the limits: once set up, this process can open no file and no socket, write nothing to disk,
use no more memory than it was given, and is ended by an alarm that no template code can put off.

Which characters are the template's own: every text literal of the template is compiled to a Marked string, which
carries a mark per character through +, ~, join, slices, strip, split, replace and the like. Whatever else is done to
a string gives an ordinary one. So text that is not certainly the template's counts as the user's, never the reverse.
"""

import datetime
import json
import resource
import signal
import sys
from collections.abc import Iterable, Mapping
from typing import Any, SupportsIndex

import jinja2
import jinja2.debug  # Jinja loads it at the first error; then it would be too late to open a file
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.filters import do_join
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

ROLES = ("system", "user", "assistant", "tool", "developer", "function", "ipython", "model")
MAX_OUTPUT_CHARS = 16 << 20
MAX_PROBLEM_CHARS = 400


class RefusalError(Exception):
    """The template called raise_exception: it does not take these messages."""


# ---- text that knows which of its characters the template wrote


class Marked(str):
    """Text with a mark per character, 1 for the template's own. Equal to its text, and used as it."""

    marks: bytes

    def __new__(cls, text: str = "", marks: bytes | None = None) -> "Marked":
        self = super().__new__(cls, text)
        self.marks = bytes(len(text)) if marks is None else marks
        return self

    def __str__(self) -> str:
        return self

    def __add__(self, other: str) -> str:
        return Marked(str.__add__(self, other), self.marks + marks_of(other))

    def __radd__(self, other: str) -> str:
        return Marked(str.__add__(other, self), marks_of(other) + self.marks)

    def __mul__(self, n: SupportsIndex) -> str:
        return Marked(str.__mul__(self, n), self.marks * n.__index__())

    __rmul__ = __mul__

    def __getitem__(self, key: SupportsIndex | slice) -> str:
        text = str.__getitem__(self, key)
        return Marked(text, self.marks[key] if isinstance(key, slice) else bytes((self.marks[key],)))

    def join(self, items: Iterable[str], /) -> str:
        texts = list(items)
        return Marked(str.join(self, texts), self.marks.join(map(marks_of, texts)))

    def replace(self, old: str, new: str, count: SupportsIndex = -1, /) -> str:
        if not old:
            return str.replace(self, old, new, count)
        return Marked(new, marks_of(new)).join(self.split(old, count))

    def lstrip(self, chars: str | None = None, /) -> str:
        return self[len(self) - len(str.lstrip(self, chars)) :]

    def rstrip(self, chars: str | None = None, /) -> str:
        return self[: len(str.rstrip(self, chars))]

    def strip(self, chars: str | None = None, /) -> str:
        return self.lstrip(chars).rstrip(chars)

    def removeprefix(self, prefix: str, /) -> str:
        return self[len(prefix) :] if self.startswith(prefix) else self

    def removesuffix(self, suffix: str, /) -> str:
        return self[: len(self) - len(suffix)] if self.endswith(suffix) else self

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return self._found(str.split(self, sep, maxsplit), sep)

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return self._found(str.rsplit(self, sep, maxsplit), sep)

    def splitlines(self, keepends: bool = False) -> list[str]:
        whole = self._found(str.splitlines(self, True), "")
        return (
            whole if keepends else [line[: len(text)] for line, text in zip(whole, str.splitlines(self), strict=True)]
        )

    def partition(self, sep: str, /) -> tuple[str, str, str]:
        at = len(str.partition(self, sep)[0])
        return self[:at], self[at : at + len(sep)], self[at + len(sep) :]

    def rpartition(self, sep: str, /) -> tuple[str, str, str]:
        at = len(self) - len(str.rpartition(self, sep)[2])
        start = max(at - len(sep), 0) if sep in self else 0
        return self[:start], self[start:at], self[at:]

    def upper(self) -> str:
        return self._of_same_length(str.upper(self))

    def lower(self) -> str:
        return self._of_same_length(str.lower(self))

    def capitalize(self) -> str:
        return self._of_same_length(str.capitalize(self))

    def title(self) -> str:
        return self._of_same_length(str.title(self))

    def _of_same_length(self, text: str) -> str:
        return Marked(text, self.marks) if len(text) == len(self) else text

    def _found(self, pieces: list[str], sep: str | None) -> list[str]:
        """The pieces a split gave, as slices of this text: each begins where the last and its separator end."""
        found, at = [], 0
        for piece in pieces:
            at = self.index(piece, at)
            found.append(self[at : at + len(piece)])
            at += len(piece) + len(sep or "")
        return found


def marks_of(text: str) -> bytes:
    return text.marks if isinstance(text, Marked) else bytes(len(text))


def own(text: str) -> Marked:
    """Text of the template."""
    return Marked(text, b"\1" * len(text))


def concatenated(texts: Iterable[str]) -> str:
    return Marked().join(texts)


def segments(text: str) -> list[tuple[str, bool]]:
    """Cut where the marks change: [(text, is_template), …], none empty."""
    marks, plain = marks_of(text), str.__str__(text)
    found, at = [], 0
    while at < len(marks):
        mark = marks[at : at + 1]
        end = marks.find(b"\0" if mark == b"\1" else b"\1", at)
        end = len(marks) if end < 0 else end
        found.append((plain[at:end], mark == b"\1"))
        at = end
    return found


# ---- Jinja as Hugging Face sets it up, with Marked literals


class _Generator(CodeGenerator):
    """Writes text literals as environment.own(…), and ~ so that marks survive."""

    def visit_Const(self, node: nodes.Const, frame: Frame) -> None:
        if isinstance(node.value, str):
            self.write(f"environment.own({node.value!r})")
        else:
            super().visit_Const(node, frame)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.concat((")
        for part in node.nodes:
            self.write("str(")
            self.visit(part, frame)
            self.write("), ")
        self.write("))")

    def _output_const_repr(self, group: Iterable[Any]) -> str:
        return f"environment.own({''.join(group)!r})"


class _Environment(ImmutableSandboxedEnvironment):
    code_generator_class = _Generator
    concat = staticmethod(concatenated)
    own = staticmethod(own)

    def unsafe_undefined(self, obj: Any, attribute: str) -> jinja2.Undefined:
        """Jinja would write nothing for what the sandbox forbids; who reaches for it is told so."""
        raise SecurityError(f"it reaches for {attribute!r} of a {type(obj).__name__}, which is unsafe")

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """'<{}>'.format(x) of nothing but the template's own text is its own, too."""
        result = super().call(context, obj, *args, **kwargs)
        if isinstance(result, Marked) and getattr(obj, "__name__", "") == "format":
            form = getattr(getattr(obj, "__wrapped__", obj), "__self__", None)  # Jinja wraps the method
            if all(isinstance(part, Marked) and b"\0" not in part.marks for part in (form, *args, *kwargs.values())):
                return own(result)
        return result


class _Generation(Extension):
    """{% generation %}…{% endgeneration %} marks what to train on; here it only encloses."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's own attribute

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


def environment() -> jinja2.Environment:
    found = _Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        optimized=False,  # folded constants would be literals we do not see
        extensions=["jinja2.ext.loopcontrols", _Generation],
    )
    found.filters["tojson"] = _to_json
    found.filters["join"] = _join
    found.globals["raise_exception"] = _raise_exception
    found.globals["strftime_now"] = _strftime_now
    del found.globals["lipsum"]  # reads a file of Jinja's
    return found


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


@jinja2.pass_eval_context
def _join(eval_ctx: nodes.EvalContext, value: Iterable[Any], d: str = "", attribute: Any = None) -> str:
    return str(do_join(eval_ctx, value, d or Marked(), attribute))  # Jinja would join by an unmarked ''


def _raise_exception(message: str) -> None:
    raise RefusalError(message)


def _strftime_now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


def render(template: jinja2.Template, bos: str, eos: str, request: Mapping[str, Any]) -> list[tuple[str, bool]]:
    """Render one request: messages, tools, add_generation_prompt, enable_thinking."""
    values = {
        **request,
        "messages": [_with_own_role(message) for message in request["messages"]],
        "documents": None,
        "bos_token": own(bos),
        "eos_token": own(eos),
    }
    text = concatenated(template.root_render_func(template.new_context(values)))
    if len(text) > MAX_OUTPUT_CHARS:
        raise ValueError(f"it wrote {len(text):,} characters")
    return segments(text)


def _with_own_role(message: Mapping[str, Any]) -> dict[str, Any]:
    """A known role counts as the template's word: '<|' + role + '|>' must come out as one control token."""
    role = message.get("role")
    return {**message, "role": own(role)} if isinstance(role, str) and role in ROLES else dict(message)


# ---- the process


def main() -> None:
    """Read the template, then answer one request per line until the other end closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the program that started this one
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    setup = json.loads(sys.stdin.buffer.readline().decode("utf-8", "surrogatepass"))
    jinja = environment()
    jinja.from_string("{% for m in messages %}{{ '\\u00e9' ~ m|trim + 'é' }}{% endfor %}").render(messages=["x"])
    _strftime_now("%c")  # loads the time zone
    _confine(setup["memory_bytes"])
    sys.stdout.buffer.write(_line(ready=True))
    sys.stdout.buffer.flush()
    template = None
    for line in sys.stdin.buffer:
        signal.setitimer(signal.ITIMER_REAL, setup["time_s"])  # SIGALRM's default is the end
        try:
            request = json.loads(line.decode("utf-8", "surrogatepass"))
            template = template or jinja.from_string(setup["source"])
            answer = _line(segments=render(template, setup["bos"], setup["eos"], request))
        except RefusalError as error:
            answer = _line(refusal=str(error)[:MAX_PROBLEM_CHARS])
        except MemoryError:
            answer = _line(problem=f"it needs more than {setup['memory_bytes'] >> 20} MB")
        except Exception as error:  # noqa: BLE001 - a template can raise anything
            answer = _line(problem=_problem(error)[:MAX_PROBLEM_CHARS])
        signal.setitimer(signal.ITIMER_REAL, 0)
        sys.stdout.buffer.write(answer)
        sys.stdout.buffer.flush()


def _line(**values: Any) -> bytes:
    return json.dumps(values, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"


def _problem(error: Exception) -> str:
    if isinstance(error, jinja2.TemplateSyntaxError):
        return f"line {error.lineno}: {error.message}"
    if isinstance(error, jinja2.TemplateError):
        return str(error.message)
    if isinstance(error, RecursionError):
        return "it is nested too deeply, or calls itself for ever"
    return f"{type(error).__name__}: {error}"


def _confine(memory_bytes: int) -> None:
    """Give up what a render has no need of. macOS does not enforce RLIMIT_AS; there only the alarm holds."""
    for kind, limit in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 3),  # standard input, output and error; nothing can be opened beside them
    ):
        hard = resource.getrlimit(kind)[1]
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        try:
            resource.setrlimit(kind, (limit, limit))
        except (OSError, ValueError):
            if sys.platform == "linux":
                raise


if __name__ == "__main__":
    main()
