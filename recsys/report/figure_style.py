"""What all figures share: colours, type, and how they become an image."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import importlib.util
import io
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

from recsys.errors import InputError
from recsys.report.markup import Markup, element

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#1c2430"
MUTED = "#5d6775"
FAINT = "#c9d0d9"
# Okabe and Ito's colours, which readers with any colour vision tell apart
# (https://jfly.uni-koeln.de/color/); each goes with a marker of its own.
MODEL_COLOUR = "#0072b2"
OTHER_COLOURS = ("#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MODEL_MARKER = "o"
OTHER_MARKERS = ("s", "^", "D", "v", "P", "X", "<", ">")

# CSS pixels of a figure that is half as wide as the page, and of one that has
# all of it. On a phone they are a fifth smaller, so text stays readable.
HALF_WIDTH = 400
FULL_WIDTH = 960
LEGEND_BELOW: dict[str, Any] = {
    "loc": "outside lower left",
    "ncols": 2,
    "columnspacing": 1.4,
}
_PIXELS_PER_INCH = 96
_PAGE_FONTS = "system-ui,-apple-system,'Segoe UI',Roboto,Arial,sans-serif"
_HALO = "text{paint-order:stroke;stroke:#fff;stroke-width:2.5px}"
_STYLE: dict[str, Any] = {
    # Wider than the reader's own font, which then fits where this one does.
    "font.family": ["DejaVu Sans"],
    "font.size": 9,
    "axes.labelsize": 9,
    "axes.titlesize": 9.5,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": True,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "text.color": INK,
    # A title may hold dollar signs.
    "text.parse_math": False,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "legend.handlelength": 1.6,
    "svg.fonttype": "none",
    # The same data give the same file.
    "svg.hashsalt": "recsys",
}


@dataclasses.dataclass(frozen=True)
class Image:
    """A drawn figure.

    Attributes:
        svg: The file.
        width: CSS pixels.
        height: CSS pixels.
    """

    svg: str
    width: int
    height: int

    @property
    def url(self) -> str:
        """The image itself as an address, so that nothing is fetched."""
        encoded = base64.b64encode(self.svg.encode()).decode()
        return f"data:image/svg+xml;base64,{encoded}"


def check_matplotlib() -> None:
    """Raises InputError when the extra with matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError(
            "--report needs the extra `report` for its figures: "
            "pip install 'recsys[report]'. Received: no module matplotlib"
        )


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Within it, figures look as they should."""
    import matplotlib.style

    with (
        # Nothing of the user's own settings.
        matplotlib.style.context(["default", _STYLE]),
        warnings.catch_warnings(),
    ):
        # The reader's fonts have the letters that ours lack.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        warnings.filterwarnings("ignore", ".* does not support .* natively")
        yield


def new_figure(width: int, height: int) -> Figure:
    """Returns an empty figure.

    Args:
        width: CSS pixels.
        height: CSS pixels.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(
        figsize=(width / _PIXELS_PER_INCH, height / _PIXELS_PER_INCH),
        dpi=_PIXELS_PER_INCH,
        layout="constrained",
    )
    # Measures text where labels must not overlap.
    FigureCanvasAgg(figure)
    return figure


def render(figure: Figure, *, halo: bool = False) -> Image:
    """Draws a figure; its text stays text.

    Args:
        figure: What is drawn.
        halo: Whether text gets a white rim, to be read on top of points.
    """
    file = io.StringIO()
    figure.savefig(
        file,
        format="svg",
        # Of the parts that are pixels: three for each of CSS.
        dpi=3 * _PIXELS_PER_INCH,
        metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")),
        facecolor="none",
    )
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :].replace("'DejaVu Sans'", _PAGE_FONTS)
    if halo:
        svg = svg.replace("</style>", f"{_HALO}</style>", 1)
    width, height = figure.get_size_inches() * _PIXELS_PER_INCH
    return Image(svg, round(width), round(height))


def picture(
    image: Image,
    alternative: str,
    caption: str,
    narrow: Image | None = None,
) -> Markup:
    """Returns a figure of the page.

    Args:
        image: What is shown.
        alternative: Says what it shows to those who do not see it.
        caption: Stands below it.
        narrow: Shown instead where the page is narrow; None for the same.
    """
    shown = element(
        "img",
        src=image.url,
        width=image.width,
        height=image.height,
        alt=alternative,
    )
    if narrow is not None:
        source = element(
            "source",
            media="(max-width: 45rem)",
            srcset=narrow.url,
            width=narrow.width,
            height=narrow.height,
        )
        shown = element("picture", source, shown)
    return element(
        "figure",
        shown,
        element("figcaption", caption),
        class_=None if narrow is None else "wide",
    )


def mark(place: int) -> tuple[str, str]:
    """Returns the colour and marker of a recommender, 0 being the model."""
    if place == 0:
        return MODEL_COLOUR, MODEL_MARKER
    return (
        OTHER_COLOURS[(place - 1) % len(OTHER_COLOURS)],
        OTHER_MARKERS[(place - 1) % len(OTHER_MARKERS)],
    )


def shorten(text: str, length: int) -> str:
    """Cuts a text that is longer than `length`."""
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


def quiet_grid(axes: Axes, axis: Literal["x", "y"]) -> None:
    """Draws faint lines behind everything along one axis."""
    axes.grid(axis=axis, color=FAINT, linewidth=0.6, alpha=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
