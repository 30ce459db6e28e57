"""The inference engine: it decodes or tokenises items, batches them and runs the models. It does not know jobs."""
