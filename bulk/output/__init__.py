"""An output folder: vectors beside metadata, in clip-retrieval's layout, with a manifest, a plan and markers."""
