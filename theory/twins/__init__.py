"""A twin of every figure: the same comparison on an exact tree, with finite data and replicates."""

from theory.twins import fig3, fig4, fig5, fig6, fig7, fig8, fig9, fig10
from theory.twins.base import Figure, Quantity, Reproduced, Twin

FIGURES: dict[str, Figure] = {
    module.FIGURE.name: module.FIGURE
    for module in (fig3, fig4, fig5, fig6, fig7, fig8, fig9, fig10)
}

__all__ = ["FIGURES", "Figure", "Quantity", "Reproduced", "Twin"]
