"""Figures of data, training and evaluation. Every function turns data into a Figure; none shows or saves.

Modules, one for each notebook's figures: ``data``, ``training``, ``evaluation``, ``inference``, ``comparison``,
``explain``; and ``style``, which the others share.
"""
