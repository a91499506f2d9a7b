"""What a person chose to measure: options of `edge bench` in, workloads and jobs that take turns out.

Refuses options that would do nothing beside the others. Loads no model and measures nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal

import click

from benchmarks.record import Settings
from benchmarks.runner import Job, plan_of
from benchmarks.workload import Workload, preset

CHAT_TOKENS = (16, 128)  # of a question and its reply, where --chat says no more


@dataclass(frozen=True)
class Choice:
    """The options, by their names in benchmarks/cli.py; the defaults choose the quick preset."""

    preset_name: str | None = None
    prompt: tuple[int, ...] | None = None
    gen: tuple[int, ...] | None = None
    both: tuple[tuple[int, int], ...] = ()
    depth: tuple[int, ...] = (0,)
    streams: tuple[int, ...] = (1,)
    threads: tuple[int, ...] | None = None
    repeat: int | None = None
    chat: bool = False
    shapes: tuple[str, ...] = ()
    types: tuple[str, ...] = ()
    urls: tuple[str, ...] = ()
    served: str | None = None  # the server's name of its model
    key: str | None = None
    peer: Literal["llama-bench"] | None = None
    interleave: bool = False
    gpu_layers: int | None = None
    force: bool = False

    def check(self) -> None:
        """Raise UsageError for options that would do nothing beside the others."""
        self._check_sizes()
        if self.types and not self.shapes:
            raise click.UsageError("-t is the type of a --shape; a file has its own")
        if self.served and not self.urls:
            raise click.UsageError("--model is a server's model; give its --url, or a file without --model")
        if self.peer and self.urls:
            raise click.UsageError("--peer measures the kernel, --url what a client sees; choose one of them")
        works = self.workloads()
        if self.urls and not any(map(is_for_servers, works)):
            raise click.UsageError("a server can only generate, from an empty cache; give -n N, and no -d without 0")
        if self.peer and not any(map(is_for_peers, works)):
            raise click.UsageError(f"{self.peer} has no such workload; give -p or -n, without --streams or --chat")

    def _check_sizes(self) -> None:
        sizes = {"-p": self.prompt, "-n": self.gen, "--pg": self.both, "--chat": self.chat}
        shaped = {"-d": self.depth != (0,), "--streams": self.streams != (1,)}
        given = [name for name, value in (sizes | shaped).items() if value]
        if self.preset_name and given:
            raise click.UsageError(f"a --preset has its own workloads; leave out {' and '.join(given)}, or the preset")
        if given and not any(sizes.values()):
            raise click.UsageError(f"{' and '.join(given)} alone measures nothing; give -n too, such as -n 128")
        if self.chat and shaped["-d"]:
            raise click.UsageError("--chat starts with an empty cache; leave out -d, or give a longer prompt with -p")
        if self.chat and self.both:
            raise click.UsageError("--chat reads and generates by itself; give -p and -n in place of --pg")
        if shaped["--streams"] and not (self.gen or self.chat):
            raise click.UsageError("--streams are generations; give -n too, such as -n 128")

    def workloads(self) -> list[Workload]:
        """All that is asked for. Raises UsageError if that is nothing."""
        found = [work for n in self.threads or (None,) for work in self._workloads(n)]
        if self.repeat:
            found = [replace(work, n_repetitions=self.repeat) for work in found]
        if not found:
            raise click.UsageError("nothing to measure; give -p or -n a number above 0")
        return found

    def _workloads(self, n_threads: int | None) -> list[Workload]:
        if self.preset_name or not (self.prompt or self.gen or self.both or self.chat):
            return list(preset(self.preset_name or "quick", n_threads))
        base = Workload(n_threads=n_threads)
        prompts, gens = self.prompt or (), self.gen or ()
        if self.chat:  # a reply has both
            n_prompt, n_reply = CHAT_TOKENS
            return [
                replace(base, n_prompt_tokens=p, n_generated_tokens=n, n_streams=s, view="end-to-end")
                for p in prompts or (n_prompt,) for n in gens or (n_reply,) for s in self.streams
            ]  # fmt: skip
        found = []
        for depth in self.depth:
            deep = replace(base, n_depth_tokens=depth)
            found += [replace(deep, n_prompt_tokens=n) for n in prompts if n]
            found += [replace(deep, n_generated_tokens=n, n_streams=s) for n in gens if n for s in self.streams]
            found += [replace(deep, n_prompt_tokens=p, n_generated_tokens=n) for p, n in self.both]
        return found

    def jobs(self, paths: Sequence[Path]) -> list[list[Job]]:
        """Each workload with each file and server, in groups that take turns. Raises EdgeError."""
        groups, skipped = [], []
        for work in self.workloads():
            jobs = [Job(work, path, settings=self.settings(path, work)) for path in paths]
            if self.peer and is_for_peers(work):
                jobs += [replace(job, peer=self.peer) for job in jobs]
            if self.urls and is_for_servers(work):
                seen = replace(work, view="end-to-end")
                jobs = [replace(job, workload=seen) for job in jobs]
                jobs += [Job(seen, url=url, model=self.served, key=self.key) for url in self.urls]
            elif self.urls:
                skipped.append(work.name)
            takes_turns = self.interleave or self.peer or self.urls
            groups += [jobs] if takes_turns else [[job] for job in jobs]
        if skipped:
            names = "; ".join(dict.fromkeys(skipped))
            click.echo(f"not asked of a server, which can only generate, from an empty cache: {names}", err=True)
        return [group for group in groups if group]

    def settings(self, path: Path, work: Workload) -> Settings:
        """What the plan for this board chooses. Raises NoMemoryError, with the numbers, before anything is loaded."""
        plan = plan_of(path, work, self.gpu_layers, force=self.force)
        for note in plan.notes:
            click.echo(f"{path.name}, {work.name}: {note}", err=True)
        return Settings(**{field.name: getattr(plan.settings, field.name) for field in fields(Settings)})


def is_for_peers(work: Workload) -> bool:
    return work.view == "kernel" and work.n_streams == 1 and work.n_tokens > 0 and not work.duration_s


def is_for_servers(work: Workload) -> bool:
    return work.n_generated_tokens > 0 and not work.n_depth_tokens
