"""Questions about numbers, answered by plain functions: is this the same distribution, how good are predictions.

Two ideas carry the room. First, data is compared as *counts on a grid that the reference fixed*: counts are tiny,
exact, and add up over any split of the rows, so a notebook and a live service reach the same figure. Second, every
comparison answers two questions apart: is there a difference (a p value), and is it large (PSI, with an interval).
With many rows everything is significant; with few, large differences are noise.
"""
