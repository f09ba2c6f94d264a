import contextlib
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtlet.model.quantity import parse_bytes, parse_quantity

BINARY = {"Ki": 1, "Mi": 2, "Gi": 3, "Ti": 4, "Pi": 5, "Ei": 6}
DECIMAL = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("128974848", 128974848),
        ("129e6", 129000000),
        ("129M", 129000000),
        ("128974848000m", 128974848),
        ("123Mi", 123 << 20),
        ("1.5Gi", 3 << 29),
        (".5Ki", 512),
        ("5.", 5),
        ("+1", 1),
        ("-0", 0),
        ("1E", 10**18),
        ("1E3", 1000),
        ("1e-3", 1),
    ],
)
def test_bytes_are_what_kubernetes_takes_them_for(text: str, value: int) -> None:
    assert parse_bytes(text) == value


@pytest.mark.parametrize(
    "text",
    [
        *("", " 1", "1 ", "1\n", "1 Gi", "Gi", ".", "1..2", "1GiB", "1K", "1gi", "0x10", "1e"),
        *("1e3Ki", "١", "1_000", "nan", "inf", "--1", "1e999", "9" * 99),
    ],
)
def test_what_is_no_quantity_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="quantity|suffix"):
        parse_quantity(text)


@pytest.mark.parametrize("text", ["-1", "-1Ki", "8Ei", "1e99", "9223372036854775808"])
def test_bytes_that_no_disk_or_memory_has_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not between"):
        parse_bytes(text)


@given(st.integers(0, 10**6), st.sampled_from(sorted(BINARY)))
def test_binary_suffixes_are_powers_of_1024(number: int, suffix: str) -> None:
    assert parse_quantity(f"{number}{suffix}") == number * 1024 ** BINARY[suffix]


@given(st.integers(0, 10**6), st.sampled_from(sorted(DECIMAL)))
def test_decimal_suffixes_are_powers_of_1000(number: int, suffix: str) -> None:
    assert parse_quantity(f"{number}{suffix}") == Decimal(number).scaleb(DECIMAL[suffix])


@given(st.text(alphabet="0123456789.+-eEKMGTPimnu ", max_size=12) | st.text(max_size=12))
def test_any_text_is_bytes_or_a_value_error(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert 0 <= parse_bytes(text) < 2**63


def test_a_long_text_is_not_quoted_whole() -> None:
    with pytest.raises(ValueError) as caught:
        parse_bytes("x" * 100_000)
    assert len(str(caught.value)) < 200
