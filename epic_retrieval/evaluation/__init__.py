"""Evaluation on MTEB and on local data, through the harness that MTEB's own figures come from.

Every module but `table` and `record` needs the extra `eval`; name the one that is wanted:
`encoder.MtebEncoder` for mteb's own interface, `run.evaluate` for whole evaluations.
"""
