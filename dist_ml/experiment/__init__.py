"""Experiments: points of a configuration, one MPI job each, resumable, and the report over them.

`axes` says which points there are and `points` what each is; `folder` is what lies on disk;
`local_jobs` and `slurm_jobs` run points; `measurements` reads what they left, `report` tables it
and `plots` draws it. The command line composes the configurations and calls all of them.
"""
