"""Keys without effect, and values beyond reason, are refused in words."""

import pytest

from dist_ml.config.combinations import TABLE
from dist_ml.errors import ConfigError
from dist_ml.train.members import check_members
from tests.configurations import train_config


def checked(*overrides: str) -> None:
    check_members(train_config(*overrides))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ("data_parallel=zero1 allreduce.wire=bf16", "allreduce.wire=bf16 has no effect with data"),
        ("data_parallel=zero2 sparse=topk", "sparse.allreduce=auto has no effect with data_par"),
        ("data_parallel=periodic allreduce.overlap=poll", "allreduce.overlap=poll has no effect"),
        ("allreduce.bucket_bytes=64 allreduce.overlap=none", "allreduce.bucket_bytes=64 has no"),
        ("allreduce.wire=fp16", "allreduce=native, which sends numbers as they are"),
        ("sparse.clip_norm=1", "sparse.clip_norm=1.0 has no effect with sparse.allreduce=none"),
        ("sparse=topk sparse.allreduce=gtopk sparse.threshold_steps=3", "sparse.threshold_steps"),
        ("data_parallel.period=2", "data_parallel.period=2 has no effect"),
        ("optimizer=adamw optimizer.momentum=0.5", "optimizer.momentum=0.5 has no effect"),
        ("lr_schedule=constant lr_schedule.final_fraction=0.5", "use lr_schedule=cosine"),
        (
            "mesh.pipeline=2 pipeline.chunks=3",
            "pipeline.chunks=3 has no effect with pipeline.name=o",
        ),
        ("pipeline=interleaved pipeline.pipes=4", "pipeline.pipes=4 has no effect with pipeline"),
        ("pipeline=zb_v pipeline.concatenation=direct", "concatenation=direct has no effect"),
        ("pipeline=gpipe pipeline.file=x.csv", "pipeline.file=x.csv has no effect"),
        ("pipeline.name=chimaera", "pipeline.name=chimaera is not one of gpipe.*mean chimera"),
        ("model.width=64", "model.width=64 has no effect with model=mlp"),
        ("model=transformer data=text model.hidden=[3]", r"model.hidden=\[3\] has no effect with"),
        ("kernel=numpy precision=bf16", "kernel=numpy has no effect with precision=bf16"),
        ("precision=fp64 sparse=topk sparse.values=int4", "would round fp64 gradients"),
        ("allreduce.name=rings", r"is not one of native, ring.*did you mean ring"),
        ("optimizer=adamw optimizer.eps=-1", "eps=-1.0 must be above 0"),
        ("optimizer=adamw optimizer.eps=inf", "eps=inf must be above 0 and finite"),
        ("optimizer.weight_decay=inf", "weight_decay=inf must be at least 0 and finite"),
        ("accumulation=1000000000", "accumulation=1000000000 cuts a batch of batch_size=64"),
        ("folder=''", "names no folder"),
        ("name=../x", "leads out of the folder of runs"),
        (f"name={'a' * 5000}", "name has a part of 5000 letters"),
    ],
    ids=lambda value: value[:40],
)
def test_refused(overrides: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        checked(*overrides.split())


@pytest.mark.parametrize(
    "overrides",
    [
        "",
        "sparse=dgc optimizer.momentum=0",
        "data_parallel=daso",
        "optimizer=adamw kernel=auto",
        "model=transformer data=text",
        "model=transformer data=text optimizer=sgd",
        "pipeline=chimera pipeline.pipes=4",
        "pipeline=file pipeline.file=x",
        "reproduce=bitwise fault.rerun=true",
    ],
)
def test_defaults_and_shipped_choices_are_never_refused(overrides: str) -> None:
    checked(*overrides.split())


def test_no_key_has_two_rows() -> None:
    keys = [key for row in TABLE for key in row.keys]
    assert len(keys) == len(set(keys))
