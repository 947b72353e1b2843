"""Figures of data, training and evaluation. Every function turns data into a Figure; none shows or saves.

Modules: ``data``, ``training``, ``evaluation``, and ``style``, which the others share.
"""
