"""A bar with the time left, on stderr, for work that tells how far it is. Knows nothing of the work."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich import progress as rich
from rich.console import Console

from convert.child import Report


@contextmanager
def progress() -> Iterator[Report]:
    """A bar with the time left on stderr, where a person looks at it; a new one for each phase."""
    columns = (rich.TextColumn("{task.description}"), rich.BarColumn(), rich.TaskProgressColumn())
    with rich.Progress(*columns, rich.TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bar:
        tasks: dict[str, rich.TaskID] = {}

        def show(phase: str, n_done: int, n_total: int) -> None:
            if phase not in tasks:
                tasks[phase] = bar.add_task(phase, total=n_total)
            bar.update(tasks[phase], completed=n_done, total=n_total)

        yield show
