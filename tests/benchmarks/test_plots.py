"""Pictures of several boards: every name whole and inside, every board under its roof or told why not, from zero."""

import re
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text

from benchmarks import page, plots
from benchmarks.record import Conditions, Memory, Moment, Reason, Record
from benchmarks.workload import Workload
from tests.benchmarks.records import GENERATION, MODEL, PI, PROMPT, record

MODELS = [
    replace(MODEL, name="DeepSeek-R1-Distill-Qwen-1.5B-Q4_K_M.gguf", bytes_read_per_token=980 * 10**6),
    replace(MODEL, name="Llama-3.2-3B-Instruct-abliterated-Q4_0.gguf", bytes_read_per_token=1900 * 10**6),
]
ROCK = replace(PI, name="Radxa ROCK 5B", ram_bytes=16 << 30, read_bytes_per_s=21e9)
LAPTOP = replace(PI, name="Intel(R) Core(TM) i7-1165G7 @ 2.80GHz", ram_bytes=32 << 30, read_bytes_per_s=None)
BOARDS = (PI, ROCK, LAPTOP)
MEMORY = Memory(1_300_000_000, 1_150_000_000, 30_000_000)
WORK = (
    PROMPT,
    GENERATION,
    *(replace(GENERATION, n_depth_tokens=n) for n in (512, 4096)),
    *(replace(GENERATION, n_streams=n) for n in (2, 8)),
)
HEAT = Conditions(tuple(Moment(10.0 * i, True, 50.0 + i, 2400.0) for i in range(12)), 120.0)
LONG = Workload(n_generated_tokens=32, duration_s=120)
SEVERAL = [
    made
    for model in MODELS
    for board in BOARDS
    for made in (
        *(record(work, model=model, board=board, memory=MEMORY) for work in WORK),
        record(elapsed_s=(15.0,) * 5, n_threads=2, model=model, board=board, memory=MEMORY),
        record(LONG, (3.0,) * 30, model=model, board=board, memory=MEMORY, conditions=HEAT),
    )
]
# of the width of a page, without a comma or a space to break it at
ENDLESS = [replace(made, model=replace(made.model, name="W" * 200 + "-Q4_0.gguf")) for made in SEVERAL[:8]]


def laid_out(figure: Figure) -> Figure:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib gives up a layout with no more than a warning
        FigureCanvasAgg(figure).draw()
    return figure


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


@pytest.mark.parametrize("made", [SEVERAL, ENDLESS, SEVERAL[:1]], ids=["several", "endless", "one"])
def test_no_text_leaves_its_picture(made: list[Record]) -> None:
    sheet = laid_out(plots.sheet(made))
    figures = [laid_out(figure) for figure in plots.pictures(made).values()]
    for figure in (*figures, *(part for part in sheet.subfigs if part.axes)):
        outer, renderer = figure.bbox, figure.figure.canvas.get_renderer()  # type: ignore[attr-defined]
        boxes: list[Any] = [axes.get_tightbbox(renderer) for axes in figure.axes]  # type: ignore[union-attr]
        boxes += [legend.get_window_extent(renderer) for legend in figure.legends]
        boxes += [text.get_window_extent(renderer) for text in figure.findobj(Annotation)]
        for box in boxes:
            assert outer.x0 <= box.x0 < box.x1 <= outer.x1
            assert outer.y0 <= box.y0 < box.y1 <= outer.y1


def test_the_axes_keep_their_room_and_the_legend_does_not_cover_them() -> None:
    for figure in map(laid_out, plots.pictures(SEVERAL).values()):
        axes = figure.axes[0].get_window_extent()
        assert axes.width > 0.7 * figure.bbox.width
        assert axes.height > 1.2 * figure.dpi
        assert all(legend.get_window_extent().y1 < axes.y0 for legend in figure.legends)


def test_names_above_bars_touch_neither_each_other_nor_the_bars() -> None:
    for name in ("generation", "prompt", "memory"):
        axes = laid_out(plots.pictures(SEVERAL)[name]).axes[0]
        names = [text.get_window_extent() for text in axes.findobj(Annotation) if text.get_text()[0].isalpha()]
        bars = [bar.get_window_extent() for bar in axes.patches]
        assert len(names) == len(MODELS) * len(BOARDS)
        for i, box in enumerate(names):
            assert not any(box.y0 < other.y1 and other.y0 < box.y1 for other in (*names[:i], *bars))


def test_a_name_is_broken_between_its_parts_only() -> None:
    models = [model.name.removesuffix(".gguf") for model in MODELS]
    for name, figure in plots.pictures(SEVERAL).items():
        lines = {line for text in texts(figure) for line in text.split("\n")}
        assert {board.name for board in BOARDS} <= lines
        assert name == "roofline" or set(models) <= lines
    assert plots.wrapped(["model-Q4_0, Rock 5B"], 200) == ["model-Q4_0, Rock 5B"]
    assert plots.wrapped(["model-Q4_0, Rock 5B", "m, b"], 60) == ["model-Q4_0\nRock 5B", "m\nb"]
    assert re.fullmatch(r"W+…W*-Q4_0", plots.cut("W" * 200 + "-Q4_0", 200))


def test_every_board_has_its_roof_or_is_told_to_have_none() -> None:
    slow_probe = record(model=MODELS[0], board=replace(PI, read_bytes_per_s=3e9))
    small = replace(PI, ram_bytes=4 << 30, read_bytes_per_s=9e9)
    for made, names in (
        ([*SEVERAL, slow_probe], [
            f"{PI.name}\nreads 12.0 GB/s", f"{ROCK.name}\nreads 21.0 GB/s", f"{LAPTOP.name}\nlimit not measured",
        ]),
        ([*SEVERAL[:8], record(model=MODELS[0], board=small)], [
            f"{PI.name} 8.0 GiB, reads 12.0 GB/s", f"{PI.name} 4.0 GiB, reads 9.0 GB/s",
        ]),
    ):  # fmt: skip
        figure = plots.pictures(made)["roofline"]
        assert [text.get_text() for text in figure.legends[0].get_texts()] == names
        roofs = [line for line in figure.axes[0].lines if line.get_linestyle() == "-"]
        points = [line for line in figure.axes[0].lines if line.get_linestyle() == "None"]
        assert len(roofs) == sum("reads" in name for name in names)
        drawn = [r for r in made if r.bytes_per_token and r.workload.n_streams == 1]
        assert sum(np.size(line.get_xdata()) for line in points) == len(drawn)


def test_models_of_very_different_size_lie_under_a_straight_roof() -> None:
    tiny = record(model=replace(MODEL, name="tiny.gguf", bytes_read_per_token=10**6), board=PI)
    assert plots.pictures([*SEVERAL, tiny])["roofline"].axes[0].get_xscale() == "log"
    assert plots.pictures(SEVERAL)["roofline"].axes[0].get_xscale() == "linear"


def test_every_axis_with_numbers_begins_at_zero_and_tells_its_unit() -> None:
    for figure in plots.pictures(SEVERAL).values():
        for axes in figure.axes:
            numbered = [
                axis for axis in (axes.xaxis, axes.yaxis) if len(axis.get_major_locator()()) and axis.get_visible()
            ]
            for axis in numbered:
                assert axis.get_view_interval()[0] == 0
                assert axis.get_label_text()


def test_a_line_keeps_its_colour_in_every_picture_and_looks_like_no_other() -> None:
    made = [*SEVERAL[:3], *SEVERAL[8:]]  # the first has no streams, which must not move the colours of the others
    looks: dict[str, set[tuple[object, object]]] = {}
    for name in ("depth", "streams", "threads"):
        figure = plots.pictures(made).get(name)
        for line in figure.axes[0].lines if figure else ():
            if not str(line.get_label()).startswith("_"):
                looks.setdefault(str(line.get_label()), set()).add((line.get_color(), line.get_marker()))
    assert all(len(look) == 1 for look in looks.values())
    assert len(set.union(*looks.values())) == len(looks) == len(MODELS) * len(BOARDS)


def test_suspect_points_are_hollow_and_told() -> None:
    deep = replace(GENERATION, n_depth_tokens=512)
    figure = plots.pictures([record(), record(deep, reasons=(Reason("throttled", "hot"),))])["depth"]
    assert figure.axes[0].get_title("left").endswith("hollow: suspect")
    hollow = [line for line in figure.axes[0].lines if line.get_fillstyle() == "none"]
    assert [list(line.get_xdata()) for line in hollow] == [[512]]  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["a$b$", "$\\frac{$", "_hidden", "two\nlines"])
def test_a_name_is_text_and_no_formula(name: str) -> None:
    made = [replace(one, model=replace(MODEL, name=f"{name}.gguf")) for one in SEVERAL[:8]]
    laid_out(plots.sheet(made))
    legend = plots.pictures(made)["depth"].legends[0]
    assert [text.get_text() for text in legend.get_texts()] == [" ".join(name.split()).lstrip("_")]


def test_the_pictures_of_a_page_take_its_colour_for_text() -> None:
    text = page.page(SEVERAL)
    assert plots.INK not in text
    assert "fill: currentColor" in text
