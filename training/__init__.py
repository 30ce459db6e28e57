"""How `emoji-mini`, the small CLIP that ships with clip-queue, is made.

    packages → concepts → render ─┐
                 texts ───────────┼─ train ─ export ─ figures
                 augment ─────────┘

`python -m training` runs the whole of it; see README.md.
"""
