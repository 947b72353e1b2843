"""Facial emotion recognition on FER2013, from raw faces to a model that can be trusted and used.

Importing the package is cheap: it pulls in neither torch nor any data, so that a notebook can check its parameters
before it pays for either.
"""

__version__ = "0.1.0"
