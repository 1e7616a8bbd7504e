from __future__ import annotations

import pytest

from runner.units import byte_count, seconds


@pytest.mark.parametrize(
    ("written", "value"),
    [
        (90, 90.0),
        (1.5, 1.5),
        ("90", 90.0),
        ("90s", 90.0),
        ("5m", 300.0),
        ("2h", 7200.0),
        ("1 d", 86400.0),
        ("0.1s", 0.1),
        ("1.5m", 90.0),
    ],
)
def test_seconds(written: float | str, value: float) -> None:
    assert seconds(written) == value


@pytest.mark.parametrize("written", ["", "s", "5 minutes", "-5s", "5M", "1e3s", "٥s", "5ss", "5s\n"])
def test_not_a_duration(written: str) -> None:
    with pytest.raises(ValueError, match="duration"):
        seconds(written)


@pytest.mark.parametrize(
    ("written", "value"),
    [
        (50, 50),
        ("50B", 50),
        ("50MB", 50_000_000),
        ("50 MB", 50_000_000),
        ("14 MiB", 14 * 1024**2),
        ("1.5GB", 1_500_000_000),
        ("1GiB", 1024**3),
        ("2kB", 2000),
        ("0.1KB", 100),
    ],
)
def test_byte_count(written: int | str, value: int) -> None:
    assert byte_count(written) == value


@pytest.mark.parametrize("written", ["", "50", "50M", "MB", "-5MB", "5TB", "5mb", "5 iB"])
def test_not_a_size(written: str) -> None:
    with pytest.raises(ValueError, match="size"):
        byte_count(written)
