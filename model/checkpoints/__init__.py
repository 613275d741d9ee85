"""Weight files: what they are, and the one place that reads and writes them.

    registry.locate       a path or a name of weights -> the file
    containers.open_raw   -> its tensors under its own names; nothing that it brings along is run
    layouts.recognise     -> the format, and so the tensors under our names
    shapes.infer_config   -> the network that they make
    store.read            -> every tensor checked and put into it: a ``Checkpoint``

``store.write`` and ``convert`` go the other way. ``pull`` brings files here by ``download``; ``report`` tells a person
what one is, by its ``header`` alone if need be.
"""
