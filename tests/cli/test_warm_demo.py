"""What `make demo WARM=1` shows."""

from virtlet.cli.warm_demo import Side, table


def test_both_sides_stand_beside_each_other_with_their_ratios() -> None:
    mib = 1 << 20
    cold = Side([6.5, 7.5, 6.0], [250 * mib, 260 * mib, 240 * mib])
    warm = Side([1.3, 1.5, 1.2], [50 * mib, 75 * mib, 25 * mib])
    assert table(cold, warm) == [
        "                                cold      warm",
        "  pod 1                       6.50 s    1.30 s",
        "  pod 2                       7.50 s    1.50 s",
        "  pod 3                       6.00 s    1.20 s",
        "  median to the answer        6.50 s    1.30 s  ×0.20",
        "  memory of a VM             250 MiB    50 MiB  ×0.20",
        "  memory of all              750 MiB   150 MiB  ×0.20",
    ]
