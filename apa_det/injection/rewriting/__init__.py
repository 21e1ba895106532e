"""Rewriting of methods, so that activations called in them can be replaced.

What: ``forward``, and the methods that it calls, of a class whose source calls an activation, e.g.
``F.relu(x)``, ``x.sigmoid()`` or, several times, one module ``self.relu(x)``. The calls become
``self.act1(x)``, ``self.act2(x)``, … The rewritten methods belong to a subclass, which the module
gets as its ``__class__``. The class itself, other instances of it and source files do not change.

When: in :func:`apa_det.inject`, if such a call is among the names to replace, and never on import.
:func:`apa_det.restore` sets the original class again.

Why: such a call is not a submodule and cannot have parameters. Hooks cannot replace a call inside
``forward``, patching ``torch.nn.functional`` would affect all models, and tracing would freeze
control flow. The rewritten methods are plain Python, so models can still be copied, pickled,
traced, scripted, exported and compiled.

methods.py parses and rewrites methods, activation_calls.py finds the calls and decides which of
them share a module, and subclasses.py builds the subclass.
"""
