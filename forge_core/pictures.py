"""What all pictures of the house share. Figures are made without pyplot: nothing is kept between calls, threads do
not meet.

Colours are Okabe and Ito's, told apart by colour-blind readers; grey is the reference everywhere.
"""

import io

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

REFERENCE, CURRENT, INK = "#999999", "#0072B2", "#333333"
SKY, ORANGE, VERMILION, GREEN = "#56B4E9", "#E69F00", "#D55E00", "#009E73"


def tidy_axes(axes: Axes) -> None:
    """Take away the lines that say nothing."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)


def small_multiples(n_boxes: int, width: float = 4.4, height: float = 2.9) -> tuple[Figure, list[Axes]]:
    """Return a figure with so many boxes, three a row."""
    columns = min(3, max(n_boxes, 1))
    rows = -(-max(n_boxes, 1) // columns)
    figure = Figure(figsize=(width * columns, height * rows + 0.4), layout="constrained")
    return figure, [figure.add_subplot(rows, columns, number + 1) for number in range(n_boxes)]


def short_text(text: str, longest: int = 14) -> str:
    """Return a label that fits, its rest cut off."""
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def short_number(value: float) -> str:
    """Return a number as an axis would show it."""
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e7 else f"{value:.3g}"


def png(figure: Figure) -> bytes:
    """Return a figure as PNG bytes."""
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()
