"""The figures of one GPU in under nine minutes, also on a machine that reaches no registry (docs/operating.md)."""
