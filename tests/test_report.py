"""benchmarks/report.py: committed pages match the raw results, and a small raw file gives every page and picture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("triton")

import report
from common import case_record, dumps
from operations import Case

ENVIRONMENT = {
    "date": "2026-01-02T03:04:05",
    "cpu": "a CPU",
    "python": "3.12",
    "load": 0.2,
    "packages": {"torch": "2.13"},
}
COLUMNS = (4, 4096, 2**20)


def record(seconds: float, **more: object) -> dict:
    return {"seconds": [seconds, 2 * seconds, 3 * seconds], "peak_bytes": 3 * 2**20, **more}


def case(question: str, operation: str, rows: int, columns: int, **others: dict) -> dict:
    providers = {"torchrl": record(4e-3), "onehot_triton": record(1e-3, launches=2), **others}
    return case_record(question, Case(operation, rows, columns, "float32"), providers)


def raw(**more: object) -> dict:
    cases = [case("columns", name, 16, n) for name in ("sample", "sample_index", "train_step") for n in COLUMNS]
    cases += [case("rows", name, n, 1024) for name in ("sample", "train_step") for n in (1, 8)]
    cases += [case("operations", "sample", 64, 6, wrong={"wrong": "not one-hot"}, broken={"cannot": "no memory"})]
    cases += [case("rlhf", "policy_gradient", 512, 50257, chunks=record(2e-3))]
    cases += [case("rl", "sample", 64, 6), case("limits", "sample_index", 1024, 2**20)]
    copy = {"copy_bytes_per_second": 1e10, "missing": {"flashinfer": "its kernels need a GPU"}}
    return {"environment": ENVIRONMENT, "threads": 2, "parallel_speedup": [1.9, 1.8], **copy, "cases": cases, **more}


SHARDED = {
    "environment": ENVIRONMENT | {"cores": 2},
    "cases": [
        {
            "ranks": 4,
            "rows": 8,
            "columns": 32768,
            "dtype": "bfloat16",
            "providers": {
                "gathered": {"collectives": 1, "bytes": 8 * 49152, "seconds": [4e-3, 5e-3, 6e-3]},
                "onehot_triton": {"collectives": 1, "bytes": 8 * 60, "seconds": [1e-3, 2e-3, 3e-3]},
            },
        }
    ],
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a repository with the results of one device, of which the newest count, and pages that hold only markers."""
    results = tmp_path / "benchmarks" / "results"
    (results / "cpu").mkdir(parents=True)
    (results / "cpu" / "2026-01-01.json").write_text("an old one, which nobody reads")
    (results / "cpu" / "2026-01-02.json").write_text(dumps(raw()))
    (results / "sharded.json").write_text(dumps(SHARDED))
    for name, path in {"RESULTS": results, "ROOT": tmp_path, "PICTURES": tmp_path / "docs" / "pictures"}.items():
        monkeypatch.setattr(report, name, path)
    for path, parts in report.blocks(report.newest()).items():
        path.parent.mkdir(exist_ok=True)
        markers = [f"<!-- report: {name} -->\nold\n<!-- end -->\n" for name in parts]
        path.write_text("\n".join(["kept", *markers]))
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["report.py", *arguments])
    return report.main()


def test_committed_pages_are_what_the_results_make(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, "--check") == 0


def test_committed_pages_hold_every_part_and_picture() -> None:
    results = report.newest()
    for path, parts in report.blocks(results).items():
        text = path.read_text()
        assert sorted(parts) == sorted(match[1] for match in report.MARKED.findall(text)), path
        assert text.count("<!-- report") == text.count("<!-- end -->") == len(parts), path
    # The others are of examples.
    made = {f"{name}.png" for name in report.pictures(results)}
    assert made == {path.name for path in report.PICTURES.iterdir() if not path.name.startswith(("gradient", "token"))}


def test_every_line_of_a_picture_has_a_colour_of_its_own() -> None:
    (result, *_) = report.newest()
    drawn = {name for case in result.of(question="columns") + result.of(question="rows") for name in case["providers"]}
    assert len({report.COLOURS[name] for name in drawn}) == len(drawn) > 4


def test_report_of_a_small_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    assert run(monkeypatch, "--check") == 1
    assert run(monkeypatch) == 0
    assert run(monkeypatch, "--check") == 0
    readme = (folder / "README.md").read_text()
    assert readme.startswith("kept\n")
    assert "old" not in readme
    # Ours 2 ms, TorchRL 8: the medians.
    assert "| sample, 64 x 6, float32 | 2 ms | 4 | wrong | cannot |" in readme
    page = (folder / "benchmarks" / "results" / "cpu" / "README.md").read_text()
    # 64 x 6 elements of 4 + 8 bytes in 2 ms.
    assert "| 2 ms | 1.5 ms .. 2.5 ms | 0.0023 | 0.0% | 4 |" in page
    assert "- wrong: sample, float32: not one-hot" in page
    assert "flashinfer" in page
    scaling = (folder / "docs" / "scaling.md").read_text()
    assert "| 1,048,576 | 2 ms | 0.119 ns | 8 ms | 0.477 ns | 3 | 3 |" in scaling
    assert "| 4 | 8 x 32768, bfloat16 | 60 | 49,152 | 2 ms | 5 ms |" in scaling
    names = {path.name for path in (folder / "docs" / "pictures").iterdir()}
    assert names == {"cpu-speed.png", "cpu-columns.png", "cpu-rows.png", "cpu-memory.png", "cpu-policy-gradient.png"}
    models = (folder / "docs" / "language-models.md").read_text()
    assert "| 512 x 50257, float32 | onehot_triton | 2 ms | 1 | 3 |" in models
    assert "| 512 x 50257, float32 | chunks | 4 ms | 2 | 3 |" in models


def test_a_gpu_comes_first_and_has_a_roof(folder: Path) -> None:
    operator = {"operation": "sample", "rows": 8, "columns": 1000, "dtype": "bfloat16", "floor_bytes": 80000}
    gpu = raw(operators=[operator | {"seconds": [1e-5, 2e-5, 3e-5]}])
    gpu["environment"] = ENVIRONMENT | {"gpu": "A GPU"}
    (report.RESULTS / "a-gpu").mkdir()
    (report.RESULTS / "a-gpu" / "2026-01-03.json").write_text(dumps(gpu))
    results = report.newest()
    assert [result.kind for result in results] == ["gpu", "cpu"]
    assert report.picture(results).endswith("(docs/pictures/a-gpu-speed.png)")
    assert "A GPU" in report.speed(results)
    assert "a-gpu-roof" in report.pictures(results)
    # 80000 bytes in 20 us, of a copy's 10 GB/s.
    assert "| sample | 8 x 1000 | bfloat16 | 20 us | 15 us .. 25 us | 4 | 40.0% |" in report.page(results[0])


def test_a_busy_machine_is_told(folder: Path) -> None:
    path = report.RESULTS / "cpu" / "2026-01-02.json"
    assert "Busy" not in report.about(report.Result(path))
    path.write_text(dumps(raw(parallel_speedup=[1.1, 1.1, 1.9])))
    assert "1.1 times as fast" in report.about(report.Result(path))
    path.write_text(dumps(raw(environment=ENVIRONMENT | {"load": 3.0})))
    assert "load 3.0" in report.about(report.Result(path))


def test_prediction() -> None:
    """2^30 elements of 4 bytes: by memory, and by twice the instructions that an H200 can issue meanwhile."""
    kernel = {"rows": 2**15, "columns": 2**15, "bytes_per_element": 4, "issue_over_memory": 0.5}
    h200 = 2**32 / report.GPUS["H200"][0]
    assert report.predicted([kernel]).startswith(f"{report.duration(h200)} / ")
    slow = kernel | {"issue_over_memory": 2.0}
    assert report.predicted([slow, kernel]).startswith(f"{report.digits(1e3 * 3 * h200)} ms* / ")


def test_prediction_of_an_all_gather() -> None:
    """Seven steps of NVLink; of 64 GPUs 56 of them, each as long as a message's post, and 7 of InfiniBand."""
    assert report.all_gather(0, 1) == pytest.approx(1e-6 * (6.6 + 7 * 0.6))
    assert report.all_gather(0, 8) == pytest.approx(1e-6 * (6.6 + 56 * 1.0 + 7 * 2.7))
    # So many bytes that only the bandwidth counts, and one protocol has it all.
    assert report.all_gather(1e12, 1) == pytest.approx(7e12 / 370e9, rel=1e-3)


@pytest.mark.parametrize(
    ("seconds", "text"), [(2.5, "2.5 s"), (0.0123, "12.3 ms"), (4.56e-5, "45.6 us"), (7e-8, "70 ns"), (1234, "1,234 s")]
)
def test_duration(seconds: float, text: str) -> None:
    assert report.duration(seconds) == text


def test_raw_results_are_json_of_a_line_a_record() -> None:
    text = dumps(raw())
    assert json.loads(text) == raw()
    assert '"onehot_triton": {"seconds": [0.001, 0.002, 0.003], "peak_bytes": 3145728, "launches": 2}' in text
