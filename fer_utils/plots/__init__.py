"""Figures of data, training and evaluation. Every function turns data into a Figure; none shows or saves."""
