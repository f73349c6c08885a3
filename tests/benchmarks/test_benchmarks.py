"""The benchmark scripts run and print one JSON document. No test looks at a time: this machine may be busy."""

import importlib
import json
import sys

import pytest
import torch

SMALLEST = (
    ("collect", "--steps 2 --batch 1 --keep moments features --tokens 0 64"),
    ("covariance", "--features toy --steps 2 --batch 1 --units 1"),
    ("archives", "--features toy --steps 2 --batch 1"),
    ("chunks", "--megabytes 1 --steps 2 --batch 1 --units 1 --tags 10"),
    ("decompositions", "--small --steps 2 --sign"),
    ("decompositions", "--small --bare 2"),
    ("factors", "--dims 40 --rank 8 --vectors 64 --whole 40"),
    ("gpu", "--device cpu --tiny --dtypes float32 --minutes 0"),
    ("training", "--device cpu --tiny --precision no --model sd15 sdxl flux"),
)


@pytest.mark.parametrize(("name", "arguments"), SMALLEST)
def test_a_script_runs_and_prints_one_document(
    name: str, arguments: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [name, "--repeats", "1", "--threads", "1", "--json", *arguments.split()])
    threads = torch.get_num_threads()
    importlib.import_module(f"tests.benchmarks.{name}").main()
    torch.set_num_threads(threads)
    document = json.loads(capsys.readouterr().out)
    assert document["benchmark"] == name
    assert document["figures"]
