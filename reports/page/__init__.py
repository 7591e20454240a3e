"""What every page is built from: markup, scales, frames of charts, colours, numbers as text.

`markup` is the only place that makes markup; whatever else is text is escaped there.
"""
