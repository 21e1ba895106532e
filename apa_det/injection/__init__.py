"""Injection: replace activations and gates of any model by AGLU and APA.

api.py is the interface. locations.py finds the activations and inserts modules, references.py finds
what a forward pass uses, activation_kinds.py lists the supported activations, and channels.py finds
channel counts.
Activations called as functions are not modules: rewriting/ rewrites the methods that call them.
"""

from .api import Replaced, inject, injected, restore
